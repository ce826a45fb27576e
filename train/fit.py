"""`python -m train.fit`: does a training step of a head fit on a TPU slice, and what would it cost, before the slice is rented.

The TPU compiler compiles the step for the slice on this machine; no weight is allocated and nothing runs. All times are
estimates. Not here: the step (`step.py`), the compiler (`redrafter_jax/slices/compiler.py`).
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Literal

from infer.command import read_options, run_command
from redrafter_jax.errors import BadInput

AGAIN = 3  # times that the next best is tried, when one has been found not to fit
LIMITS = (
    "All of this is the compiler's estimate and arithmetic, not a measurement. The step takes the cycles that the compiler expects"
    " of its operations, one after the other, and no less than its floor: the operations that the mathematics needs at the chip's"
    " published peak. `send` is what a chip needs at least for its part of the operations between chips, at the published bandwidth"
    " of its links, one way. It is not in the step, since XLA lets much of it go on beside computing; nor is what the `links`"
    " operations wait for each other, nor reading data."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile a training step of a head for a TPU slice that is not here, and say what fits and what it would cost."""

    model: str
    """A known shape (llama-7b, vicuna-7b, llama-13b, llama-33b, llama-3.1-8b, llama-3.1-70b) or a folder with config.json."""
    topology: str = "v5e:2x4"
    """The slice: a chip and a grid, such as v5e:2x2, v5e:2x4, v5e:4x4, v6e:2x4, v5p:2x2x1, v5p:2x2x2."""
    mesh: tuple[int, int] | None = None
    """Devices over which the batch (D) and the target (M) are split; by default every mesh of all chips is tried."""
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
    head: Literal["full", "slim"] = "full"
    """full: the paper's head; slim: exits into the target's own LM head."""
    head_vocab: int = 0
    """Tokens that the head can draft; 0: all of the target's."""
    labels: Literal["text", "greedy"] = "text"
    """As in train.main; greedy goes with --distill-weight 0."""
    shard_target: Literal["model", "data,model"] = "model"
    """As in train.main: data,model splits target, head and optimizer over all chips, and gathers weights as they are used."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the target; the head trains in float32."""
    whole: bool = False
    """Compile all layers at every point. Otherwise 2 and 4 layers are, the rest follows from their difference (marked ~), and
    only what is recommended is compiled whole."""
    json: bool = False
    """Print the report as JSON instead."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> None:
    options = read_options(Options, "train.fit", arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs, and a TPU that is here stays free
    report = run(options)
    if options.json:
        print(json.dumps(report, indent=1))


def run(options: Options) -> dict:
    """Compiles, and prints unless JSON is wanted; returns the whole report."""
    from redrafter_jax.slices import topology as slices
    from train.run import loop

    recipe = _recipe(options)
    target = slices.target_config(options.model)
    if recipe.row_length > target.max_position_embeddings:
        longest = target.max_position_embeddings
        raise BadInput(f"--row-length should be at most the target's context of {longest}, not {recipe.row_length}")
    meshes, left_out = slices.meshes(options.mesh, options.topology, target, loop.head_config(target, recipe))
    slice_ = slices.slice_of(options.topology)
    left_out += slices.untaken(options.batch, meshes).values()
    chips, say = len(slice_.devices), (lambda _: None) if options.json else (lambda text: print(text, flush=True))
    command = " ".join(["python -m train.fit", *sys.argv[1:]])
    report = {"command": command, "chips": chips, "left_out": left_out, "rows": [], "limits": LIMITS}
    say(
        f"{options.model}, {_head(options)} in float32, target in {options.dtype}, rows of {options.row_length} tokens,"
        f" {options.positions} positions, on {chips} chips of {slice_.chip.name} ({options.topology},"
        f" {slice_.chip.usable_bytes / (1 << 30):.2f} GiB usable each)\nAll figures but tokens/s are of one chip."
    )
    for reason in left_out:
        say(f"left out: {reason}")
    say(_line([name for name, _ in COLUMNS]))
    point = functools.partial(row, slice_, target, options, recipe)
    for data, model in meshes:
        for batch in (batch for batch in options.batch if batch % data == 0):
            report["rows"].append(point((data, model), batch, options.whole))
            say(_line(_cells(report["rows"][-1])))

    def of_all_layers(found: dict) -> dict:
        whole = point(found["mesh"], found["batch"], whole=True)
        say(_line(_cells(whole)))
        return whole

    report["advice"], report["refused"] = settle(report["rows"], of_all_layers)
    say(_advice(report["advice"], report["refused"], options.shard_target))
    say(LIMITS)
    return report


def settle(rows: list[dict], of_all_layers: Callable[[dict], dict]) -> tuple[dict | None, list[dict]]:
    """The row of most tokens per second that fits with all layers, and those that seemed to be it but do not.

    Args:
      of_all_layers: gives the row with all layers compiled; it is called for at most 1 + `AGAIN` of them.
    """
    refused = []
    fitting = sorted((row for row in rows if row["fits"]), key=lambda row: -row["tokens_per_second"])
    for found in fitting[: 1 + AGAIN]:
        whole = found if found["whole"] else of_all_layers(found)
        if whole["fits"]:
            return whole, refused
        refused.append(whole)
    return None, refused


def row(slice_, target, options: Options, recipe, mesh, batch: int, whole: bool) -> dict:
    """One mesh and batch as a row of the table; bytes and operations of one chip, times in seconds."""
    from redrafter_jax.slices import compiler

    facts = {"mesh": list(mesh), "batch": batch}

    def of_depth(layers: int):
        return compile_step(slice_, dataclasses.replace(target, num_hidden_layers=layers), options, recipe, mesh, batch)

    try:
        program = compiler.at_depth(of_depth, target.num_hidden_layers, whole)
    except compiler.DoesNotFit as refused:
        return facts | {"held": refused.bytes, "fits": False, "whole": refused.bytes is not None}
    except compiler.CompilerFailed as failed:
        return facts | {"held": None, "fits": False, "whole": whole, "failed": str(failed)}
    flops = _flops(slice_, target, options, recipe, mesh, batch)
    seconds = max(program.seconds(slice_.chip), flops / slice_.chip.peak)
    return facts | {
        "held": program.held,
        "fits": compiler.fits(program.held, slice_.chip),
        "whole": program.whole,
        "memory": {k: getattr(program, k) for k in ("arguments", "outputs", "aliased", "temporaries", "code")},
        "flops_by_hand": flops,
        "floor_seconds": flops / slice_.chip.peak,
        "compiler_seconds": program.seconds(slice_.chip),
        "step_seconds": seconds,
        "tokens_per_second": batch * options.row_length / seconds,
        "peak_share": flops / slice_.chip.peak / seconds,
        "links": program.links,
        "link_bytes": program.link_bytes,
        "link_sent": program.link_sent,
        "send_seconds": slice_.chip.transfer(program.link_sent, mesh),
        "compile_seconds": program.compile_seconds,
    }


def compile_step(slice_, target, options: Options, recipe, mesh, batch: int):
    """`step.step` as the run compiles it, for a target of these shapes.

    Raises:
      DoesNotFit: the compiler refused it for its memory.
    """
    import jax

    from redrafter_jax.loss import LossConfig
    from redrafter_jax.slices import compiler
    from train.run import loop, step

    with jax.set_mesh(slice_.mesh(*mesh)):
        frozen, state, rows = _arrays(target, options, recipe, batch)
        config = LossConfig(recipe.positions, recipe.distill_weight)
        update = functools.partial(step.step, schedule=loop.schedule(recipe), config=config, labels=recipe.labels)
        return compiler.compile_program(jax.jit(update, donate_argnums=0), state, frozen, rows)


def _arrays(target, options: Options, recipe, batch: int) -> tuple:
    """The target, the state of the head and a batch on the current mesh; none of them exists."""
    import jax
    import jax.numpy as jnp

    from redrafter_jax.slices import compiler
    from train.data.rows import Batch
    from train.run import loop, step

    spread = options.shard_target == "data,model"
    frozen = compiler.target(target, options.dtype, spread)
    start = functools.partial(step.start, config=loop.head_config(target, recipe), schedule=loop.schedule(recipe), spread=spread)
    state = jax.eval_shape(lambda: start(jax.random.key(0)))
    tokens = compiler.abstract((batch, options.row_length), jnp.int32, jax.P("data", None))
    return frozen, state, Batch(tokens, tokens, tokens, tokens)


def _flops(slice_, target, options: Options, recipe, mesh, batch: int) -> float:
    """Operations that the mathematics of a step needs, on one chip (`log.flops`; attention is not counted)."""
    import jax

    from train.run import log

    with jax.set_mesh(slice_.mesh(*mesh)):
        frozen, state, _ = _arrays(target, options, recipe, batch)
        part, counted = dataclasses.replace(recipe, batch=batch), []
        jax.eval_shape(lambda *models: counted.append(log.flops(*models, part)), frozen, state.drafter)
        return counted[0] / len(slice_.devices)


def _recipe(options: Options):
    from train.run.recipe import Recipe

    if not options.batch or any(not 1 <= rows <= 65536 for rows in options.batch):
        raise BadInput(f"--batch should be from 1 to 65536, not {' '.join(map(str, options.batch)) or 'nothing'}")
    if options.accumulate < 1:
        raise BadInput(f"--accumulate should be 1 or more, not {options.accumulate}")
    recipe = Recipe(
        head=options.head, head_vocab=options.head_vocab, positions=options.positions, labels=options.labels,
        distill_weight=options.distill_weight, row_length=options.row_length, batch=options.accumulate * max(options.batch),
        accumulate=options.accumulate,
    )  # fmt: skip
    recipe.check()
    return recipe


def _head(options: Options) -> str:
    return f"{options.head} head" + (f" of {options.head_vocab} tokens" if options.head_vocab else "")


COLUMNS = (
    ("mesh", 5), ("batch", 5), ("GiB/chip", 8), ("fits", 4), ("TFLOP", 7), ("step ms", 8), ("floor ms", 8), ("of peak", 7),
    ("tokens/s", 9), ("send ms", 7), ("links", 6), ("MB", 8),
)  # fmt: skip


def _line(cells: list[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=False)).rstrip()


def _cells(row: dict) -> list[str]:
    held = "?" if row["held"] is None else f"{'' if row['whole'] else '~'}{row['held'] / (1 << 30):.2f}"
    cells = ["x".join(map(str, row["mesh"])), str(row["batch"]), held, "yes" if row["fits"] else "no"]
    if "failed" in row:
        return [*cells[:-1], "?", row["failed"]]
    if "step_seconds" not in row:
        return cells
    return cells + [
        f"{row['flops_by_hand'] / 1e12:.2f}", f"{row['step_seconds'] * 1e3:.1f}", f"{row['floor_seconds'] * 1e3:.1f}",
        f"{row['peak_share']:.0%}", f"{row['tokens_per_second']:.0f}", f"{row['send_seconds'] * 1e3:.1f}",
        f"{row['links']:.0f}", f"{row['link_bytes'] / 1e6:.1f}",
    ]  # fmt: skip


def _advice(best: dict | None, refused: list[dict], split_over: str) -> str:
    if best is None:
        what = f"none of the last {len(refused)} lines, with all layers compiled, fits" if refused else "nothing fits"
        what += ", and others were not tried" if len(refused) > AGAIN else ""
        more = "" if split_over == "data,model" else "--shard-target data,model, "
        return f"{what}; take {more}more chips, fewer rows at once (--batch), or shorter rows (--row-length)"
    data, model = best["mesh"]
    mesh = f"--mesh {data} {model}" + (" --shard-target data,model" if split_over == "data,model" else "")
    return f"{mesh} with {best['batch']} rows at once has all layers compiled and fits"


if __name__ == "__main__":
    sys.exit(main())
