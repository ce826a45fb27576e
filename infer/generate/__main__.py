"""`python -m infer.generate`: text from a target and its draft head. The options, and the order in which things happen.

Not here: checks of the options (`checks.py`), decoding (`session.py`, `batches.py`), a conversation (`chat.py`); and, of all
commands, in `infer`: reading prompts (`prompts.py`), loading (`pair.py`), the JSONL file (`replies.py`), what a person sees
(`terminal.py`). The options end here, as a `Task`. JAX is imported only once they are known to be good.
"""

import contextlib
import dataclasses
import pathlib
import sys
from typing import Annotated, Literal

import tyro

from infer import distributed, drafting, prompts, settings
from infer.command import read_options, run_command
from infer.distributed import Group
from infer.generate import checks
from infer.generate.task import Decoding, Destination, Models, Task, Tuning, WantedShape
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

    target: str | None = None
    """Folder or hub name (owner/model) of a Llama-family target in safetensors; the embedded one if not given."""
    drafter: str | None = None
    """Folder or hub name of its draft head, in Apple's format; one of the embedded ones if not given. `lookup`: no head; what
    followed the last tokens where they stood before is drafted (a folder that is called lookup is ./lookup)."""
    beside: Annotated[Literal["lookup"] | None, tyro.conf.arg(name="with")] = None
    """lookup: draft with the head and with a lookup at once, one tree of both."""
    lookup_length: int | None = None
    """Tokens that a lookup drafts in a round; by default 6."""
    lookup_match: tuple[int, int] | None = None
    """LONGEST SHORTEST: how many of the last tokens a lookup tries to find, and has to find; by default 8 and 2."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A text to continue; may be repeated. `-` is standard input, which, if piped, is also read where no prompt is named."""
    prompts: str | None = None
    """JSONL file, or `-` for standard input: in each line `prompt`, `messages` (for the chat template) or `token_ids`."""
    interactive: bool = False
    """Converse: a chat where the tokenizer has a chat template, else completion. /reset, /quit, Ctrl-D."""
    output: pathlib.Path | None = None
    """JSONL file for the replies. Started again, a run that was cut off goes on where it stopped."""
    json: bool = False
    """Print the replies as JSON lines, and nothing else, to standard output."""
    decoding: Literal["speculative", "autoregressive", "compare"] | None = None
    """By default speculative, or what infer.tune found to be faster. compare: decode both ways in turn, check that the tokens are
    identical (float32: exit code 1 if not), print both speeds."""
    settings: str | None = None
    """File of settings that infer.tune wrote: the shape, and which embedded head, where no option of the search is given. By
    default ~/.cache/redrafter_jax/settings.json, if it is there; `none`: no file."""
    beam_width: int | None = None
    """Beams W; by default what infer.tune found, or else what suits the device, and on a CPU whether its cache has room for the
    target (infer/pair.py, default_shape)."""
    beam_length: int | None = None
    """Drafted tokens per beam L, as beam_width."""
    node_budget: int | None = None
    """Nodes that the target scores per pass, the root included; by default all that there can be, 1 + W * L, and a lookup's."""
    tree: Literal["search", "beams"] = "search"
    """search: everything the beam search kept; beams: the final beams alone, as in the paper."""
    draft_top_k: int = DRAFT_TOP_K
    """Cut each draft distribution to its k likeliest tokens (Apple's code: 50), or W if that is more; 0 is off."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 is off."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; 1 is off."""
    acceptance: Literal["coupled", "independent", "typical"] = "coupled"
    """coupled and independent give exactly the target's distribution; typical CHANGES THE DISTRIBUTION."""
    seed: int = 0
    """Prompt i, counted from 0, is sampled with seed + i. The same seed gives the same text."""
    max_new_tokens: int = 128
    """New tokens per prompt at most."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    batch_size: int = 1
    """Prompts that are decoded together."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of weights and cache; by default float32 on a CPU and bfloat16 elsewhere."""
    max_length: int | None = None
    """Tokens of prompt and reply together at most; by default the target's context."""
    cache_dir: pathlib.Path | None = None
    """Folder for compiled programs and nothing else, so that the next start compiles nothing; by default
    ~/.cache/redrafter_jax."""
    no_color: bool = False
    """Do not show accepted drafts in another colour (so does the environment variable NO_COLOR)."""
    mesh: tuple[int, int] | None = None
    """Devices over which a batch (D) and the models (M) are split; by default what the devices, their memory and the target's
    size suggest."""
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
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.acceptance)
    limits = Limits(options.max_new_tokens, options.max_length or 0)
    has_head = drafting.has_head(options.drafter)
    lookup = drafting.wanted_lookup(options.drafter, options.beside, options.lookup_length, options.lookup_match)
    lookup = None if options.decoding == "autoregressive" else lookup
    kind = options.decoding or "speculative"
    says_how = checks.chooses_search(options)
    return Task(
        Models(options.target, options.drafter if has_head else None, has_head, options.dtype, options.mesh),
        Decoding(kind, beams, lookup, sampling, limits, options.seed, options.batch_size, options.ignore_eos),
        Destination(options.output, options.json, options.no_color),
        Tuning() if says_how else Tuning(settings.source_of(options.settings), options.decoding is None),
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
    given = [] if options.interactive else prompts.read(options.prompt, options.prompts)
    if not given and not options.interactive:
        given = [_default_prompt(options)]
    from infer import programs  # JAX is imported here
    from infer.generate import session

    programs.use_cache(options.cache_dir)
    return session.converse(task_of(options)) if options.interactive else session.run(task_of(options), given)


def _default_prompt(options: Options) -> prompts.Prompt:
    if options.target is not None:
        raise BadInput("--prompt is missing: give --prompt, --prompts or standard input (only the embedded pair has a default)")
    return prompts.Prompt("the default prompt", "prompt", DEFAULT_PROMPT, is_default=True)


if __name__ == "__main__":
    sys.exit(main())
