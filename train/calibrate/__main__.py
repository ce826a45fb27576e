"""`python -m train.calibrate`: fits how likely the target accepts a node to the scores of a head's beam search, and writes the head
with it.

A head that is written so fills a node budget (`infer.generate --node-budget`) by expected tokens. Its weights are the same. Not
here: the rounds (`rounds.py`), the fit (`fit.py`), what decoding does with it (`redrafter_jax/decode/propose/confidence.py`).
"""

import dataclasses
import pathlib
import sys
from typing import ClassVar, Literal

from infer import text_files
from infer.command import read_options, run_command
from infer.options import Weights, check_range
from redrafter_jax.errors import BadInput
from train import remade

COMMAND = "train.calibrate"
BATCH = 32  # places that are read together
MAX_PLACES = 100_000


@dataclasses.dataclass(frozen=True)
class Options:
    """Fit how likely the target accepts what a head drafts, so that a node budget is filled by expected tokens."""

    VALUES: ClassVar = {
        "target": "MODEL", "drafter": "HEAD", "text": "PATH ...", "output": "FOLDER", "glob": "PATTERN ...", "beam": "W L",
        "lora": "FOLDER", "mesh": "D M",
    }  # fmt: skip
    EXAMPLES: ClassVar = (
        "python -m train.calibrate --target MODEL --drafter head-run/head --text docs --output head",
        "python -m infer.generate --target MODEL --drafter head --beam-width 8 --node-budget 17",
    )

    target: pathlib.Path
    """Folder or hub name (owner/model) of the target."""
    drafter: pathlib.Path
    """Folder of the head, a recurrent one."""
    text: tuple[pathlib.Path, ...]
    """Text files, or folders of them, such as the head was trained on; binary files in folders are passed over."""
    output: pathlib.Path
    """Folder for the head with the fit."""
    glob: tuple[str, ...] = ()
    """Which files of folders are read, such as '*.md' '*.py'; by default all."""
    places: int = 2048
    """Places of the text, spread evenly through it, from each of which a round is drafted, at T = 0 and at T = 1."""
    beam: tuple[int, int] = (8, 5)
    """Width and length of the search. Deeper nodes are decoded with the fit of the last depth."""
    lora: str | None = None
    """The adapter of the target that will be decoded, if it has one: a folder or hub name, in PEFT's format."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of weights and cache; by default float32 on a CPU and bfloat16 elsewhere."""
    weights: Weights | None = None
    """How the matrices of the target's layers will be stored: int8 or fp8, or as --dtype; by default as --dtype, or as a quantised
    checkpoint has them."""
    mesh: tuple[int, int] | None = None
    """Devices over which places (D) and the models (M) are split; by default what suits them."""


def main(options: Options) -> None:
    """Fits, writes, and prints the fit with what it expects and what was accepted.

    Raises:
      BadInput: an option is out of range, the head is not recurrent or not the target's, or there is too little text.
    """
    check(options)
    chosen = text_files.texts(options.text, options.glob)
    if chosen.binary:
        print(chosen.note(), file=sys.stderr)
    import jax

    from infer import notes, pair
    from infer.evaluate.metrics import Prompts
    from redrafter_jax.decode.engine import Engine
    from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
    from redrafter_jax.devices.mesh import make_mesh
    from redrafter_jax.files import heads, weights
    from redrafter_jax.model.confidence import Confidence
    from redrafter_jax.model.drafter import DrafterConfig
    from train.calibrate import fit, rounds

    heads.read_head_config(options.drafter, "--drafter")
    dtype, weight_format = pair.number_formats(options.dtype, options.weights)
    found = pair.find(str(options.target), str(options.drafter), True, dtype, weight_format, options.lora)
    if not isinstance(found.drafter_config, DrafterConfig):
        raise BadInput(
            f"--drafter: the tree of the heads in {options.drafter} is a constant, so no score fills it; give a recurrent head"
        )
    shape = Shape(*options.beam)
    shape.check_vocabulary(found.target_config.vocab_size, found.drafter_config.draft_vocab, found.drafter_config.candidates)
    resolved = pair.plan(found, options.mesh, BATCH, shape.length + 1, shape.length, "--beam")
    stream = text_files.read_stream(chosen.files, found.target, found.target_config.vocab_size)
    notes.say(found.target, (found.drafter,), resolved.numbers, resolved.adapter)
    jax.set_mesh(make_mesh(*resolved.mesh))
    head = heads.load_head(found.drafter, dtype, "--drafter")
    head.config = dataclasses.replace(head.config, confidence=None)
    target = weights.load_target(found.target, dtype, "--target", adapter=resolved.adapter, weights=weight_format)
    engine = Engine(target, Recurrent(head, shape))
    contexts = Prompts(stream, options.places // BATCH * BATCH, rounds.CONTEXT_TOKENS).cut()
    tables = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        found = rounds.read(engine, contexts, temperature, BATCH)
        tables[name] = fit.fit(found, shape.length)
        print(f"{name}, tokens at each depth\n\n{report(found, tables[name])}\n", flush=True)
    kept = remade.load(options.drafter)
    kept.config = dataclasses.replace(kept.config, confidence=Confidence(**tables))
    remade.write(kept, COMMAND, "a fit of acceptance to its scores", options.target, options.drafter, options.output)
    print(f"the head with the fit is in {options.output}")


def report(found: dict, table: tuple[tuple[float, float], ...]) -> str:
    """For each depth the fit, and the tokens that the scores and the fit expect and the target accepted, as Markdown."""
    import numpy as np

    from train.calibrate import fit

    fitted, lines = fit.apply(found, table), ["| depth | slope | bias | scores | fit | accepted |", "|---|---|---|---|---|---|"]
    for depth, (slope, bias) in enumerate(table, 1):
        here = found["valid"] & (found["depth"] == depth)
        sums = (np.exp(found["score"][here]).sum(), np.exp(fitted[here]).sum(), found["accepted"][here].sum())
        cells = (slope, bias, *(each / len(here) for each in sums))
        lines.append(f"| {depth} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    return "\n".join(lines)


def check(options: Options) -> None:
    """Raises BadInput for options out of range, and for a folder that holds something else."""
    check_range("places", options.places, BATCH, MAX_PLACES)
    for name, number in zip(("width", "length"), options.beam, strict=True):
        if not 1 <= number <= 64:
            raise BadInput(f"--beam: its {name} should be from 1 to 64, not {number}")
    remade.check(COMMAND, options.drafter, options.output)


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.calibrate", arguments)))


if __name__ == "__main__":
    sys.exit(command())
