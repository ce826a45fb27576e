"""`python -m infer.fit`: will it fit on a slice, and which mesh and beam shape to take, before the slice is rented.

The TPU compiler compiles the rounds for the slice on this machine; no weight is allocated and nothing runs. All times are
estimates. Not here: the points (`plan.py`), counting by hand (`roofline.py`), the compiler (`redrafter_jax/compile_only.py`).
"""

import dataclasses
import functools
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
    """Tokens of prompt and reply together, half of them prompt; the cache has each half rounded up to a power of two, as
    decoding does."""
    beams: tuple[str, ...] = ("16x4", "45x4")
    """Beam shapes WxL."""
    nodes: tuple[int, ...] = ()
    """Also: passes of the target over N nodes without drafting."""
    head: Literal["full", "slim"] = "full"
    """full: the paper's head; slim: exits into the target's own LM head."""
    head_vocab: int = 0
    """Tokens that the head can draft; 0: all of the target's."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of weights and cache."""
    sampling: Literal["greedy", "sampled", "filtered"] = "greedy"
    """sampled: at a temperature; filtered: with top-k or top-p as well."""
    most: float = 1.5
    """Recommend the largest beam shape whose round costs at most so many plain steps."""
    whole: bool = False
    """Compile all layers at every point. Otherwise 2 and 4 layers are, the rest follows from their difference (marked ~), and
    only what is recommended is compiled whole."""
    unchecked: bool = False
    """Do not compile what is recommended with all layers, which takes minutes for a large model."""
    floors: bool = False
    """Compile nothing: least memory and least times, counted by hand, for --mesh (by default as many chips in `model` as can
    split it). It takes no --sampling, --most, --whole or --unchecked."""
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
    if options.floors:
        _check_floors(options)


def _check_floors(options: Options) -> None:
    default = {field.name: field.default for field in dataclasses.fields(Options)}
    for name in ("sampling", "most", "whole", "unchecked"):
        if getattr(options, name) != default[name]:
            raise BadInput(f"--{name} does not go with --floors, which compiles nothing; leave one of them out")


def run(options: Options) -> dict:
    """Compiles, and prints unless JSON is wanted; returns the whole report."""
    from infer import plan
    from redrafter_jax import compile_only
    from redrafter_jax.decode.loop import AUTOREGRESSIVE, Shape

    subject = _subject(options, compile_only.slice_of(options.topology))
    meshes, left_out = compile_only.meshes(options.mesh, options.topology, subject.config, subject.head)
    untaken = compile_only.untaken(options.batch, meshes)
    left_out += untaken.values()
    say = (lambda _: None) if options.json else (lambda text: print(text, flush=True))
    say(_heading(options, subject))
    for reason in left_out:
        say(f"left out: {reason}")
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
    for batch in (batch for batch in options.batch if batch not in untaken):
        check = (lambda _: []) if options.unchecked else functools.partial(_checked, subject)
        advice, checked, refused = plan.settle(rows, batch, options.most, check)
        before = [dataclasses.asdict(one) | {"checked": checks} for one, checks in refused]
        report["advice"].append(dataclasses.asdict(advice) | {"checked": checked, "refused": before})
        say(_advice(advice, options, checked, refused, subject.slice.chip.usable_bytes))
    say(LIMITS)
    return report


def run_floors(options: Options) -> dict:
    """Counts, and prints unless JSON is wanted; returns the whole report."""
    from infer import plan
    from redrafter_jax import compile_only
    from redrafter_jax.decode.loop import Shape

    chip, chips = compile_only.chips_of(options.topology)
    subject = _subject(options, None)
    splits, _ = compile_only.meshes(options.mesh, options.topology, subject.config, subject.head)
    split = max(splits, key=lambda split: split[1])
    untaken = compile_only.untaken(options.batch, [split])
    shapes = [Shape(*beam(text)) for text in options.beams]
    nodes = options.nodes or NODES
    rows = [plan.floors(subject, chip, split, batch, nodes, shapes) for batch in options.batch if batch not in untaken]
    report = {
        "command": " ".join(["python -m infer.fit", *sys.argv[1:]]),
        "chip": dataclasses.asdict(chip),
        "left_out": list(untaken.values()),
        "rows": rows,
    }
    if options.json:
        return report
    print(
        f"{options.model}, {_head(options)}, {options.dtype}, {options.context} tokens of context, on {options.topology},"
        f" mesh {split[0]}x{split[1]}; ridge {chip.ridge:.0f} FLOP/byte, {chip.usable_bytes / (1 << 30):.2f} GiB usable per chip.\n"
        "By hand: weights and state, and least times: a plain step in ms; passes over N nodes, drafts and rounds in plain steps."
    )
    for reason in report["left_out"]:
        print(f"left out: {reason}")
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
    from redrafter_jax.model import vocabulary

    target = compile_only.target_config(options.model)
    # a longer context than the target was made for has the same cost
    target = dataclasses.replace(target, max_position_embeddings=max(target.max_position_embeddings, options.context))
    if not 0 <= options.head_vocab <= target.vocab_size:
        raise BadInput(f"--head-vocab should be from 0 (all) to the vocabulary of {target.vocab_size}, not {options.head_vocab}")
    head = vocabulary.untied_config(synthetic.head_config(target, options.head, options.head_vocab))  # as decoding unties it
    return plan.Subject(slice_, target, head, options.dtype, options.context, options.sampling, options.whole)


def _checked(subject, advice) -> list[dict]:
    """The loops of plain and of speculative decoding and the prefill, with all layers, where the table has one round."""
    from infer import plan

    return [plan.check(subject, advice, what) for what in ("step", "round", "prefill") if what != "round" or advice.shape]


COLUMNS = (
    ("mesh", 5), ("batch", 5), ("shape", 6), ("nodes", 5), ("GiB/chip", 8), ("fits", 4), ("GFLOP", 8), ("by hand", 8),
    ("GB read", 7), ("draft", 7), ("verify", 7), ("rest", 6), ("step ms", 8), ("/AR", 6), ("floor/AR", 8), ("bound by", 8),
    ("links", 6), ("MB", 7),
)  # fmt: skip


def _line(cells: list[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=False)).rstrip()


def _cells(row: dict, plain: dict) -> list[str]:
    """A row for people; times in ms. Figures of a chip."""
    cells = ["x".join(map(str, row["mesh"])), str(row["batch"]), row["shape"], str(row["nodes"])]
    roughly = "" if row.get("whole", False) else "~" if "seconds" in row else ">"
    cells += [f"{roughly}{row['held'] / (1 << 30):.2f}", "yes" if row["fits"] else "no"]
    if "seconds" not in row:
        return cells
    seconds, floors = row["seconds"], row["floor_seconds"]
    cells += [f"{row['flops'] / 1e9:.1f}", f"{sum(row['flops_by_hand'].values()) / 1e9:.1f}"]
    cells += [f"{sum(row['bytes_by_hand'].values()) / 1e9:.2f}"]
    cells += [f"{seconds[name] * 1e3:.3f}" for name in ("draft", "verify", "rest")] + [f"{row['round_seconds'] * 1e3:.3f}"]
    if "seconds" not in plain:
        return [*cells, "-", "-", row["verify_is_bound_by"]]
    floor = sum(floors.values()) / sum(plain["floor_seconds"].values())
    cells += [f"{row['round_seconds'] / plain['round_seconds']:.2f}", f"{floor:.2f}", row["verify_is_bound_by"]]
    return [*cells, f"{row['links']:.0f}", f"{row['link_bytes'] / 1e6:.1f}"]


def _heading(options: Options, subject) -> str:
    chip = subject.slice.chip
    return (
        f"{options.model}, {_head(options)}, {options.dtype}, {options.context} tokens of context, {options.sampling}, on"
        f" {len(subject.slice.devices)} chips of {chip.name} ({options.topology}): {chip.peak / 1e12:.0f} TFLOP/s,"
        f" {chip.bandwidth / 1e9:.0f} GB/s, {chip.usable_bytes / (1 << 30):.2f} GiB usable, ridge {chip.ridge:.0f} FLOP/byte\n"
        "All figures are of one chip. ~: from programs of 2 and 4 layers; >: weights and state alone; the rest is not known."
    )


def _head(options: Options) -> str:
    return f"{options.head} head" + (f" of {options.head_vocab} tokens" if options.head_vocab else "")


def _advice(advice, options: Options, checked: list[dict], refused: list, usable: int) -> str:
    """The recommendation for a batch, in options of `infer.generate`, after those that were found not to fit."""
    from infer import plan

    most, dtype = options.most, options.dtype
    before = "".join(f"{_refusal(*one)}\n" for one in refused)
    if advice.mesh is None:
        what = f"none of these {len(refused)}" if refused else "nothing"
        what += " fits, and others were not tried" if len(refused) > plan.AGAIN else " fits"
        return f"{before}batch {advice.batch}: {what}; take more chips, a shorter --context or fewer rows"
    data, model = advice.mesh
    what = f"batch {advice.batch}: --batch-size {advice.batch} --mesh {data} {model} --dtype {dtype}"
    if advice.shape is None:
        what += f" --decoding autoregressive: no beam shape tried fits there and costs at most {most:g} plain steps"
    else:
        width, length = advice.shape.split("x")
        what += f" --beam-width {width} --beam-length {length}: a round costs about {advice.cost:.2f} plain steps,"
        what += " and pays above so many tokens per step"
    sizes = f"All layers compiled, of {usable / (1 << 30):.2f} GiB per chip: {_sizes(checked)}"
    return f"{before}{what}.\n    {sizes if checked else 'Not compiled with all layers (--unchecked), so it may not fit.'}"


def _refusal(advice, checked: list[dict]) -> str:
    data, model = advice.mesh
    sizes = _sizes([one for one in checked if not one["fits"]])
    return f"batch {advice.batch}: --mesh {data} {model}, {_decoding(advice)}, does not fit with all layers compiled: {sizes}"


def _decoding(advice) -> str:
    return f"beams {advice.shape}" if advice.shape else "plain decoding"


def _sizes(checked: list[dict]) -> str:
    gib = lambda held: "?" if held is None else f"{held / (1 << 30):.2f}"  # noqa: E731
    return ", ".join(f"{one['what']} {gib(one['held'])} GiB" for one in checked)


if __name__ == "__main__":
    sys.exit(main())
