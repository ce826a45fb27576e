"""`python -m train.calibrate`: fits how likely the target accepts a node to the scores of a head's beam search, and writes the head
with it.

A head that is written so fills a node budget (`infer.generate --node-budget`) by expected tokens. Its weights are the same. Not
here: the rounds (`rounds.py`), the fit (`fit.py`), what decoding does with it (`redrafter_jax/decode/propose/confidence.py`).
"""

import dataclasses
import json
import pathlib
import shutil
import sys
from typing import ClassVar

from infer import text_files
from infer.command import read_options, run_command
from infer.options import check_range
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims
from redrafter_jax.files.atomic import replacing

BATCH = 32  # places that are read together
MAX_PLACES = 100_000


@dataclasses.dataclass(frozen=True)
class Options:
    """Fit how likely the target accepts what a head drafts, so that a node budget is filled by expected tokens."""

    VALUES: ClassVar = {
        "target": "MODEL", "drafter": "HEAD", "text": "PATH ...", "output": "FOLDER", "glob": "PATTERN ...", "beam": "W L",
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

    from infer import notes
    from infer.evaluate.metrics import Prompts
    from infer.options import name_formats
    from redrafter_jax.decode.engine import Engine
    from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
    from redrafter_jax.devices.mesh import make_mesh
    from redrafter_jax.files import config, heads, hub, weights
    from redrafter_jax.model.confidence import Confidence
    from redrafter_jax.model.drafter import Drafter
    from train.calibrate import fit, rounds

    target_folder = hub.locate(options.target, "--target")
    shapes = config.target_config(config.read_json(target_folder, "--target"), "--target")
    config.check_pair(shapes, heads.read_head_config(options.drafter, "--drafter"), "--drafter")
    jax.set_mesh(make_mesh())
    stream = text_files.read_stream(chosen.files, target_folder, shapes.vocab_size)
    head = heads.load_head(options.drafter, what="--drafter")
    if not isinstance(head, Drafter):
        raise BadInput(
            f"--drafter: the tree of the heads in {options.drafter} is a constant, so no score fills it; give a recurrent head"
        )
    notes.say(target_folder, (options.drafter,), name_formats("float32", shapes.weight_format))
    head.config = dataclasses.replace(head.config, confidence=None)
    shape = Shape(*options.beam)
    shape.check_vocabulary(shapes.vocab_size, head.config.draft_vocab, head.config.candidates)
    engine = Engine(weights.load_target(target_folder, what="--target"), Recurrent(head, shape))
    contexts = Prompts(stream, options.places // BATCH * BATCH, rounds.CONTEXT_TOKENS).cut()
    tables = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        found = rounds.read(engine, contexts, temperature, BATCH)
        tables[name] = fit.fit(found, shape.length)
        print(f"{name}, tokens at each depth\n\n{report(found, tables[name])}\n", flush=True)
    write(options, config.fields_of_parts(dataclasses.replace(head.config, confidence=Confidence(**tables))))
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


def write(options: Options, fields: dict) -> None:
    """The folder of the head once more, with these fields in its config.json, which comes last."""
    options.output.mkdir(parents=True, exist_ok=True)
    for file in options.drafter.iterdir():
        if file.is_file() and file.name != "config.json":
            shutil.copyfile(file, options.output / file.name)
    before = json.loads((options.drafter / "config.json").read_text())
    with replacing(options.output / "config.json") as new:
        new.write_text(json.dumps(before | {name: value for name, value in fields.items() if value}, indent=2) + "\n")


def check(options: Options) -> None:
    """Raises BadInput for options out of range, and for a folder that holds something else."""
    check_range("places", options.places, BATCH, MAX_PLACES)
    for name, number in zip(("width", "length"), options.beam, strict=True):
        if not 1 <= number <= 64:
            raise BadInput(f"--beam: its {name} should be from 1 to 64, not {number}")
    if options.output.exists() and options.drafter.exists() and options.output.samefile(options.drafter):
        raise BadInput("--output is the folder of --drafter, which is kept; name another folder")
    claims.check_head(options.output, "--output")


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.calibrate", arguments)))


if __name__ == "__main__":
    sys.exit(command())
