"""What the options of `infer.generate` may be: first by themselves, before anything is loaded, then against the target.

Raises BadInput, one sentence that names the option. Not here: the ranges themselves, which are Python's as well
(`redrafter_jax/decode/request.py`), prompts, folders, the output file.
"""

from redrafter_jax.decode.request import (
    DRAFT_TOP_K,
    MAX_NODES,
    MAX_SEED,
    RANGES,
    require,
    wrong_for_context,
    wrong_for_vocabulary,
    wrong_number,
    wrong_temperature,
    wrong_top_p,
)
from redrafter_jax.errors import BadInput


def alone(options) -> None:
    """Numbers out of range, and options that exclude each other."""
    for name in RANGES:
        if getattr(options, name) is not None:  # None is the default and always fine
            _require(name, wrong_number(name, getattr(options, name)))
    temperature(options.temperature)
    top_p(options.top_p)
    options.group.check()
    _together(options)


def within(options, name: str, low: int, high: int) -> None:
    """A number out of its range; None is the default and always fine."""
    value = getattr(options, name)
    if value is not None and not low <= value <= high:
        _require(name, f"should be from {low} to {high}, not {value}")


def temperature(value: float) -> None:
    """A temperature that is neither 0 nor one at which float32 can sample."""
    require("--temperature", wrong_temperature(value))


def nodes(width: int, length: int, budget: int) -> None:
    """A tree that is too large to score."""
    count = min(budget, 1 + width * length) if budget else 1 + width * length
    if count > MAX_NODES:
        raise BadInput(f"--beam-width {width} and --beam-length {length} make {count} nodes, over {MAX_NODES};"
                       " narrow them or give a --node-budget")  # fmt: skip


def top_p(value: float) -> None:
    """A share of the probability that is none."""
    require("--top-p", wrong_top_p(value))


def _together(options) -> None:
    if options.prompt and options.prompts is not None:
        raise BadInput("--prompt and --prompts exclude each other; give one of them")
    if options.prompt.count("-") > 1:
        raise BadInput("--prompt - can be given once; there is one standard input")
    if options.decoding == "compare" and options.output is not None:
        raise BadInput("--output keeps replies, not comparisons; with --decoding compare use --json")
    if not options.group.is_single:
        _in_a_group(options)
    if options.target is not None and options.drafter is None and options.decoding != "autoregressive":
        raise BadInput("--drafter is missing: name the head for --target, or use --decoding autoregressive")
    if not options.interactive:
        return
    for name in ("prompt", "prompts", "output", "json"):
        if getattr(options, name):
            raise BadInput(f"--interactive takes its prompts from the terminal and cannot go with {_flag(name)}")
    if options.decoding == "compare":
        raise BadInput("--interactive decodes one way; leave out --decoding compare")
    if options.batch_size > 1:
        raise BadInput(f"--interactive decodes one prompt at a time; --batch-size should be 1, not {options.batch_size}")


def _in_a_group(options) -> None:
    """Several processes share out a file of prompts, and nothing else."""
    for name in ("interactive", "json"):
        if getattr(options, name):
            raise BadInput(f"{_flag(name)} is for one process; several decode a file of --prompts into --output")
    if options.decoding == "compare":
        raise BadInput("--decoding compare times one process; leave out --distributed and --coordinator")
    if options.prompts in (None, "-") or options.output is None:
        raise BadInput("--prompts and --output are missing: several processes decode a file of prompts into a file of replies")


def against(options, target, shape, head=None) -> None:
    """Numbers that this target (a `TargetConfig`) and its head (a `DrafterConfig`) have no room for; ``shape`` is None
    for plain decoding."""
    context, vocabulary = target.max_position_embeddings, target.vocab_size
    for name in ("max_length", "max_new_tokens"):
        if getattr(options, name) is not None:
            require(_flag(name), wrong_for_context(getattr(options, name), context))
    require("--top-k", wrong_for_vocabulary(options.top_k, vocabulary))
    if shape is None:
        return
    to_draft("--beam-width", shape.width, target, head)
    if shape.draft_top_k > DRAFT_TOP_K:
        to_draft("--draft-top-k", shape.draft_top_k, target, head)
    if shape.length >= context:
        raise BadInput(f"--beam-length should be below the target's context of {context}, not {shape.length}")


def to_draft(option: str, value: int, target, head=None) -> None:
    """More beams, or a larger --draft-top-k, than there are tokens to draft."""
    require(option, wrong_for_vocabulary(value, target.vocab_size, head.draft_vocab if head is not None else 0))


def seeds(options, count: int) -> list[int]:
    """The seed of each prompt: --seed and its number."""
    if options.seed + count - 1 > MAX_SEED:
        at_most = MAX_SEED - count + 1
        raise BadInput(f"--seed {options.seed} leaves too few seeds for {count} prompts; at most {at_most}")
    return [options.seed + index for index in range(count)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _require(name: str, wrong: str | None) -> None:
    if wrong is not None and name in ("beam_width", "beam_length", "node_budget"):
        wrong += " (for no draft at all: --decoding autoregressive)"
    require(_flag(name), wrong)
