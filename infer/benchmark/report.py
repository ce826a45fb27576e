"""The report of `infer.benchmark` for people: lines of text, and a plot. Not here: measuring anything."""

import pathlib
import re

from infer.benchmark.task import Rates

STAGES = ("noise", "draft", "pack", "verify", "commit")


def heading(report: dict) -> str:
    """What was measured and on what."""
    head = f"head {report['head_parameters'] / 1e6:.1f} M" if report["head_parameters"] else "no head"
    lines = [
        f"{report['subject']}: {report['parameters'] / 1e6:.1f} M parameters, {head}",
        report["device"],
        f"prompts: {report['prompts']}; {report['options']['max_new_tokens']} new tokens each",
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
        compared = f"{share} what {row['yardstick']} reaches here, {yardstick} (a memory copy can reach more)"
    return (
        f"autoregressive  {row['tokens_per_second']:.1f} tokens/s, {row['round_seconds'] * 1e3:.3f} ms per step, which reads"
        f" {row['round_bytes'] / 1e6:.0f} MB:\n                {row['read_rate'] / 1e9:.1f} GB/s, {compared};"
        f" first token after {row['first_token_seconds'] * 1e3:.1f} ms;"
        f" compiled in {row['compile_seconds']:.1f} s"
    )


def row(row: dict, first: bool, widest: int = 0) -> str:
    """One way to draft; the first row comes with the table's head. Times in ms, memory in MB. A way without a search drafts
    and packs at once, and its time stands under `draft`. ``widest``: letters of the longest name of a way."""
    seconds = row["stage_seconds"]
    stages = [name for name in STAGES if name in seconds or (name in ("draft", "pack") and "propose" in seconds)]
    names = ["WxL", "nodes", "tok/step", "tok/s", "speed-up", "(min max)", "round", "/AR", *stages, "temp", "compile", "identical"]
    low, high = row["speedup_from_to"]
    cells = [
        row["shape"], str(row["nodes"]), f"{row['tokens_per_step']:.2f}", f"{row['tokens_per_second']:.1f}",
        f"{row['speedup']:.2f}x",
        f"({low:.2f} {high:.2f})", f"{row['round_seconds'] * 1e3:.3f}", f"{row['round_over_autoregressive']:.2f}",
        *(_stage(seconds, name) for name in stages), f"{row['memory_bytes']['temporaries'] / 1e6:.1f}",
        f"{row['compile_seconds']:.1f}s", f"{row['identical']}/{row['rows']}",
    ]  # fmt: skip
    lines = [names, cells] if first else [cells]
    widths = [max(_width(names[0]), widest), *map(_width, names[1:])]
    return "\n".join(" ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def _stage(seconds: dict[str, float], name: str) -> str:
    if name in seconds:
        return f"{seconds[name] * 1e3:.3f}"
    return f"{seconds['propose'] * 1e3:.3f}" if name == "draft" else "-"


def out_of_reach(rows: list[dict], rates: Rates | None) -> str:
    """A line for the shapes that cannot have the tokens per step that were asked for, if there are any."""
    if rates is None or rates.by_depth:
        return ""
    short = [row["shape"] for row in rows if len(row["rates"]) + 1 < rates.tokens_per_step]
    note = f"note: {', '.join(short)} cannot reach {rates.tokens_per_step} tokens per step; every draft is right there\n"
    return note if short else ""


def _width(name: str) -> int:
    return max(len(name), 11 if name == "(min max)" else 7)


def nodes(seconds: dict[int, float]) -> str:
    """What a pass over N nodes costs, as a multiple of the smallest N's."""
    base = seconds[min(seconds)]
    parts = ", ".join(f"{count}: {time * 1e3:.3f} ms ({time / base:.2f})" for count, time in seconds.items())
    return f"a pass over N nodes, nothing drafted (over N = {min(seconds)}): {parts}"


def transformers(row: dict) -> str:
    """Plain decoding beside transformers'."""
    return (
        f"transformers.generate ({row['device']}, {row['threads']} threads, static cache): {row['tokens_per_second']:.1f} tokens/s,"
        f" our plain loop {row['ours_tokens_per_second']:.1f}: {row['ours_over_theirs']:.2f}x, prefill included;"
        f" {row['identical']} of {row['prompts']} replies identical"
    )


def plot(report: dict, path: pathlib.Path, software: str) -> None:
    """Two maps over W and L, of the searches of the head: speed-up, and tokens per step. The file says that ``software`` wrote
    it."""
    from matplotlib.figure import Figure  # of requirements-dev.txt

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
        axes.imshow(grid, cmap="YlGn", aspect="auto", alpha=0.6)  # numbers stay readable on the darkest colour
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(widths)), widths)
        axes.set(title=title, xlabel="beam length L", ylabel="beam width W")
    figure.savefig(path, dpi=120, metadata={"Software": software})
