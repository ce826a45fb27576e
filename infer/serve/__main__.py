"""`python -m infer.serve`: a target and its draft head behind OpenAI's HTTP interface. The options.

Not here: their checks (`checks.py`), loading and running (`session.py`), the application (`routes.py`). JAX is imported only once
the options are known to be good.
"""

import dataclasses
import pathlib
import sys
from typing import Annotated, ClassVar, Literal

import tyro

from infer import distributed
from infer.command import read_options, run_command
from infer.distributed import Group
from infer.options import Weights
from infer.serve import checks
from redrafter_jax.decode.request import DRAFT_TOP_K


@dataclasses.dataclass(frozen=True)
class Options:
    """Serve a target and its draft head over HTTP, with OpenAI's interface. Without options: the embedded pair, and a chat page."""

    GROUPS: ClassVar = {
        "models": "target",
        "drafting": "decoding",
        "requests": "batch_size",
        "http": "host",
        "machine": "dtype",
    }
    VALUES: ClassVar = {
        "target": "MODEL", "lora": "FOLDER", "drafter": "HEAD", "chat_template": "FILE", "model_name": "NAME",
        "chat_template_kwargs": "JSON",
        "beam_width": "W", "beam_length": "L", "chunk_tokens": "N",
        "node_budget": "N", "draft_top_k": "K", "logprobs": "K", "mesh": "D M", "cache_dir": "FOLDER", "api_key_file": "FILE",
        "cors_origin": "ORIGIN", "settings": "FILE",
    }  # fmt: skip
    EXAMPLES: ClassVar = (
        "python -m infer.serve",
        "python -m infer.serve --port 8000 --batch-size 16",
        "python -m infer.serve --target MODEL --drafter HEAD --max-length 4096 --logprobs 0",
        "python -m infer.serve --target MODEL --drafter HEAD --host 0.0.0.0 --api-key-file keys",
        "python -m infer.serve --target MODEL --drafter HEAD --distributed",
    )

    target: str | None = None
    """Folder or hub name (owner/model) of a target with a tokenizer; the embedded one if not given."""
    lora: str | None = None
    """Folder or hub name of a low-rank adapter of the target in PEFT's format, which is merged into it; the head stays as it is."""
    drafter: str | None = None
    """Folder or hub name of what drafts: a head, Medusa's heads or a small model; one of the embedded heads if not given. `lookup`:
    what followed the last tokens where they stood before."""
    beside: Annotated[Literal["lookup"] | None, tyro.conf.arg(name="with")] = None
    """lookup: draft with the head and with a lookup at once."""
    chat_template: str | None = None
    """Jinja file that messages are written with, or `vicuna`; by default the tokenizer's own, and Vicuna's where it has none."""
    chat_template_kwargs: str | None = None
    """JSON object of further variables that the chat template reads, such as '{"enable_thinking": false}' of Qwen3; a request's own
    `chat_template_kwargs` go before them."""
    model_name: str | None = None
    """How requests call the model; by default the name that --target was given, or `embedded`."""
    decoding: Literal["speculative", "autoregressive"] | None = None
    """By default speculative, or what infer.tune found to be faster."""
    settings: str | None = None
    """File of settings that infer.tune wrote; by default ~/.config/redrafter_jax/settings.json, if it is there; `none`: no file."""
    beam_width: int | None = None
    """Beams W; by default as in infer.generate."""
    beam_length: int | None = None
    """Drafted tokens per beam L; by default as in infer.generate."""
    node_budget: int | None = None
    """Nodes that the target scores per pass; by default all that there can be."""
    draft_top_k: int = DRAFT_TOP_K
    """Cut each draft distribution to its k likeliest tokens; 0 is off."""
    batch_size: int = 8
    """Rows R: requests that are decoded together. As one ends, the next takes its row."""
    max_length: int | None = None
    """Tokens of prompt and reply together at most, which each row's cache has room for; by default the target's context, or 8192
    where that is longer."""
    max_prompt_tokens: int | None = None
    """Tokens of a prompt at most; by default all that --max-length leaves."""
    max_tokens_limit: int | None = None
    """New tokens that a request may ask for at most; by default all that --max-length leaves."""
    logprobs: int = 20
    """The likeliest tokens whose log-probabilities a request may ask for. Rounds are slower only while one that asks runs; 0 leaves
    them out, which saves memory and compiling."""
    prompt_logprobs: bool = False
    """Let completions with `echo` and `logprobs` have those of the prompt's tokens too, as lm-eval asks for. The programs that read
    prompts are compiled twice for it; other rows wait while such a prompt is read, as a whole."""
    no_penalties: bool = False
    """Leave out penalties and min_tokens, which saves compiling. Rounds are slower only while a request that has some runs."""
    no_prefix_reuse: bool = False
    """Read every prompt from its first token on. By default, what a prompt begins with is taken from a row that has it: the
    earlier turns of a conversation with their replies, a system prompt."""
    chunk_tokens: int | None = None
    """Tokens of a prompt that a pass reads, between which the running rows go on, and that are reused together; by default 128 on
    a CPU and 256 elsewhere."""
    look_ms: float = 50.0
    """Milliseconds between two looks at the batch: what a stream, or a request that comes while a row is free, waits for."""
    max_queue: int = 64
    """Requests that may wait for a row. The next one gets the status 429 and Retry-After."""
    max_seconds: float = 600.0
    """Seconds after which a request is given up with the status 504."""
    max_request_bytes: int = 4 << 20
    """Bytes of a request's body at most."""
    request_metrics: bool = False
    """Put vLLM's block `metrics.speculative_decoding` into every response; a request can ask for it with `return_metrics`."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 or :: is every network of this machine: give keys then."""
    port: int = 8000
    """Port to listen on; 0: any that is free, which is printed."""
    api_key_file: pathlib.Path | None = None
    """File of API keys, one on each line, of which a request to /v1 needs one; by default the key in the environment variable
    REDRAFTER_API_KEY, or none."""
    cors_origin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """An origin, such as http://localhost:3000, whose pages may call the server; may be repeated. By default none."""
    drain_seconds: float = 30.0
    """Seconds that requests have to end after SIGTERM or Ctrl-C."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of weights and cache; by default float32 on a CPU and bfloat16 elsewhere."""
    weights: Weights | None = None
    """How the matrices of the target's layers are stored: int8 or fp8, or as --dtype; by default as --dtype, or as a quantised
    checkpoint has them."""
    mesh: tuple[int, int] | None = None
    """Devices over which rows (D) and the models (M) are split, of all processes; by default what suits them."""
    cache_dir: pathlib.Path | None = None
    """Folder for compiled programs, as in infer.generate, so that the next start compiles nothing."""
    group: tyro.conf.OmitArgPrefixes[Group] = Group()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = read_options(Options, "infer.serve", arguments)
    checks.alone(options)
    checks.packages()
    keys = checks.read_keys(options.api_key_file)
    listens = options.group.process_id in (None, 0)  # the other processes follow the first
    if listens and not keys and not checks.is_of_this_machine(options.host):
        print(f"note: --host {options.host} is reached from other machines, and no API key is needed", file=sys.stderr)

    def serve() -> int:
        from infer.serve import session  # JAX is imported here

        return session.run(options, keys)

    return distributed.run(options.group, serve)


if __name__ == "__main__":
    sys.exit(main())
