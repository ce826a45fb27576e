"""The tables and the recommendation of `infer.fit`, as lines of text. Not here: what is in them (`points.py`), and what
`train.fit` prints too (`infer/fitting.py`).
"""

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence

from infer.fitting import MAX_RETRIES, facts_of, gib, head_of, left_out
from infer.options import name_formats
from infer.terminal import milliseconds

CURVE_NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of the curve that --floors prints
COLUMNS = (
    ("mesh", 5), ("batch", 5), ("shape", 5), ("nodes", 5), ("GiB/chip", 8), ("fits", 4), ("draft", 6), ("verify", 7),
    ("rest", 6), ("send", 6), ("step ms", 7), ("/AR", 5), ("floor/AR", 8), ("bound by", 8),
)  # fmt: skip
MAX_COLUMNS = 100
LEGEND = (
    "All figures are of one chip. ~: from programs of 2 and 4 layers; >: weights and state alone; the rest is not known. shape: AR"
    " is plain decoding, WxL a round of drafts, N=n a target pass over n nodes. step ms: draft, verify, rest and send (between"
    " chips) together; /AR: that in plain steps, and so the tokens per step above which drafting pays; floor/AR: the same of what"
    " is counted by hand; bound by: what a verify waits for, memory or arithmetic, of which the ridge is the border. --json has"
    " more."
)
FLOORS_LEGEND = (
    "By hand: weights and state, and least times: a plain step in ms; passes over N nodes, drafts and rounds in plain steps. ridge:"
    " operations per byte at which arithmetic takes as long as reading; knee: nodes of a pass at which that is so, up to which"
    " nodes cost little."
)


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, in the words of the options: whether ``model``, with this ``head`` in words, fits on ``topology``."""

    model: str
    topology: str
    head: str
    numbers: str
    context: int
    sampling: str = "greedy"


def question_of(options, subject) -> Question:
    """The question of the command's `Options` about a workload."""
    parts = options.bigram, options.gated, options.inner_layers, options.candidates, options.rank
    head = head_of(options.method, options.kind, options.head_vocab, options.positions, options.blocks, *parts)
    head = head if options.draft_model is None else f"{options.draft_model} as the draft model"
    numbers = name_formats(subject.dtype, subject.config.weight_format)
    return Question(options.model, options.topology, head, numbers, options.context, options.sampling)


def cells_of(row: dict, plain: dict) -> list[str]:
    """A row for people; times in ms. Figures of a chip."""
    mark = "" if row.get("whole", False) else "~" if "seconds" in row else ">"
    cells, is_all = facts_of(row, mark, "shape", "nodes")
    if is_all:
        return cells
    seconds, floors = row["seconds"], row["floor_seconds"]
    cells += [milliseconds(seconds[name]) for name in ("draft", "verify", "rest", "links")] + [milliseconds(row["round_seconds"])]
    if "seconds" not in plain:
        return [*cells, "-", "-", row["verify_is_bound_by"]]
    floor = sum(floors.values()) / sum(plain["floor_seconds"].values())
    return [*cells, f"{row['round_seconds'] / plain['round_seconds']:.2f}", f"{floor:.2f}", row["verify_is_bound_by"]]


def heading(asked: Question, slice_) -> str:
    """The lines above the table."""
    chip = slice_.chip
    return wrap(
        f"{asked.model}, {asked.head}, {asked.numbers}, {asked.context} tokens of context, {asked.sampling}, on"
        f" {len(slice_.devices)} chips of {chip.name} ({asked.topology}): {chip.peak / 1e12:.0f} TFLOP/s,"
        f" {chip.bandwidth / 1e9:.0f} GB/s, {gib(chip.usable_bytes)} GiB usable, ridge {chip.ridge:.0f} FLOP/byte",
        LEGEND,
    )


def wrap(*texts: str) -> str:
    """Texts in lines of at most MAX_COLUMNS characters."""
    return "\n".join(textwrap.fill(each, MAX_COLUMNS, subsequent_indent="  ", break_on_hyphens=False) for each in texts)


def advised(advice, most: float, formats: str, checked: list[dict], refused: list, usable: int) -> str:
    """The recommendation for a batch, in options of `infer.generate`, after those that were found not to fit.

    Args:
      most: plain steps that a round may cost.
      formats: the number formats, as options.
      usable: bytes of a chip.
    """
    before = "".join(f"{_refusal(*one)}\n" for one in refused)
    if advice.mesh is None:
        what = f"none of these {len(refused)}" if refused else "nothing"
        what += " fits, and others were not tried" if len(refused) > MAX_RETRIES else " fits"
        return f"{before}batch {advice.batch}: {what}; take more chips, a shorter --context or fewer rows"
    data, model = advice.mesh
    what = f"batch {advice.batch}: --batch-size {advice.batch} --mesh {data} {model} {formats}"
    if advice.shape is None:
        what += f" --decoding autoregressive: no beam shape tried fits there and costs at most {most:g} plain steps"
    else:
        width, length = advice.shape.split("x")
        what += f" --beam-width {width} --beam-length {length}: a round costs about {advice.cost:.2f} plain steps,"
        what += " and pays above so many tokens per step"
    sizes = f"All layers compiled, of {gib(usable)} GiB per chip: {_sizes(checked)}"
    return f"{before}{what}.\n    {sizes if checked else 'Not compiled with all layers (--unchecked), so it may not fit.'}"


def _refusal(advice, checked: list[dict]) -> str:
    data, model = advice.mesh
    sizes = _sizes([one for one in checked if not one["fits"]])
    return f"batch {advice.batch}: --mesh {data} {model}, {_decoding(advice)}, does not fit with all layers compiled: {sizes}"


def _decoding(advice) -> str:
    return f"beams {advice.shape}" if advice.shape else "plain decoding"


def _sizes(checked: list[dict]) -> str:
    return ", ".join(f"{one['what']} {one.get('failed') or gib(one['held']) + ' GiB'}" for one in checked)


def floors(report: dict, asked: Question, chip, split: tuple[int, int], nodes: Sequence[int], beams: Sequence[str]) -> str:
    """The table of what is counted by hand."""
    about = (
        f"{asked.model}, {asked.head}, {asked.numbers}, {asked.context} tokens of context, on {asked.topology}, mesh"
        f" {split[0]}x{split[1]}; ridge {chip.ridge:.0f} FLOP/byte, {gib(chip.usable_bytes)} GiB usable per chip."
    )
    lines = [wrap(about, FLOORS_LEGEND), *left_out(report["left_out"])]
    lines.append("batch GiB/chip  step ms   knee " + _heads([f"N={count}" for count in nodes]))
    for row in report["rows"]:
        sizes = f"{gib(row['resident']):>8} {row['plain_seconds'] * 1e3:>8.3f} {row['knee_nodes']:>6.1f}"
        lines.append(f"{row['batch']:>5} {sizes} {_values(row['verify_over_plain'].values(), [f'N={count}' for count in nodes])}")
    heads = [f"{what} {text}" for what in ("draft", "round") for text in beams]
    lines += [f"batch {_heads(heads)}"] if heads else []
    for row in report["rows"] if heads else ():
        values = [*row["draft_over_plain"].values(), *row["round_over_plain"].values()]
        lines.append(f"{row['batch']:>5} {_values(values, heads)}")
    too_large = [str(row["batch"]) for row in report["rows"] if row["resident"] > chip.usable_bytes]
    lines += [f"batch {batch} does not fit: weights and state alone are more than is usable" for batch in too_large]
    return "\n".join(lines)


def _heads(heads: Sequence[str]) -> str:
    return " ".join(f"{head:>{max(5, len(head))}}" for head in heads)


def _values(values: Iterable[float], heads: Sequence[str]) -> str:
    return " ".join(f"{value:>{max(5, len(head))}.2f}" for value, head in zip(values, heads, strict=True))
