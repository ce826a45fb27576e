"""`python -m infer.generate`: text from a target and its draft head. The options, and the order in which things happen.

Not here: checks of the options (`checks.py`), decoding (`session.py`, `batches.py`), a conversation (`chat.py`); and, of all
commands, in `infer`: reading prompts (`prompts.py`), loading (`pair.py`), the JSONL file (`replies.py`), what a person sees
(`terminal.py`). The options end here, as a `Task`. JAX is imported only once they are known to be good.
"""

import contextlib
import dataclasses
import pathlib
import sys
from typing import Annotated, ClassVar, Literal

import tyro

from infer import distributed, drafting, prompts, settings, templates
from infer.command import read_options, run_command
from infer.distributed import Group
from infer.generate import checks
from infer.generate.task import Decoding, Destination, Models, Task, Tuning, WantedShape
from infer.options import Weights, given
from infer.stopping import Stops
from infer.workers import Workers
from redrafter_jax.decode.request import DRAFT_TOP_K, Limits, Sampling
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, lock

DEFAULT_PROMPT = """class Client:
    def connect(self, host, port, timeout=None):
        \"\"\"Connect to a server.\"\"\"
        self.sock = socket."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Generate text with speculative decoding. Without options: the embedded pair continues the start of a Python class."""

    GROUPS: ClassVar = {
        "models": "target",
        "prompts_and_replies": "prompt",
        "drafting": "decoding",
        "sampling_and_length": "sampling",
        "machine_and_screen": "batch_size",
    }
    VALUES: ClassVar = {
        "target": "MODEL", "lora": "FOLDER", "drafter": "HEAD", "lookup_match": "LONGEST SHORTEST", "prompt": "TEXT",
        "prompts": "FILE",
        "chat_template": "FILE", "chat_template_kwargs": "JSON",
        "output": "FILE", "cache_dir": "FOLDER", "mesh": "D M", "beam_width": "W", "beam_length": "L",
        "node_budget": "N", "draft_top_k": "K", "top_k": "K", "top_p": "P", "temperature": "T",
        "stop": "TEXT", "logprobs": "K", "n": "N",
    }  # fmt: skip
    DEFAULTS: ClassVar = {name: getattr(Sampling, name) for name in checks.SAMPLING_OPTIONS}
    EXAMPLES: ClassVar = (
        "python -m infer.generate",
        'python -m infer.generate --prompt "def fibonacci(n):" --max-new-tokens 64',
        "python -m infer.generate --target MODEL --drafter HEAD --interactive --temperature 0.7",
        "python -m infer.generate --target MODEL --drafter HEAD --prompts in.jsonl --output out.jsonl",
        "python -m infer.generate --target MODEL --drafter HEAD --prompts in.jsonl --decoding compare",
    )

    target: str | None = None
    """Folder or hub name (owner/model) of a target in safetensors (Llama, Qwen, Gemma ...); the embedded one if not given."""
    lora: str | None = None
    """Folder or hub name of a low-rank adapter of the target in PEFT's format, which is merged into it; the head stays as it is."""
    drafter: str | None = None
    """Folder or hub name of what drafts: a head in Apple's format, Medusa's heads, or a small model of the target's vocabulary;
    one of the embedded heads if not given. `lookup`: none; what followed the last tokens where they stood before is drafted (a
    folder that is called lookup is ./lookup)."""
    beside: Annotated[Literal["lookup"] | None, tyro.conf.arg(name="with")] = None
    """lookup: draft with the head and with a lookup at once, one tree of both."""
    lookup_length: int | None = None
    """Tokens that a lookup drafts in a round; by default 6."""
    lookup_match: tuple[int, int] | None = None
    """LONGEST SHORTEST: how many of the last tokens a lookup tries to find, and has to find; by default 8 and 2."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A text to continue; may be repeated. `-` is standard input, which, if piped, is also read where no prompt is named."""
    prompts: str | None = None
    """JSONL file, or `-` for standard input: in each line `prompt`, `messages` (for the chat template), `token_ids`, or `turns`
    (Spec-Bench, MT-bench: questions that are asked in order). What else a line has is in its reply's `metadata`."""
    chat_template: str | None = None
    """Jinja file that messages, turns and a chat are written with, or `vicuna`; by default the tokenizer's own, and for messages
    and turns Vicuna's where it has none."""
    chat_template_kwargs: str | None = None
    """JSON object of further variables that the chat template reads, such as '{"enable_thinking": false}' of Qwen3."""
    interactive: bool = False
    """Converse: a chat where there is a chat template, else completion. /help lists what can be typed; Ctrl-D ends."""
    output: pathlib.Path | None = None
    """JSONL file for the replies. Started again, a run that was cut off goes on where it stopped."""
    json: bool = False
    """Print the replies as JSON lines, and nothing else, to standard output."""
    decoding: Literal["speculative", "autoregressive", "compare"] | None = None
    """By default speculative, or what infer.tune found to be faster. compare: decode both ways in turn, check that the tokens are
    identical (float32: exit code 1 if not), print both speeds."""
    settings: str | None = None
    """File of settings that infer.tune wrote: the shape, and which embedded head, where no option of the search is given. By
    default ~/.config/redrafter_jax/settings.json, if it is there; `none`: no file."""
    beam_width: int | None = None
    """Beams W; by default what infer.tune found, else 8, and on a CPU 2, or 1 where the target is larger than the CPU's cache."""
    beam_length: int | None = None
    """Drafted tokens per beam L; by default 5, and on a CPU 2, or 3 where the target is larger than the CPU's cache."""
    node_budget: int | None = None
    """Nodes that the target scores per pass, the root included; by default all that there can be, 1 + W * L, and a lookup's."""
    tree: Literal["search", "beams", "chains"] = "search"
    """search: everything the beam search kept; beams: the final beams alone, as in the paper; chains: no search, but W chains of L
    tokens, drawn from the drafter's own distribution."""
    draft_top_k: int = DRAFT_TOP_K
    """Cut each draft distribution to its k likeliest tokens (Apple's code: 50), or W if that is more; 0 is off."""
    sampling: Literal["given", "model"] = "given"
    """model: temperature, top-k and top-p (and a repetition penalty) of the target's generation_config.json, but for those that are
    given here."""
    temperature: float | None = None
    """0 is greedy."""
    top_k: int | None = None
    """Sample among the k likeliest tokens; 0 is off."""
    top_p: float | None = None
    """Sample among the likeliest tokens that together have this probability; 1 is off."""
    repetition_penalty: float | None = None
    """Divide positive logits of tokens that the prompt or the reply has, and multiply negative ones; 1 is off."""
    presence_penalty: float = 0.0
    """Subtract from the logits of tokens that the reply has, from -2 to 2; 0 is off."""
    frequency_penalty: float = 0.0
    """Subtract from the logits of tokens as often as the reply has them, from -2 to 2; 0 is off."""
    logprobs: int = 0
    """In JSON lines: the log-probability of each token, and the K likeliest tokens with theirs, of the model's own distribution
    (before penalties, temperature, top-k and top-p); 0 is off."""
    acceptance: Literal["coupled", "independent", "rejection", "typical"] = "coupled"
    """coupled and independent give exactly the target's text with this seed; rejection exactly its distribution, from drafts that
    were drawn: one beam, or --tree chains; typical CHANGES THE DISTRIBUTION."""
    seed: int = 0
    """Prompt i, counted from 0, is sampled with seed + i. The same seed gives the same text."""
    max_new_tokens: int = 128
    """New tokens per prompt at most."""
    max_length: int | None = None
    """Tokens of prompt and reply together at most; by default the target's context."""
    min_new_tokens: int = 0
    """No end-of-text token before the reply has so many tokens; a stop string that appears earlier does not end it either."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A text that ends the reply where it appears, and is not shown; may be repeated. In a shell $'\\n' is a line break."""
    include_stop: bool = False
    """Keep the stop string that ended a reply in its text."""
    n: int = 1
    """Replies to each prompt, which differ in their noise, so --temperature has to be above 0. The first is that of --n 1."""
    batch_size: int = 1
    """Prompts that are decoded together."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of weights and cache; by default float32 on a CPU and bfloat16 elsewhere."""
    weights: Weights | None = None
    """How the matrices of the target's layers are stored: int8 or fp8 (eight bits and a scale per output channel, made as they are
    read), or as --dtype; by default as --dtype, or as a quantised checkpoint has them."""
    cache_dir: pathlib.Path | None = None
    """Folder for compiled programs and nothing else, so that the next start compiles nothing; by default ~/.cache/redrafter_jax.
    It grows to 4 GiB at most, those not used for longest go first; remove the folder to clear it."""
    no_color: bool = False
    """Do not show accepted drafts in green (so does the environment variable NO_COLOR)."""
    mesh: tuple[int, int] | None = None
    """Devices over which a batch (D) and the models (M) are split; by default what the devices, their memory and the target's
    size suggest."""
    workers: tyro.conf.OmitArgPrefixes[Workers] = Workers()
    group: tyro.conf.OmitArgPrefixes[Group] = Group()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = read_options(Options, "infer.generate", arguments)
    checks.alone(options)
    return distributed.run(options.group, lambda: _decode(options))


def task_of(options: Options) -> Task:
    """The checked options (`checks.alone`) in the library's types, except prompts, the cache of programs and the group."""
    beams = WantedShape(options.beam_width, options.beam_length, options.node_budget or 0, options.tree, options.draft_top_k)
    own = given(options, checks.SAMPLING_OPTIONS)
    of_the_reply = {name: getattr(options, name) for name in ("presence_penalty", "frequency_penalty", "logprobs")}
    sampling = Sampling(**own, rule=options.acceptance, **of_the_reply)
    limits = Limits(options.max_new_tokens, options.max_length or 0, options.min_new_tokens)
    has_head = drafting.has_head(options.drafter)
    lookup = drafting.wanted_lookup(options.drafter, options.beside, options.lookup_length, options.lookup_match)
    lookup = None if options.decoding == "autoregressive" else lookup
    return Task(
        Models(
            options.target,
            options.drafter if has_head else None,
            has_head,
            options.dtype,
            options.mesh,
            options.lora,
            options.weights,
        ),
        Decoding(
            options.decoding or "speculative",
            beams,
            lookup,
            sampling,
            limits,
            options.seed,
            options.batch_size,
            options.ignore_eos,
            own_sampling=None if options.sampling == "given" else tuple(own),
            chat_template=options.chat_template,
            chat_template_kwargs=templates.read_kwargs(options.chat_template_kwargs),
            stops=Stops(options.stop, options.include_stop),
            n=options.n,
        ),
        Destination(options.output, options.json, options.no_color, options.workers),
        Tuning() if checks.chooses_search(options) else Tuning(settings.source_of(options.settings), options.decoding is None),
    )


def _decode(options: Options) -> int:
    with contextlib.ExitStack() as stack:
        if options.output is not None:
            processes.run_in_first(lambda: _lock(stack, options.output))
        return _run(options)


def _lock(stack: contextlib.ExitStack, output: pathlib.Path) -> None:
    claims.check_file(output, "--output")
    stack.enter_context(lock.file(output, "--output"))


def _run(options: Options) -> int:
    asked = [] if options.interactive else prompts.read(options.prompt, options.prompts)
    if not asked and not options.interactive:
        asked = [_default_prompt(options)]
    if sys.stderr.isatty():
        processes.say(f"loading {'the embedded pair' if options.target is None else options.target} ...", sys.stderr)
    from infer import programs  # JAX is imported here
    from infer.generate import session, spread

    programs.use_cache(options.cache_dir)
    decode = spread.run if options.workers.ray_workers else session.run
    return session.converse(task_of(options)) if options.interactive else decode(task_of(options), asked)


def _default_prompt(options: Options) -> prompts.Prompt:
    if options.target is not None:
        raise BadInput("--prompt is missing: give --prompt, --prompts or standard input (only the embedded pair has a default)")
    return prompts.Prompt("the default prompt", "prompt", DEFAULT_PROMPT, is_default=True)


if __name__ == "__main__":
    sys.exit(main())
