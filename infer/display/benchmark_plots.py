"""Plots of the reports of `infer.benchmark` (its --output, as JSON). Needs matplotlib. Not here: measuring anything."""

from collections.abc import Mapping, Sequence

from redrafter_jax.errors import BadInput

FASTER, SLOWER = "#2ea043", "#8b949e"
STAGES = {  # of a round, in their order, with their colours; what is no search proposes in one
    "noise": "#8b949e",
    "propose": "#79c0ff",
    "draft": "#1f77b4",
    "pack": "#d29922",
    "verify": "#a371f7",
    "commit": "#cf222e",
}


def make_figure(size: tuple[float, float]):
    """An empty Figure of so many inches. Raises BadInput where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("plots need matplotlib; install redrafter-jax[plots]") from None
    return Figure(figsize=size, layout="constrained")


def plot_ways(report: Mapping):
    """For each way to draft its speed beside plain decoding's, tokens per step, and what a round spends its time on; a Figure in
    which black lines are plain decoding."""
    rows, names = report["rows"], [row["shape"] for row in report["rows"]]
    figure = make_figure((13, 1.6 + 0.36 * len(rows)))
    speed, steps, time = figure.subplots(1, 3, sharey=True)
    speed.barh(names, [row["speedup"] for row in rows], color=[FASTER if row["speedup"] > 1 else SLOWER for row in rows])
    speed.errorbar([row["speedup"] for row in rows], names, xerr=_spread(rows), fmt="none", ecolor="black", elinewidth=0.8)
    speed.axvline(1.0, color="black", linewidth=1)
    speed.set_xlabel("speed-up (bar: all prompts)")
    steps.barh(names, [row["tokens_per_step"] or 0 for row in rows], color=FASTER)
    steps.axvline(1.0, color="black", linewidth=1)
    steps.set_xlabel("tokens per step")
    _stack_stages(time, rows, names)
    plain = report["autoregressive"]["round_seconds"] * 1e3
    time.axvline(plain, color="black", linewidth=1)
    time.set_xlabel("ms of a round")
    speed.invert_yaxis()
    return figure


def _spread(rows: Sequence[Mapping]) -> list[list[float]]:
    low = [row["speedup"] - row["speedup_from_to"][0] for row in rows]
    return [low, [row["speedup_from_to"][1] - row["speedup"] for row in rows]]


def _stack_stages(axes, rows: Sequence[Mapping], names: Sequence[str]) -> None:
    left = [0.0] * len(rows)
    for stage, color in STAGES.items():
        seconds = [row["stage_seconds"].get(stage, 0.0) * 1e3 for row in rows]
        if any(seconds):
            axes.barh(names, seconds, left=left, label=stage, color=color)
            left = [before + more for before, more in zip(left, seconds, strict=True)]
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def plot_lines(series: Mapping[str, Mapping[float, float]], across: str, up: str, plain: float | None = None):
    """Lines over a number, such as tokens per step over the temperature; a Figure.

    Args:
      series: for each line its name and its values by place.
      across, up: what the axes measure.
      plain: where plain decoding stands, as a line across.
    """
    axes = make_figure((6.5, 4)).subplots()
    for name, points in series.items():
        axes.plot(list(points), list(points.values()), "o-", label=name)
    if plain is not None:
        axes.axhline(plain, color="black", linewidth=1, label="plain decoding")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return axes.figure
