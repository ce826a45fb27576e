"""`python -m infer.fit`: will it fit on a slice, and which mesh and beam shape to take, before the slice is rented.

The TPU compiler compiles the rounds for the slice on this machine; no weight is allocated and nothing runs. All times are
estimates. Not here: the points (`plan.py`), counting by hand (`roofline.py`), the compiler (`redrafter_jax/compile_only.py`).
"""

import dataclasses
import json
import os
import sys
from typing import Literal

import tyro

from infer import checks
from infer.benchmark import beam
from redrafter_jax.errors import BadInput

NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of the curve that --floors prints
LIMITS = (
    "All of this is the compiler's estimate and arithmetic, not a measurement. A stage takes the cycles that the compiler expects"
    " of its operations, one after the other, and no less than its floor: operations at the chip's published peak, or weights and"
    " cache read once at its published bandwidth. What operations between chips wait for each other is not in it: with `links` of"
    " them per step, each microsecond of waiting adds that many microseconds. Tokens per step are not known here: a round pays"
    " where it accepts more tokens per step than its /AR."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile decoding for a TPU slice that is not here, and say what fits and what it would cost."""

    model: str
    """A known shape (llama-7b, vicuna-7b, llama-13b, llama-33b, llama-3.1-8b, llama-3.1-70b) or a folder with config.json."""
    topology: str = "v5e:2x4"
    """The slice: a chip and a grid, such as v5e:2x2, v5e:2x4, v5e:4x4, v6e:2x4, v5p:2x2x1, v5p:2x2x2."""
    mesh: tuple[int, int] | None = None
    """Devices over which a batch (D) and the target (M) are split; by default every mesh of all chips is tried."""
    batch: tuple[int, ...] = (1, 8, 64)
    """Rows decoded together."""
    context: int = 4096
    """Tokens of prompt and reply together."""
    beams: tuple[str, ...] = ("16x4", "45x4")
    """Beam shapes WxL."""
    nodes: tuple[int, ...] = ()
    """Also: passes of the target over N nodes without drafting."""
    head: Literal["full", "slim"] = "full"
    """full: the paper's head; slim: exits into the target's own LM head."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of weights and cache."""
    sampling: Literal["greedy", "sampled", "filtered"] = "greedy"
    """sampled: at a temperature; filtered: with top-k or top-p as well."""
    most: float = 1.5
    """Recommend the largest beam shape whose round costs at most so many plain steps."""
    whole: bool = False
    """Compile all layers at every point. Otherwise 2 and 4 layers are, the rest follows from their difference (marked ~), and
    only what is recommended is compiled whole."""
    floors: bool = False
    """Compile nothing: least memory and least times, counted by hand, for --mesh (by default all chips in `model`)."""
    json: bool = False
    """Print the report as JSON instead."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code; 2 for what the user can mend, said in one sentence."""
    options = tyro.cli(Options, args=arguments, prog="python -m infer.fit", config=(tyro.conf.FlagCreatePairsOff,))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs, and a TPU that is here stays free
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        _check(options)
        report = run_floors(options) if options.floors else run(options)
    except BadInput as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(report, indent=1))
    return 0


def _check(options: Options) -> None:
    if not options.batch or any(not 1 <= rows <= 4096 for rows in options.batch):
        raise BadInput(f"--batch should be from 1 to 4096, not {' '.join(map(str, options.batch)) or 'nothing'}")
    if not 64 <= options.context <= 10**6:
        raise BadInput(f"--context should be from 64 to 1000000, not {options.context}")
    if any(not 1 <= count <= checks.MOST_NODES for count in options.nodes):
        raise BadInput(f"--nodes should be from 1 to {checks.MOST_NODES}, not {' '.join(map(str, options.nodes))}")
    if not options.most >= 1:
        raise BadInput(f"--most should be 1 or more, not {options.most}")
    for text in options.beams:
        beam(text)


def run(options: Options) -> dict:
    """Compiles, and prints unless JSON is wanted; returns the whole report."""
    from infer import plan
    from redrafter_jax import compile_only
    from redrafter_jax.decode.loop import AUTOREGRESSIVE, Shape

    subject = _subject(options, compile_only.slice_of(options.topology))
    meshes, left_out = _meshes(options, subject)
    say = (lambda _: None) if options.json else (lambda text: print(text, flush=True))
    say(_heading(options, subject))
    for reason in left_out:
        say(f"left out: mesh {reason}")
    shapes = [AUTOREGRESSIVE, *(Shape(*beam(text)) for text in options.beams)]
    rows, node_rows = [], []
    say(_line([name for name, _ in COLUMNS]))
    for batch, mesh in ((batch, mesh) for batch in options.batch for mesh in meshes if batch % mesh[0] == 0):
        point = [plan.row(subject, mesh, batch, AUTOREGRESSIVE)]
        say(_line(_cells(point[0], point[0])))
        for shape in shapes[1:]:
            point.append(plan.row(subject, mesh, batch, shape))
            say(_line(_cells(point[-1], point[0])))
        for count in options.nodes:
            node_rows.append(plan.node_row(subject, mesh, batch, count))
            say(_line(_cells(node_rows[-1] | {"shape": f"N={count}"}, point[0])))
        rows += point
    report = {
        "command": " ".join(["python -m infer.fit", *sys.argv[1:]]),
        "options": {name: str(value) for name, value in dataclasses.asdict(options).items()},
        "chips": len(subject.slice.devices),
        "chip": dataclasses.asdict(subject.slice.chip),
        "left_out": left_out,
        "rows": rows,
        "node_rows": node_rows,
        "advice": [],
        "limits": LIMITS,
    }
    for advice in (plan.advise(rows, batch, options.most) for batch in options.batch):
        checked = _checked(subject, advice)
        report["advice"].append(dataclasses.asdict(advice) | {"checked": checked})
        say(_advice(advice, options.most, checked, subject.slice.chip.usable_bytes))
    say(LIMITS)
    return report


def run_floors(options: Options) -> dict:
    """Counts, and prints unless JSON is wanted; returns the whole report."""
    from infer import plan
    from redrafter_jax import compile_only
    from redrafter_jax.decode.loop import Shape

    chip, chips = compile_only.chips_of(options.topology)
    subject = _subject(options, None)
    split = options.mesh or (1, chips)
    if split[0] * split[1] != chips or any(batch % split[0] for batch in options.batch):
        raise BadInput(f"--mesh {split[0]} {split[1]} should have {chips} chips, and data shards that divide every --batch")
    if reason := compile_only.why_not(subject.config, subject.head, split[1]):
        raise BadInput(f"--mesh {split[0]} {split[1]} cannot split this target: {reason}")
    shapes = [Shape(*beam(text)) for text in options.beams]
    nodes = options.nodes or NODES
    rows = [plan.floors(subject, chip, split, batch, nodes, shapes) for batch in options.batch]
    report = {"command": " ".join(["python -m infer.fit", *sys.argv[1:]]), "chip": dataclasses.asdict(chip), "rows": rows}
    if options.json:
        return report
    print(
        f"{options.model}, {options.head} head, {options.dtype}, {options.context} tokens of context, on {options.topology},"
        f" mesh {split[0]}x{split[1]}; ridge {chip.ridge:.0f} FLOP/byte, {chip.usable_bytes / (1 << 30):.2f} GiB usable per chip.\n"
        "By hand: weights and state, and least times: a plain step in ms; passes over N nodes, drafts and rounds in plain steps."
    )
    heads = [f"N={count}" for count in nodes] + [f"{what} {text}" for what in ("draft", "round") for text in options.beams]
    print("batch GiB/chip  step ms   knee " + " ".join(f"{head:>{max(5, len(head))}}" for head in heads))
    for row in rows:
        values = [*row["verify_over_plain"].values(), *row["draft_over_plain"].values(), *row["round_over_plain"].values()]
        cells = " ".join(f"{value:>{max(5, len(head))}.2f}" for value, head in zip(values, heads, strict=True))
        sizes = f"{row['resident'] / (1 << 30):>8.2f} {row['plain_seconds'] * 1e3:>8.3f}"
        print(f"{row['batch']:>5} {sizes} {row['knee_nodes']:>6.1f} {cells}")
    return report


def _subject(options: Options, slice_):
    from infer import plan, synthetic
    from redrafter_jax import compile_only

    target = compile_only.target_config(options.model)
    # a longer context than the target was made for has the same cost
    target = dataclasses.replace(target, max_position_embeddings=max(target.max_position_embeddings, options.context))
    head = synthetic.head_config(target, options.head)
    return plan.Subject(slice_, target, head, options.dtype, options.context, options.sampling, options.whole)


def _meshes(options: Options, subject) -> tuple[list[tuple[int, int]], list[str]]:
    from redrafter_jax import compile_only

    found, left_out = compile_only.meshes(subject.config, subject.head, len(subject.slice.devices))
    if options.mesh is None:
        return found, left_out
    data, model = options.mesh
    chips = len(subject.slice.devices)
    if min(data, model) < 1 or data * model != chips:
        raise BadInput(f"--mesh should be two numbers whose product is the {chips} chips of {options.topology}, not {data} {model}")
    if reason := compile_only.why_not(subject.config, subject.head, model):
        raise BadInput(f"--mesh {data} {model} cannot split this target: {reason}")
    if all(batch % data for batch in options.batch):
        raise BadInput(f"--batch should have a multiple of the {data} data shards of --mesh")
    return [(data, model)], []


def _checked(subject, advice) -> list[dict]:
    """The recommended step, round and prefill, all layers compiled; where the table had only two depths of the step and round."""
    from infer import plan

    if advice.mesh is None:
        return []
    whole = dataclasses.replace(subject, whole=True)
    return [plan.check(whole, advice, what) for what in ("step", "round", "prefill") if what != "round" or advice.shape]


COLUMNS = (
    ("mesh", 5), ("batch", 5), ("shape", 6), ("nodes", 5), ("GiB/chip", 8), ("fits", 4), ("GFLOP", 8), ("by hand", 8), ("draft", 7),
    ("verify", 7), ("rest", 6), ("step ms", 8), ("/AR", 6), ("floor/AR", 8), ("bound by", 8), ("links", 6), ("MB", 7),
)  # fmt: skip


def _line(cells: list[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=False)).rstrip()


def _cells(row: dict, plain: dict) -> list[str]:
    """A row for people; times in ms. Figures of a chip."""
    cells = ["x".join(map(str, row["mesh"])), str(row["batch"]), row["shape"], str(row["nodes"])]
    roughly = "" if row.get("whole", False) else "~" if row["compiled"] else ">"
    cells += [f"{roughly}{row['held'] / (1 << 30):.2f}", "yes" if row["fits"] else "no"]
    if "seconds" not in row:
        return cells
    seconds, floors = row["seconds"], row["floor_seconds"]
    cells += [f"{row['flops'] / 1e9:.1f}", f"{row['flops_by_hand'] / 1e9:.1f}"]
    cells += [f"{seconds[name] * 1e3:.3f}" for name in ("draft", "verify", "rest")] + [f"{row['round_seconds'] * 1e3:.3f}"]
    if "seconds" not in plain:
        return [*cells, "-", "-", row["verify_is_bound_by"]]
    floor = sum(floors.values()) / sum(plain["floor_seconds"].values())
    cells += [f"{row['round_seconds'] / plain['round_seconds']:.2f}", f"{floor:.2f}", row["verify_is_bound_by"]]
    return [*cells, f"{row['links']:.0f}", f"{row['link_bytes'] / 1e6:.1f}"]


def _heading(options: Options, subject) -> str:
    chip = subject.slice.chip
    return (
        f"{options.model}, {options.head} head, {options.dtype}, {options.context} tokens of context, {options.sampling}, on"
        f" {len(subject.slice.devices)} chips of {chip.name} ({options.topology}): {chip.peak / 1e12:.0f} TFLOP/s,"
        f" {chip.bandwidth / 1e9:.0f} GB/s, {chip.usable_bytes / (1 << 30):.2f} GiB usable, ridge {chip.ridge:.0f} FLOP/byte\n"
        "All figures are of one chip. ~: from programs of 2 and 4 layers; >: weights and state alone, not compiled."
    )


def _advice(advice, most: float, checked: list[dict], usable: int) -> str:
    if advice.mesh is None:
        return f"batch {advice.batch}: nothing fits; take more chips, a shorter --context or fewer rows"
    data, model = advice.mesh
    what = f"batch {advice.batch}: --mesh {data} {model}, "
    if advice.shape is None:
        what += f"and plain decoding: no beam shape tried costs at most {most:g} plain steps"
    else:
        what += f"beams {advice.shape}: a round costs about {advice.cost:.2f} plain steps, and pays above so many tokens per step"
    sizes = ", ".join(
        f"{one['what']} {one['held'] / (1 << 30):.2f} GiB{'' if one['fits'] else ' (DOES NOT FIT)'}" for one in checked
    )
    return f"{what}.\n    All layers compiled, of {usable / (1 << 30):.2f} GiB per chip: {sizes}"


if __name__ == "__main__":
    sys.exit(main())
