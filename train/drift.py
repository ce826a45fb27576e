"""`python -m train.drift`: how far a target has moved from another, such as a merged one from the original.

KL in nats per token, bits per byte of both, and how often both find the same token the likeliest, on text. Not here: the figures
(`redrafter_jax/drift.py`), what speed was gained (`infer.evaluate`, `infer.benchmark`).
"""

import dataclasses
import json
import math
import pathlib
import sys
from typing import ClassVar, Literal

from infer import text_files
from infer.command import read_options, run_command
from infer.options import Weights, check_range, weights_beside
from redrafter_jax.errors import BadInput

MAX_ROWS = 100_000


@dataclasses.dataclass(frozen=True)
class Options:
    """How far a target has moved from another, on text."""

    VALUES: ClassVar = {"target": "MODEL", "against": "MODEL", "text": "PATH ...", "glob": "PATTERN ..."}
    EXAMPLES: ClassVar = ("python -m train.drift --target joint-run/merged --against MODEL --text held-out.txt",)

    target: pathlib.Path
    """Folder or hub name (owner/model) of the target that has moved."""
    against: pathlib.Path
    """Folder or hub name of the one it is compared with."""
    text: tuple[pathlib.Path, ...]
    """Text files, or folders of them, that nothing was trained on; binary files in folders are passed over."""
    glob: tuple[str, ...] = ()
    """Which files of folders are read, such as '*.md' '*.py'; by default all."""
    rows: int = 256
    """Rows of text, spread evenly through it."""
    row_length: int = 256
    """Tokens in a row."""
    batch: int = 4
    """Rows that are read at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of both targets."""
    weights: Weights | None = None
    """int8 or fp8: the matrices of --target's layers are stored so, and those of --against are not. The same folder for both says
    what quantising costs."""
    json: bool = False
    """Print JSON instead of a table."""


def main(options: Options) -> None:
    """Measures, and prints.

    Raises:
      BadInput: an option is out of range, or the two targets cannot be compared.
    """
    check(options)
    chosen = text_files.texts(options.text, options.glob)
    if chosen.binary:
        print(chosen.note(), file=sys.stderr)
    import jax
    import numpy as np

    from redrafter_jax.devices import memory, placement
    from redrafter_jax.devices.mesh import make_mesh
    from redrafter_jax.files import config, hub, weights

    jax.set_mesh(make_mesh())
    weight_format = weights_beside(options.dtype, options.weights)[1]
    places = {"--target": hub.locate(options.target, "--target"), "--against": hub.locate(options.against, "--against")}
    wanted = {"--target": weight_format, "--against": None}
    shapes = {what: config.target_config(config.read_json(place, what), what, wanted[what]) for what, place in places.items()}
    context = min(each.max_position_embeddings for each in shapes.values())
    if options.row_length > context:
        raise BadInput(f"--row-length should be at most the targets' context of {context}, not {options.row_length}")
    ours, theirs = (text_files.read_stream(chosen.files, places[what], shapes[what].vocab_size) for what in places)
    if shapes["--target"].vocab_size != shapes["--against"].vocab_size or not np.array_equal(ours, theirs):
        raise BadInput(f"--against: {options.against} has another vocabulary or tokenizer than --target {options.target}")
    size = sum(placement.bytes_of_target(each, options.dtype) for each in shapes.values())
    load = placement.Footprint(shapes["--target"], None, options.batch, "--batch", size)
    narrow = {"--dtype bfloat16": dataclasses.replace(load, size=size / 2)} if options.dtype == "float32" else {}
    memory.check(load, (1, 1), "--target and --against together", narrow, "smaller targets")
    target, against = (weights.load_target(place, options.dtype, what, weights=wanted[what]) for what, place in places.items())
    result = compare(target, against, ours, sum(len(file.read_bytes()) for file in chosen.files), options)
    print(json.dumps(result, indent=1) if options.json else table(result, options))


def check(options: Options) -> None:
    """Raises BadInput for options out of range."""
    for name, low, high in (("rows", 1, MAX_ROWS), ("row_length", 2, 1 << 20), ("batch", 1, MAX_ROWS)):
        check_range(name, getattr(options, name), low, high)
    if not options.text:
        raise BadInput("give at least one --text")


def compare(target, against, stream, bytes_: int, options: Options) -> dict:
    """The figures of two targets on a stream of token ids that stands for so many bytes."""
    import jax
    import numpy as np

    from redrafter_jax import drift
    from train.data import rows
    from train.run import evaluation, step

    if len(stream) < options.row_length:
        raise BadInput(f"--row-length {options.row_length} is more than the {len(stream)} tokens of --text")

    @jax.jit
    def measure(target, against, batch: rows.Batch) -> drift.Drift:
        hidden = [step.read(model, batch).hidden for model in (target, against)]
        next_BT = drift.labels_of_next_tokens(batch.labels, batch.segments)
        return drift.measure(target, hidden[0], against, hidden[1], next_BT)

    starts = np.linspace(0, len(stream) - options.row_length, options.rows).astype(int)
    cut = np.stack([stream[start : start + options.row_length] for start in starts])
    parts = [cut[at : at + options.batch] for at in range(0, options.rows, options.batch)]
    found = evaluation.join_drifts([measure(target, against, rows.put_unpacked(part)) for part in parts])
    bits = len(stream) / bytes_ / math.log(2)
    return {
        "target": str(options.target),
        "weights": options.weights,
        "against": str(options.against),
        "device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        "tokens": int(cut.size - len(cut)),
        "kl": found["kl"],
        "agreement": found["agreement"],
        "bits_per_byte": found["text"] * bits,
        "against_bits_per_byte": found["original_text"] * bits,
    }


def table(result: dict, options: Options) -> str:
    """The figures as lines of text."""
    name = f"{options.target}{f' in {options.weights}' if options.weights else ''}"
    lines = {
        "KL, nats per token": f"{result['kl']:.4f}",
        "same likeliest token": f"{result['agreement']:.2%}",
        f"bits per byte, {name}": f"{result['bits_per_byte']:.4f}",
        f"bits per byte, {options.against}": f"{result['against_bits_per_byte']:.4f}",
    }
    width = max(map(len, lines))
    note = f"{name} against {result['against']}, {result['tokens']:,} tokens, {options.dtype}, {result['device']}"
    return "\n".join([note, *(f"{name:<{width}}  {value:>8}" for name, value in lines.items())])


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.drift", arguments)))


if __name__ == "__main__":
    sys.exit(command())
