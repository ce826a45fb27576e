"""The report of `infer.benchmark` for people: lines of text, and a plot. Not here: measuring anything."""

import pathlib
import re
import textwrap
from collections.abc import Sequence

from infer.benchmark.task import Rates
from infer.terminal import figure, milliseconds

MAX_COLUMNS = 100
# What stands in a column of a round's parts: the stages that are added up there.
STAGES = {"draft": ("noise", "draft", "propose"), "pack": ("pack",), "verify": ("verify",), "commit": ("commit",)}
COLUMNS = {
    "nodes": 5, "tok/step": 8, "tok/s": 7, "speed-up": 8, "from-to": 9, "round": 6, "steps": 5,
    "draft": 5, "pack": 5, "verify": 6, "commit": 6, "same": 5,
}  # fmt: skip
LEGEND = (
    "WxL: beams and drafted tokens in each; nodes: of the tree, that a target pass scores; tok/step: tokens per step, delivered"
    " by a target pass after the prefill; speed-up: over plain decoding, and from-to over the repeats; round: draft and target"
    " pass, in ms, and in plain steps; draft, pack, verify, commit: its parts, in ms, timed alone; same: replies identical to"
    " plain decoding's."
)


def heading(report: dict) -> str:
    """What was measured and on what."""
    head = f"head {report['head_parameters'] / 1e6:.1f} M" if report["head_parameters"] else "no head"
    lines = [
        f"{report['subject']}: {report['parameters'] / 1e6:.1f} M parameters, {head}",
        report["device"],
        f"prompts: {report['prompts']};\n  {report['options']['max_new_tokens']} new tokens each",
    ]
    if report["mesh_because"]:
        lines.insert(2, report["mesh_because"])
    if report["acceptance"] == "synthetic":
        lines.append("SYNTHETIC ACCEPTANCE: drafts are right as often as asked for, so tokens per step is an input, not a result")
    return "\n".join(lines)


def plain(row: dict) -> str:
    """Plain decoding."""
    share, yardstick = f"{row['read_rate'] / row['yardstick_rate']:.0%} of", f"{row['yardstick_rate'] / 1e9:.0f} GB/s"
    if row["yardstick"] == "given":
        compared = f"{share} the {yardstick} of --bandwidth"
    else:
        compared = f"{share} what {row['yardstick']} reaches here ({yardstick}; a copy can reach more)"
    return (
        f"plain           {row['tokens_per_second']:.1f} tokens/s, {row['round_seconds'] * 1e3:.3f} ms per pass;"
        f" first token after {row['first_token_seconds'] * 1e3:.1f} ms\n"
        f"  compiled in {row['compile_seconds']:.1f} s; a pass reads {row['round_bytes'] / 1e6:.0f} MB:"
        f" {row['read_rate'] / 1e9:.1f} GB/s,\n  {compared}"
    )


def legend() -> str:
    """What the columns are; above the table."""
    return "\n".join(textwrap.wrap(LEGEND, MAX_COLUMNS, subsequent_indent="  ", break_on_hyphens=False))


def row(row: dict, first: bool, widest: int = 0) -> str:
    """One way to draft; with the table's head above the first of them. What is not a search drafts and packs at once, which stands
    under `draft`. ``widest``: letters of the longest name of a way."""
    names = ["WxL", *COLUMNS]
    low, high = row["speedup_from_to"]
    times = [milliseconds(row["round_seconds"]), f"{row['round_over_autoregressive']:.2f}"]
    times += [_stage(row["stage_seconds"], stages) for stages in STAGES.values()]
    speed = [figure(row["tokens_per_second"]), f"{row['speedup']:.2f}x", f"{low:.2f}-{high:.2f}"]
    cells = [row["shape"], str(row["nodes"]), f"{row['tokens_per_step']:.2f}", *speed, *times, f"{row['identical']}/{row['rows']}"]
    lines = [names, cells] if first else [cells]
    widths = [max(len(names[0]), widest), *COLUMNS.values()]
    return "\n".join(" ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def _stage(seconds: dict[str, float], stages: Sequence[str]) -> str:
    found = [seconds[name] for name in stages if name in seconds]
    return milliseconds(sum(found)) if found else "-"


def out_of_reach(rows: list[dict], rates: Rates | None) -> str:
    """A line for the shapes that cannot have the tokens per step that were asked for, if there are any."""
    if rates is None or rates.by_depth:
        return ""
    short = [row["shape"] for row in rows if len(row["rates"]) + 1 < rates.tokens_per_step]
    note = f"note: {', '.join(short)} cannot reach {rates.tokens_per_step} tokens per step; every draft is right there\n"
    return note if short else ""


def nodes(seconds: dict[int, float]) -> str:
    """What a pass over N nodes costs, and that as a multiple of the smallest N's."""
    base = seconds[min(seconds)]
    parts = ", ".join(f"{count}: {milliseconds(time)} ({time / base:.2f})" for count, time in seconds.items())
    said = f"a target pass over N nodes in ms, nothing drafted (and over that of N = {min(seconds)}): {parts}"
    return textwrap.fill(said, MAX_COLUMNS, subsequent_indent="  ", break_on_hyphens=False)


def transformers(row: dict) -> str:
    """Plain decoding beside transformers'."""
    return (
        f"transformers.generate ({row['device']}, {row['threads']} threads, static cache): {row['tokens_per_second']:.1f}"
        f" tokens/s;\n  our plain loop {row['ours_tokens_per_second']:.1f}: {row['ours_over_theirs']:.2f}x, prefill included;"
        f" {row['identical']} of {row['prompts']} replies identical"
    )


def plot(report: dict, path: pathlib.Path, software: str):
    """Two maps over W and L, of the searches of the head: speed-up, and tokens per step. The file says that ``software`` wrote
    it. Returns the figure."""
    from matplotlib import colors  # of requirements-dev.txt
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if re.fullmatch(r"\d+x\d+", row["shape"])]
    shapes = [tuple(map(int, row["shape"].split("x"))) for row in rows]
    widths, lengths = sorted({w for w, _ in shapes}), sorted({length for _, length in shapes})
    figure = Figure(figsize=(10, 1.2 + 0.6 * len(widths)), layout="constrained")
    figure.suptitle(
        f"{report['subject']} on {report['device']}" + (", synthetic acceptance" * (report["acceptance"] == "synthetic"))
    )
    for axes, key, title in zip(
        figure.subplots(1, 2), ("speedup", "tokens_per_step"), ("speed-up", "tokens per step"), strict=True
    ):
        grid = [[float("nan")] * len(lengths) for _ in widths]
        for (width, length), row in zip(shapes, rows, strict=True):
            grid[widths.index(width)][lengths.index(length)] = row[key]
            axes.text(lengths.index(length), widths.index(width), f"{row[key]:.2f}", ha="center", va="center")
        # Red below 1, where drafting loses, and green above, however good or bad the best of the map is.
        norm = colors.TwoSlopeNorm(1.0, 0.0, max([2.0, *(row[key] for row in rows)]))
        axes.imshow(grid, cmap="RdYlGn", norm=norm, aspect="auto", alpha=0.6)  # numbers stay readable on the darkest
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(widths)), widths)
        axes.set(title=title, xlabel="beam length L", ylabel="beam width W")
    figure.savefig(path, dpi=120, metadata={"Software": software})
    return figure
