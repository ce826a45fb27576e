"""Checks of the options of `infer.generate`: first by themselves, before anything is loaded, then against the target.

Raises BadInput, one sentence that names the option. Not here: ranges (`infer/options.py`), prompts, folders, the output file.
"""

from infer import drafting, templates
from infer.generate.task import Decoding
from infer.options import changed, check_drafted, check_number, flag, given
from infer.settings import NONE
from redrafter_jax.decode.request import (
    DRAFT_TOP_K,
    RANGES,
    require,
    wrong_for_context,
    wrong_for_vocabulary,
    wrong_penalty,
    wrong_repetition,
    wrong_temperature,
    wrong_top_p,
)
from redrafter_jax.errors import BadInput

SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "repetition_penalty")  # that a model's generation_config.json may decide
REALS = {
    "temperature": wrong_temperature,
    "top_p": wrong_top_p,
    "repetition_penalty": wrong_repetition,
    "presence_penalty": wrong_penalty,
    "frequency_penalty": wrong_penalty,
}
OF_A_SEARCH = ("beam_width", "beam_length", "node_budget", "tree", "draft_top_k")
NO_DRAFT = " (for no draft at all: --decoding autoregressive)"


def alone(options) -> None:
    """Checks the command's `Options`: ranges, and options that exclude each other."""
    for name in RANGES:
        is_of_a_draft = name in ("beam_width", "beam_length", "node_budget")
        check_number(name, getattr(options, name), more=NO_DRAFT if is_of_a_draft else "")
    for name, value in given(options, tuple(REALS)).items():
        require(flag(name), REALS[name](value))
    _replies(options)
    templates.read_kwargs(options.chat_template_kwargs)
    drafting.check(options.drafter, options.beside, options.lookup_length, options.lookup_match)
    drafting.check_search(options.drafter, changed(options, OF_A_SEARCH))
    _drawn(options)
    options.group.check()
    options.workers.check()
    _together(options)


def _drawn(options) -> None:
    """Drafts that are drawn: no search chooses among them, and none of them is cut off."""
    if options.tree == "chains" and options.node_budget is not None:
        raise BadInput("--node-budget cuts trees of a search, and --tree chains makes none; leave out one of them")
    if options.acceptance != "rejection" or options.decoding == "autoregressive":
        return
    if not drafting.has_head(options.drafter) or options.beside is not None:
        raise BadInput("--acceptance rejection needs drafts that are drawn, and a lookup draws none; leave out one of them")
    if (options.beam_width or 1) > 1 and options.tree != "chains":
        raise BadInput(
            "--acceptance rejection needs drafts that are drawn, and a beam search chooses its own, so there is no probability that"
            " they had; give --beam-width 1 or --tree chains"
        )


def _replies(options) -> None:
    """How many replies there are, where they end, and what is said of them."""
    if options.min_new_tokens > options.max_new_tokens:
        most = options.max_new_tokens
        raise BadInput(f"--min-new-tokens should be at most --max-new-tokens, {most}, not {options.min_new_tokens}")
    if "" in options.stop:
        raise BadInput("--stop should be a text of at least one character, not ''")
    if options.include_stop and not options.stop:
        raise BadInput("--include-stop goes with --stop")
    is_greedy = options.temperature == 0 or (options.temperature is None and options.sampling == "given")
    if options.n > 1 and is_greedy:
        raise BadInput(f"--n should be 1 at --temperature 0, where all replies are the same, not {options.n}")
    if options.n > 1 and options.decoding == "compare":
        raise BadInput(f"--decoding compare decodes one reply to each prompt; --n should be 1, not {options.n}")
    if options.logprobs and not options.json and options.output is None:
        raise BadInput("--logprobs are written into JSON lines; give --json or --output")


def chooses_search(options) -> bool:
    """Whether the options say themselves how to draft, so that no settings are read."""
    drafts_otherwise = not drafting.has_head(options.drafter) or options.beside is not None or options.decoding == "autoregressive"
    return drafts_otherwise or options.acceptance == "rejection" or bool(changed(options, OF_A_SEARCH))


def _together(options) -> None:
    if options.settings not in (None, NONE) and chooses_search(options):
        raise BadInput("--settings chooses how a head drafts, and so do other options; leave out one of them")
    if options.prompt and options.prompts is not None:
        raise BadInput("--prompt and --prompts exclude each other; give one of them")
    if options.prompt.count("-") > 1:
        raise BadInput("--prompt - can be given once; there is one standard input")
    if options.decoding == "compare" and options.output is not None:
        raise BadInput("--output keeps replies, not comparisons; with --decoding compare use --json")
    if options.decoding == "autoregressive" and options.beside is not None:
        raise BadInput("--with lookup drafts beside a head, and --decoding autoregressive drafts nothing; leave out one of them")
    if not options.group.is_single or options.workers.ray_workers:
        _in_a_group(options)
    if not options.group.is_single and options.workers.ray_workers:
        raise BadInput("--ray-workers decodes in processes that Ray starts; leave out --distributed and --coordinator")
    if options.target is not None and options.drafter is None and options.decoding != "autoregressive":
        raise BadInput("--drafter is missing: name the head for --target, or use --decoding autoregressive")
    if options.interactive:
        _interactive(options)


def _interactive(options) -> None:
    for name in ("prompt", "prompts", "output", "json"):
        if getattr(options, name):
            raise BadInput(f"--interactive takes its prompts from the terminal and cannot go with {flag(name)}")
    if options.decoding == "compare":
        raise BadInput("--interactive decodes one way; leave out --decoding compare")
    if options.n > 1:
        raise BadInput(f"--interactive shows one reply to each turn; --n should be 1, not {options.n}")
    if options.batch_size > 1:
        raise BadInput(f"--interactive decodes one prompt at a time; --batch-size should be 1, not {options.batch_size}")


def _in_a_group(options) -> None:
    """Several processes can only share a file of prompts."""
    for name in ("interactive", "json"):
        if getattr(options, name):
            raise BadInput(f"{flag(name)} is for one process; several decode a file of --prompts into --output")
    if options.decoding == "compare":
        raise BadInput("--decoding compare times one process; leave out --distributed, --coordinator and --ray-workers")
    if options.prompts in (None, "-") or options.output is None:
        raise BadInput("--prompts and --output are missing: several processes decode a file of prompts into a file of replies")


def against(decoding: Decoding, target, shape, head=None) -> None:
    """Checks numbers against this target (a `TargetConfig`) and its head (a config of `files/heads.py`); ``shape`` is None where
    no head drafts."""
    context, vocabulary = target.max_position_embeddings, target.vocab_size
    require("--max-length", wrong_for_context(decoding.limits.length, context))
    require("--max-new-tokens", wrong_for_context(decoding.limits.new, context))
    require("--top-k", wrong_for_vocabulary(decoding.sampling.top_k, vocabulary))
    require("--logprobs", wrong_for_vocabulary(decoding.sampling.logprobs, vocabulary))
    if decoding.n > 1 and decoding.sampling.temperature == 0:
        why = "by which this model is greedy and all replies are the same"
        raise BadInput(f"--n should be 1 with --sampling model, {why}, not {decoding.n}; give a --temperature")
    if decoding.lookup is not None and decoding.lookup.length >= context:
        raise BadInput(f"--lookup-length should be below the target's context of {context}, not {decoding.lookup.length}")
    if shape is None:
        return
    if head.has_fixed_tree and (decoding.sampling.draws or shape.tree != "search"):
        what = "--acceptance rejection" if decoding.sampling.draws else f"--tree {shape.tree}"
        raise BadInput(
            f"{what} is not for Medusa's heads, whose tree is a constant that holds their likeliest tokens; leave it out"
        )
    if head.has_fixed_tree and shape.width == 1 and shape.length > head.num_heads:
        raise BadInput(f"--beam-length should be at most {head.num_heads}, as many as there are Medusa heads, not {shape.length}")
    check_drafted("--beam-width", shape.width, vocabulary, head.draft_vocab, head.candidates)
    if shape.draft_top_k > DRAFT_TOP_K:
        check_drafted("--draft-top-k", shape.draft_top_k, vocabulary, head.draft_vocab, head.candidates)
    if shape.length >= context:
        raise BadInput(f"--beam-length should be below the target's context of {context}, not {shape.length}")
