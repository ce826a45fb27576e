"""`python -m infer.evaluate`: ways to draft, side by side on the same target and suites of prompts; and heads along held-out text.

Two reports: methods x suites (`contest.py`, `figures.py`), and heads along text that nothing was trained on (`held_out.py`). Not
here: what a method (`methods.py`) and a suite (`suites.py`) are, checks (`checks.py`). JAX is imported only once the options are
known to be good.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Annotated, ClassVar, Literal

import tyro

from infer.command import read_options, run_command
from infer.evaluate import checks, held_out
from infer.options import Weights


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare ways to draft (methods) on suites of prompts: tokens per step, speed, acceptance by position, identical tokens.
    Without options: the embedded pair on its own suite. With --drafter: heads along held-out text."""

    GROUPS: ClassVar = {
        "models": "target",
        "methods_and_suites": "method",
        "decoding": "max_new_tokens",
        "report": "json",
        "along_held_out_text": "text",
    }
    VALUES: ClassVar = {
        "target": "MODEL", "lora": "FOLDER", "method": "METHOD", "suite": "FILE ...", "categories": "NAME ...", "limit": "N",
        "temperature": "T ...",
        "mesh": "D M", "output": "FOLDER", "cache_dir": "FOLDER",
        "drafter": "HEAD ...", "text": "PATH ...", "glob": "PATTERN ...", "beams": "WxL ...",
        "chat_template": "FILE", "chat_template_kwargs": "JSON",
    }  # fmt: skip
    EXAMPLES: ClassVar = (
        "python -m infer.evaluate",
        "python -m infer.evaluate --method recurrent:embedded:8x5 --method lookup:1x8 --limit 2",
        "python -m infer.evaluate --target MODEL --method medusa:HEADS:64 --suite spec_bench.jsonl",
        "python -m infer.evaluate --target MODEL --drafter HEAD --text docs --glob '*.md' --beams 2x2",
    )

    target: str | None = None
    """Folder or hub name (owner/model) of the target: config.json, safetensors, tokenizer; the embedded one if not given."""
    lora: str | None = None
    """Folder or hub name of a low-rank adapter of the target in PEFT's format, which is merged into it."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of weights and cache; by default float32 on a CPU and bfloat16 elsewhere. Along held-out text float32."""
    weights: Weights | None = None
    """How the matrices of the target's layers are stored: int8 or fp8 (eight bits and a scale per output channel, made as they are
    read), or as --dtype; by default as --dtype, or as a quantised checkpoint has them."""
    mesh: tuple[int, int] | None = None
    """Devices over which a batch (D) and the models (M) are split; by default what suits the target and the first drafter."""
    method: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """May be repeated: KIND[:FOLDER][:SHAPE][:TREE][@RULE][+lookup:WxL], such as recurrent:HEAD:8x5, recurrent:HEAD:4x4/17:beams
    (at most 17 nodes, the paper's tree), medusa:HEADS:64 (nodes), small:FOLDER:1x4@rejection, lookup:1x8,
    recurrent:HEAD:4x4+lookup:1x6. HEAD embedded: the embedded pair's. TREE: search, beams or chains. RULE: coupled, independent,
    rejection or typical. Plain decoding is always one of them. By default lookup, and where the target is the embedded one all
    that drafts for it."""
    suite: tuple[str, ...] = ("embedded",)
    """JSONL files of prompts with a `category`, as for infer.generate --prompts (Spec-Bench, MT-bench, SPEED-bench: `turns`), or
    embedded: starts of held-out Python in five categories."""
    categories: tuple[str, ...] = ()
    """Only these categories of the suites."""
    limit: int | None = None
    """Conversations of each category at most, the first of the file; by default all."""
    chat_template: str | None = None
    """Jinja file that messages and turns are written with, or `vicuna`; by default the tokenizer's own, or Vicuna's."""
    chat_template_kwargs: str | None = None
    """JSON object of further variables that the chat template reads, such as '{"enable_thinking": false}'."""
    max_new_tokens: int = 128
    """New tokens per reply at most."""
    temperature: tuple[float, ...] = (0.0,)
    """Temperatures; 0 is greedy."""
    seed: int = 0
    """Conversation i of a suite, counted from 0, is sampled with seed + i."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    batch_size: int = 1
    """Conversations of one category that are decoded together."""
    cache_dir: pathlib.Path | None = None
    """Folder for compiled programs, as of infer.generate, so that the next run compiles nothing; by default
    ~/.cache/redrafter_jax."""
    json: bool = False
    """Print JSON instead of tables; of methods it has a line for each reply, with vLLM's metrics."""
    output: pathlib.Path | None = None
    """Folder for results.json, report.md and plots."""
    text: tuple[pathlib.Path, ...] = ()
    """Text files, or folders of them, that nothing was trained on; binary files in folders are passed over. Beside --method: tokens
    per step along this text too."""
    drafter: tuple[pathlib.Path, ...] = ()
    """Instead of methods: folders of heads, whose tokens per step along --text and behind it are tabled."""
    glob: tuple[str, ...] = ()
    """Which files of folders are read, such as '*.md' '*.py'; by default all."""
    contexts: int = 512
    """Contexts along the text, one round from each."""
    beams: tuple[str, ...] = ("1x3", "4x4", "8x5")
    """With --drafter: beam shapes, W x L."""
    trees: tuple[str, ...] = ("search", "beams")
    """With --drafter: search, and beams (the paper's), whose drafts are cut to the 50 likeliest tokens as in Apple's code."""
    prompts: int = 64
    """With --drafter: contexts that are continued by --new-tokens tokens."""
    new_tokens: int = 128
    """With --drafter: tokens that each prompt is continued by."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: _main(read_options(Options, "infer.evaluate", arguments)))


def _main(options: Options) -> int:
    checks.together(options)
    if options.drafter:
        held_out.run(options)
        return 0
    asked = checks.read(options)
    from infer import programs  # JAX is imported here
    from infer.evaluate import session, tables

    programs.use_cache(options.cache_dir)
    result = session.run(options, asked)
    if options.output is not None:
        tables.write(result, options.output)
    print(json.dumps(result, indent=1) if options.json else tables.markdown(result))
    is_wrong = result["dtype"] == "float32"
    for sentence in result["differences"]:
        print(f"{'error' if is_wrong else 'note'}: {sentence}", file=sys.stderr)
    return int(is_wrong and bool(result["differences"]))


if __name__ == "__main__":
    sys.exit(main())
