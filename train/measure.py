"""`python -m train.measure`: a target and its heads on text that neither was trained on.

Tokens per step of every head, side by side on the same contexts; how well the target predicts the text, and how often
its greedy text ends in a loop, which flatters every head. Not here: the figures themselves (`figures.py`), speed.
"""

import dataclasses
import json
import pathlib
import sys

import tyro

from infer.benchmark.__main__ import beam
from infer.command import run_command
from redrafter_jax.errors import BadInput

PROMPT = 64  # tokens of a context (`figures.Prompts`)
NEW = 48  # a loop shows in the last 48 tokens of a reply
MOST_CONTEXTS = 100_000
COLUMNS = {
    "along_text": "along the text",
    "greedy": "generated, T = 0",
    "coupled": "T = 1 coupled",
    "independent": "T = 1 independent",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Tokens per step of draft heads on held-out text."""

    target: pathlib.Path
    """Folder or hub name (owner/model) of the target: config.json, safetensors, tokenizer."""
    drafter: tuple[pathlib.Path, ...]
    """Folders of the heads."""
    text: tuple[pathlib.Path, ...]
    """Text files, or folders of them, that nothing was trained on."""
    beams: tuple[str, ...] = ("1x3", "4x4", "8x5")
    """Beam shapes, W x L."""
    trees: tuple[str, ...] = ("search", "beams")
    """Trees: search, and beams (the paper's), whose drafts are cut to the 50 likeliest tokens as in Apple's code."""
    prompts: int = 64
    """Contexts that are continued by --new-tokens tokens."""
    contexts: int = 512
    """Contexts along the text, one round from each."""
    new_tokens: int = 128
    """Tokens that each prompt is continued by."""
    json: bool = False
    """Print JSON instead of a table."""


def main(options: Options) -> None:
    """Measures and prints.

    Raises:
      BadInput: whatever is wrong with the options, the target, the heads or the text.
    """
    shapes = [beam(name) for name in options.beams]
    check(options)
    import jax
    import numpy as np

    from redrafter_jax.devices.mesh import make_mesh
    from redrafter_jax.files import hub, weights
    from train import figures
    from train.data import datasets, examples, records

    jax.set_mesh(make_mesh())
    files = records.files(options.text)
    options = dataclasses.replace(options, target=hub.locate(options.target, "--target"))
    configs = weights.configs
    target_config = configs.target_config(configs.read_json(options.target, "--target"), "--target")
    room = target_config.max_position_embeddings - PROMPT
    if options.new_tokens > room:
        raise BadInput(
            f"--new-tokens should be at most {room}, which the target's context leaves after {PROMPT} tokens of a prompt, not"
            f" {options.new_tokens}"
        )
    for folder in options.drafter:
        configs.check_pair(target_config, configs.drafter_config(configs.read_json(folder, "--drafter"), "--drafter"), "--drafter")
    tokenizer = datasets.tokenizer(str(options.target))
    skips = examples.Skips(1.0)
    read = list(examples.known(examples.text(files, tokenizer, skips), target_config.vocab_size))
    if skips.skipped:
        raise BadInput(f"--text: {skips.reasons[0]}; it should be text, in UTF-8")
    stream = np.concatenate([example.tokens for example in read])
    if len(stream) < 1000:
        raise BadInput(f"--text: {len(stream)} tokens are too few to measure on; give 1,000 or more")
    size = sum(len(file.read_bytes()) for file in files)
    prompts, contexts = figures.Prompts(stream, options.prompts), figures.Prompts(stream, options.contexts)
    check_memory(options, target_config, max(length for _, length in shapes))
    target = weights.load_target(options.target, what="--target")
    result = {
        "device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        "tokens": len(stream),
        "bits_per_byte": figures.bits_per_byte(target, stream, size),
        "loops": figures.loop_share(figures.greedy_replies(target, prompts, options.new_tokens)),
        "heads": {},
    }
    say = (lambda _: None) if options.json else (lambda text: print(text, flush=True))  # a head's rows once they are there
    say(heading(result))
    for folder in options.drafter:
        head = weights.load_drafter(folder, what="--drafter")
        rows = figures.tau_table(target, head, prompts, contexts, shapes, options.trees, options.new_tokens)
        result["heads"][str(folder)] = rows
        say("\n".join(line(folder, row) for row in rows))
    if options.json:
        print(json.dumps(result, indent=1))


def check_memory(options: Options, target, length: int) -> None:
    """Raises BadInput for a target (a `TargetConfig`) that does not fit in memory with the cache of a batch of contexts."""
    from infer import pair
    from redrafter_jax.decode import prefill
    from redrafter_jax.devices import memory
    from train import figures

    slots = prefill.bucket(PROMPT, options.new_tokens, length).slots
    load = pair.load_of(target, None, "float32", figures.BATCH, slots)
    shorter = pair.load_of(target, None, "float32", figures.BATCH, prefill.bucket(PROMPT, NEW, length).slots)
    what = f"--target in float32, with the cache of {figures.BATCH} contexts,"
    memory.check(load, (1, 1), what, {f"--new-tokens {NEW}": shorter}, "a smaller target")


def heading(result: dict) -> str:
    """What stands above the rows of the heads, as Markdown."""
    return "\n".join(
        [
            f"{result['tokens']:,} tokens of text: {result['bits_per_byte']:.3f} bits per byte; {result['loops']:.0%} of the greedy"
            " continuations end in a loop.",
            "Tokens per step, the +1 counted:",
            "",
            "| head | W x L | tree | " + " | ".join(COLUMNS.values()) + " |",
            "|---|---|---|" + "---|" * len(COLUMNS),
        ]
    )


def line(head: pathlib.Path, row: dict) -> str:
    """A row of a head."""
    return f"| {head} | {row['shape'].replace('x', ' x ')} | {row['tree']} | {' | '.join(f'{row[key]:.3f}' for key in COLUMNS)} |"


def check(options: Options) -> None:
    """Raises BadInput for options out of range."""
    for name in ("prompts", "contexts"):
        if not 1 <= getattr(options, name) <= MOST_CONTEXTS:
            raise BadInput(f"--{name} should be from 1 to {MOST_CONTEXTS}, not {getattr(options, name)}")
    if options.new_tokens < NEW:
        raise BadInput(f"--new-tokens should be {NEW} or more, not {options.new_tokens}")
    for name in options.trees:
        if name not in ("search", "beams"):
            raise BadInput(f"--trees: {name!r} should be search or beams")
    if not options.drafter or not options.text:
        raise BadInput("give at least one --drafter and one --text")


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(
        lambda: main(tyro.cli(Options, args=arguments, prog="python -m train.measure", config=(tyro.conf.FlagCreatePairsOff,)))
    )


if __name__ == "__main__":
    sys.exit(command())
