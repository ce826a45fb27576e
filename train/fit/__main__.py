"""`python -m train.fit`: does a training step of a head fit on a TPU slice, and what would it cost, before the slice is rented.

The TPU compiler compiles the step for the slice on this machine; no weight is allocated and nothing runs. All times are
estimates. Not here: the points (`points.py`), the table (`report.py`), the compiler (`redrafter_jax/slices/compiler.py`).
"""

import dataclasses
import sys
from typing import Literal

from infer.command import run_command
from infer.fitting import SliceOptions, command_line, formats_of, head_line, left_out, line, printer, run_fit
from infer.options import check_each
from redrafter_jax.errors import BadInput

LIMITS = (
    "All of this is the compiler's estimate and arithmetic, not a measurement. The step takes the cycles that the compiler expects"
    " of its operations, one after the other, and no less than its floor: the operations that the mathematics needs at the chip's"
    " published peak. `send` is what a chip needs at least for its part of the operations between chips, at the published bandwidth"
    " of its links, one way. It is not in the step, since XLA lets much of it go on beside computing; nor is what the `links`"
    " operations wait for each other, nor reading data."
)


@dataclasses.dataclass(frozen=True)
class Options(SliceOptions):
    """Compile a training step of a head for a TPU slice that is not here, and say what fits and what it would cost."""

    batch: tuple[int, ...] = (8,)
    """Rows read at once (with --accumulate A, an update has A times as many)."""
    accumulate: int = 1
    """As in train.main: parts in which the rows of an update are read; above 1 the gradients' sum is held too."""
    row_length: int = 2048
    """Tokens in a row."""
    positions: int = 5
    """Drafted positions that are trained."""
    distill_weight: float = 1.0
    """Share of soft labels in the loss."""
    distance_weight: float | None = None
    """As in train.main; above 0: the updates in which total variation is in the loss, which are the larger ones. By default 0, and
    what --head best says."""
    labels: Literal["text", "greedy"] = "text"
    """As in train.main; greedy goes with --distill-weight 0."""
    shard_target: Literal["model", "data,model"] = "model"
    """As in train.main: data,model splits target, head and optimizer over all chips, and gathers weights as they are used."""
    train_target: Literal["none", "lora"] = "none"
    """As in train.main; lora: the updates in which the target is trained too, which are the larger ones."""
    lora_rank: int = 16
    """As in train.main, with --train-target lora."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Number format of the target, by default bfloat16; the head trains in float32."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: run_fit(Options, "train.fit", arguments, run))


def run(options: Options) -> dict:
    """Compiles, and prints unless JSON is wanted; returns the whole report."""
    from redrafter_jax.slices import topology as slices
    from train.fit import points
    from train.fit import report as tables
    from train.run import shapes

    recipe = recipe_of(options)
    dtype, weight_format = formats_of(options)
    target = slices.read_target_config(options.model, "--model", weight_format)
    recipe.check_against(target.weight_format)
    if recipe.row_length > target.max_position_embeddings:
        longest = target.max_position_embeddings
        raise BadInput(f"--row-length should be at most the target's context of {longest}, not {recipe.row_length}")
    slices.parse_topology(options.topology, "--topology")
    head = shapes.make_head_config(target, recipe)
    meshes, reasons = slices.choose_meshes(options.mesh, options.topology, target, head, "--mesh")
    slice_ = slices.find_slice(options.topology, "--topology")
    reasons += slices.refuse_batches(options.batch, meshes, "--batch").values()
    subject = points.StepSubject(slice_, target, recipe, dtype, options.shard_target == "data,model")
    command, chips = command_line("train.fit"), len(slice_.devices)
    report = {"command": command, "chips": chips, "left_out": reasons, "rows": [], "limits": LIMITS}
    say, above = printer(options), tables.heading(subject, options.model, options.topology)
    say("\n".join([above, *left_out(reasons), head_line(tables.COLUMNS)]))

    def row(mesh: tuple[int, int], batch: int, whole: bool) -> dict:
        found = points.row(subject, mesh, batch, whole)
        say(line(tables.cells_of(found), tables.COLUMNS))
        return found

    for data, model in meshes:
        report["rows"] += [row((data, model), batch, options.whole) for batch in options.batch if batch % data == 0]
    advice = points.find_best(report["rows"], lambda found: row(found["mesh"], found["batch"], whole=True))
    report["advice"], report["refused"] = advice
    say(tables.advised(*advice, options.shard_target))
    say(LIMITS)
    return report


def recipe_of(options: Options):
    """The recipe of `train.main` with these options."""
    from train.run.recipe import Recipe, named

    check_each("batch", options.batch, 1, 65536)
    if options.accumulate < 1:
        raise BadInput(f"--accumulate should be 1 or more, not {options.accumulate}")
    recipe = Recipe(
        method=options.method, blocks=options.blocks, head=options.kind, head_vocab=options.head_vocab, bigram=options.bigram,
        gated=options.gated, depths=options.inner_layers, positions=options.positions, labels=options.labels,
        distill_weight=options.distill_weight, row_length=options.row_length,
        batch=options.accumulate * max(options.batch), accumulate=options.accumulate,
        train_target=options.train_target, lora_rank=options.lora_rank,
    )  # fmt: skip
    recipe = dataclasses.replace(named(recipe, options.head), depths=options.inner_layers)
    if options.distance_weight is not None:
        recipe = dataclasses.replace(recipe, distance_weight=options.distance_weight)
    recipe.check()
    return recipe


if __name__ == "__main__":
    sys.exit(main())
