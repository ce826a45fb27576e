"""`python -m infer.fit`: will it fit on a slice, and which mesh and beam shape to take, before the slice is rented.

The TPU compiler compiles the rounds for the slice on this machine; no weight is allocated and nothing runs. All times are
estimates. Not here: the points (`points.py`), the tables (`report.py`), the compiler and counting by hand
(`redrafter_jax/slices`: `compiler.py`, `roofline.py`).
"""

import dataclasses
import functools
import sys
from typing import Literal

from infer.command import run_command
from infer.fit import report as tables
from infer.fitting import SliceOptions, command_line, formats_asked, formats_of, head_line, left_out, line, printer, run_fit
from infer.options import check_each, check_nodes, check_once, check_range, read_beams
from redrafter_jax.decode.request import MAX_NODES
from redrafter_jax.errors import BadInput

DEFAULT_BEAMS, DEFAULT_CHAINS, DEFAULT_POSITIONS = ("16x4", "45x4"), ("1x4", "4x4"), 5
MAX_BLOCKS, MAX_POSITIONS = 256, 64  # as in train.main
LIMITS = (
    "All of this is the compiler's estimate and arithmetic, not a measurement. A stage takes the cycles that the compiler expects"
    " of its operations, one after the other, and no less than its floor: operations at the chip's published peak, or weights and"
    " cache read once at its published bandwidth. `send` is what a chip needs at least for its part of the operations between"
    " chips, at the published bandwidth of its links, one way; how long they wait for each other is not in it: with"
    " `links` (--json) of them per step, each microsecond of waiting adds that many microseconds. Tokens per step are"
    " not known here: a round pays where it yields more tokens per step than it costs plain steps (/AR)."
)


@dataclasses.dataclass(frozen=True)
class Options(SliceOptions):
    """Compile decoding for a TPU slice that is not here, and say what fits and what it would cost."""

    batch: tuple[int, ...] = (1, 8, 64)
    """Rows decoded together."""
    context: int = 4096
    """Tokens of prompt and reply together, half of them prompt; the cache has each half rounded up to a power of two, as
    decoding does."""
    method: Literal["recurrent", "medusa", "small"] = "recurrent"
    """As in train.main: ReDrafter's head, or Medusa's heads, as many as --positions; small: --draft-model drafts."""
    candidates: int = 0
    """As in train.candidates: tokens that each step of a recurrent head looks up; 0: it computes all logits."""
    rank: int = 0
    """As in train.candidates: the rank of the copy of the LM head that finds them."""
    draft_model: str | None = None
    """Of --method small: the model that drafts, named as --model is."""
    positions: int | None = None
    """Of --method medusa: how many heads there are; by default 5, as in train.main."""
    beams: tuple[str, ...] = ()
    """Beam shapes WxL; by default 16x4 45x4. Of Medusa's heads a shape is the part of the published tree that such a search
    would have room for; by default all of that tree."""
    nodes: tuple[int, ...] = ()
    """Also: passes of the target over N nodes without drafting."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Number format of weights and cache; by default bfloat16."""
    sampling: Literal["greedy", "sampled", "filtered"] = "greedy"
    """sampled: at a temperature; filtered: with top-k or top-p as well."""
    most: float = 1.5
    """Recommend the largest beam shape whose round costs at most so many plain steps."""
    unchecked: bool = False
    """Do not compile what is recommended with all layers, which takes minutes for a large model."""
    floors: bool = False
    """Compile nothing: least memory and least times, counted by hand, for --mesh (by default as many chips in `model` as can
    split it). It takes no --sampling, --most, --whole or --unchecked."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> None:
    run_fit(Options, "infer.fit", arguments, _run)


def _run(options: Options) -> dict:
    options = _complete(options)
    _check(options)
    return run_floors(options) if options.floors else run(options)


def _complete(options: Options) -> Options:
    """With what a method has by default. Raises BadInput for an option of another method, or out of range."""
    check_range("blocks", options.blocks, 1, MAX_BLOCKS)
    check_range("positions", options.positions, 1, MAX_POSITIONS)
    if (options.method == "small") != (options.draft_model is not None):
        raise BadInput("--method small and --draft-model go together: the one says that a model drafts, the other which")
    if options.method != "medusa":
        if options.positions is not None:
            raise BadInput("--positions is of --method medusa; --beams say how deep a recurrent head drafts")
        return dataclasses.replace(options, beams=options.beams or (DEFAULT_CHAINS if options.draft_model else DEFAULT_BEAMS))
    from redrafter_jax.decode.propose.heads import default_shape_of
    from redrafter_jax.decode.propose.recurrent import Shape
    from redrafter_jax.model.medusa import MedusaConfig

    heads = options.positions or DEFAULT_POSITIONS
    whole = default_shape_of(MedusaConfig(vocab_size=0, hidden_size=0, num_heads=heads), Shape())
    for text, (_, length) in zip(options.beams, read_beams(options.beams), strict=True):
        if length > heads:
            raise BadInput(f"--beams {text} is deeper than the {heads} heads of --positions; shorten it or take more heads")
    return dataclasses.replace(options, positions=heads, beams=options.beams or (f"{whole.width}x{whole.length}",))


def _check(options: Options) -> None:
    check_each("batch", options.batch, 1, 4096)
    if not 64 <= options.context <= 10**6:
        raise BadInput(f"--context should be from 64 to 1000000, not {options.context}")
    check_nodes(options.nodes)
    if not options.most >= 1:
        raise BadInput(f"--most should be 1 or more, not {options.most}")
    beams = read_beams(options.beams)
    for text, (width, length) in zip(options.beams, beams, strict=True):
        if 1 + width * length > MAX_NODES:
            raise BadInput(f"--beams {text} makes {1 + width * length} nodes, over {MAX_NODES}; narrow or shorten it")
    for name, values in (("batch", options.batch), ("nodes", options.nodes), ("beams", beams)):
        check_once(name, values, getattr(options, name))
    if options.floors:
        _check_floors(options)


def _check_floors(options: Options) -> None:
    default = {field.name: field.default for field in dataclasses.fields(Options)}
    for name in ("sampling", "most", "whole", "unchecked"):
        if getattr(options, name) != default[name]:
            raise BadInput(f"--{name} does not go with --floors, which compiles nothing; leave one of them out")


def run(options: Options) -> dict:
    """Compiles, and prints unless JSON is wanted; returns the whole report."""
    from redrafter_jax.slices import compiler
    from redrafter_jax.slices import topology as slices

    subject = _subject(options)
    slices.parse_topology(options.topology, "--topology")
    meshes, reasons = slices.choose_meshes(options.mesh, options.topology, subject.config, subject.head, "--mesh")
    subject = dataclasses.replace(subject, slice=slices.find_slice(options.topology, "--topology"))
    untaken = slices.refuse_batches(options.batch, meshes, "--batch")
    reasons += untaken.values()
    say = printer(options)
    say("\n".join([tables.heading(tables.question_of(options, subject), subject.slice), *left_out(reasons)]))
    with compiler.side_by_side() as pool:
        rows, node_rows = _points(options, subject, meshes, pool, say)
        advice = _advise(options, subject, rows, [batch for batch in options.batch if batch not in untaken], pool, say)
    say(tables.wrap(LIMITS))
    return {
        "command": command_line("infer.fit"),
        "options": {name: str(value) for name, value in dataclasses.asdict(options).items()},
        "chips": len(subject.slice.devices),
        "chip": dataclasses.asdict(subject.slice.chip),
        "left_out": reasons,
        "rows": rows,
        "node_rows": node_rows,
        "advice": advice,
        "limits": LIMITS,
    }


def _points(options: Options, subject, meshes: list[tuple[int, int]], pool, say) -> tuple[list[dict], list[dict]]:
    """The rows of the beam shapes and those of the passes over N nodes, printed in order as soon as they are ready."""
    from infer.fit import points
    from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Shape

    shapes = [AUTOREGRESSIVE, *(Shape(*beam) for beam in read_beams(options.beams))]
    started = []
    for batch, mesh in ((batch, mesh) for batch in options.batch for mesh in meshes if batch % mesh[0] == 0):
        rounds = [pool.submit(points.row, subject, mesh, batch, shape) for shape in shapes]
        started.append((rounds, [pool.submit(points.node_row, subject, mesh, batch, count) for count in options.nodes]))
    rows, node_rows = [], []
    say(head_line(tables.COLUMNS))
    for rounds, passes in started:
        plain = rounds[0].result()
        for point in rounds:
            rows.append(point.result())
            say(line(tables.cells_of(rows[-1], plain), tables.COLUMNS))
        for count, point in zip(options.nodes, passes, strict=True):
            node_rows.append(point.result())
            say(line(tables.cells_of(node_rows[-1] | {"shape": f"N={count}"}, plain), tables.COLUMNS))
    return rows, node_rows


def _advise(options: Options, subject, rows: list[dict], batches: list[int], pool, say) -> list[dict]:
    """The recommendation for each batch, checked with all layers compiled unless ``--unchecked``."""
    from infer.fit.advice import find_advice

    found = []
    for batch in batches:
        check = (lambda _: []) if options.unchecked else functools.partial(_checked, subject, pool)
        advice, checked, refused = find_advice(rows, batch, options.most, check)
        before = [dataclasses.asdict(one) | {"checked": checks} for one, checks in refused]
        found.append(dataclasses.asdict(advice) | {"checked": checked, "refused": before})
        say(tables.advised(advice, options.most, formats_asked(options), checked, refused, subject.slice.chip.usable_bytes))
    return found


def run_floors(options: Options) -> dict:
    """Counts, and prints unless JSON is wanted; returns the whole report."""
    from infer.fit import points
    from redrafter_jax.decode.propose.recurrent import Shape
    from redrafter_jax.slices import topology as slices

    chip, _ = slices.parse_topology(options.topology, "--topology")
    subject = _subject(options)
    splits, _ = slices.choose_meshes(options.mesh, options.topology, subject.config, subject.head, "--mesh")
    split = max(splits, key=lambda split: split[1])
    untaken = slices.refuse_batches(options.batch, [split], "--batch")
    shapes = [Shape(*beam) for beam in read_beams(options.beams)]
    nodes = options.nodes or tables.CURVE_NODES
    rows = [points.floors(subject, chip, split, batch, nodes, shapes) for batch in options.batch if batch not in untaken]
    report = {
        "command": command_line("infer.fit"),
        "chip": dataclasses.asdict(chip),
        "mesh": list(split),
        "left_out": list(untaken.values()),
        "rows": rows,
    }
    if not options.json:
        print(tables.floors(report, tables.question_of(options, subject), chip, split, nodes, options.beams))
    return report


def _subject(options: Options):
    """The workload, without a slice yet."""
    from infer.fit import points
    from infer.fit.drafts import config_of
    from redrafter_jax.slices import topology as slices

    dtype, weight_format = formats_of(options)
    target = slices.read_target_config(options.model, "--model", weight_format)
    # a longer context than the target was made for has the same cost
    target = dataclasses.replace(target, max_position_embeddings=max(target.max_position_embeddings, options.context))
    if not 0 <= options.head_vocab <= target.vocab_size:
        raise BadInput(f"--head-vocab should be from 0 (all) to the vocabulary of {target.vocab_size}, not {options.head_vocab}")
    head = config_of(options, target)
    return points.Workload(None, target, head, dtype, options.context, options.sampling, options.whole)


def _checked(subject, pool, advice) -> list[dict]:
    """The loops of plain and of speculative decoding and the prefill, with all layers, where the table has one round."""
    from infer.fit import points

    programs = [what for what in ("step", "round", "prefill") if what != "round" or advice.shape]
    return list(pool.map(functools.partial(points.check, subject, advice), programs))


if __name__ == "__main__":
    sys.exit(main())
