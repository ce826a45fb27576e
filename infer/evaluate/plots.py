"""Plots of the results of methods x suites: Figures. Needs matplotlib. Not here: measuring anything, writing files."""

from collections.abc import Mapping, Sequence

from infer.display.benchmark_plots import make_figure, plot_lines

BAR_SHARE = 0.8  # of a category's place, that its bars fill


def speedup_by_category(result: Mapping):
    """Bars beside each other for each category of each suite, at the first temperature; plain decoding is the line at 1."""
    rows = [row for row in _at_first(result) if row["category"] is not None and row["kind"] != "plain"]
    places = list(dict.fromkeys((row["suite"], row["category"]) for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    several = len({suite for suite, _ in places}) > 1
    axes = make_figure((2.5 + 1.1 * max(len(places), 2), 4.2)).subplots()
    size = BAR_SHARE / max(len(names), 1)
    for number, name in enumerate(names):
        own = {(row["suite"], row["category"]): row for row in rows if row["method"] == name}
        across = [place + size * (number - (len(names) - 1) / 2) for place in range(len(places))]
        up = [own[place]["speedup"] or 0 for place in places]
        axes.bar(across, up, size, label=name, yerr=[own[place]["speedup_error"] or 0 for place in places], ecolor="black")
    axes.axhline(1.0, color="black", linewidth=1)
    labels = [f"{category}\n{suite.rpartition('/')[2]}" if several else category for suite, category in places]
    axes.set_xticks(range(len(places)), labels, rotation=30 if len(places) > 4 else 0, ha="right" if len(places) > 4 else "center")
    axes.set_ylabel("speed-up over plain decoding")
    if names:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return axes.figure


def tau_by_temperature(result: Mapping):
    """A line for each method, over all of the first suite."""
    suite = result["rows"][0]["suite"]
    lines: dict[str, dict[float, float]] = {}
    for row in result["rows"]:
        if row["suite"] == suite and row["category"] is None and row["tokens_per_step"] is not None:
            lines.setdefault(row["method"], {})[row["temperature"]] = row["tokens_per_step"]
    figure = plot_lines(lines, "temperature", "tokens per step")
    figure.axes[0].set_xticks(sorted({temperature for points in lines.values() for temperature in points}))
    return figure


def acceptance_by_position(result: Mapping):
    """A line for each method, of the first suite at the first temperature: the share of rounds that accepted at least i."""
    rows = [row for row in _in_all(result) if row["acceptance_by_position"]]
    lines = {row["method"]: dict(enumerate(row["acceptance_by_position"], 1)) for row in rows}
    figure = plot_lines(lines, "drafted position i", "share of rounds that accepted at least i drafts")
    figure.axes[0].set_xticks(range(1, 1 + max(map(len, lines.values()), default=0)))
    return figure


def tau_by_bytes(result: Mapping):
    """A point for each method: tokens per step over the bytes of what drafts, at the first temperature and of the first suite."""
    sizes = {each["name"]: each["drafter_bytes"] for each in result["methods"]}
    axes = make_figure((6.5, 4)).subplots()
    for row in _in_all(result):
        if row["tokens_per_step"] is None:
            continue
        at = (sizes[row["method"]] / 1e6, row["tokens_per_step"])
        axes.errorbar(*at, yerr=row["tokens_per_step_error"] or 0, fmt="o", ecolor="black", label=row["method"])
    axes.legend(fontsize="small")
    axes.set_xlabel("MB of the drafter's weights")
    axes.set_ylabel("tokens per step")
    axes.grid(alpha=0.3)
    return axes.figure


ALL = (speedup_by_category, tau_by_temperature, acceptance_by_position, tau_by_bytes)  # in the order of `checks.PLOTS`


def _at_first(result: Mapping) -> list[Mapping]:
    temperature = result["rows"][0]["temperature"]
    return [row for row in result["rows"] if row["temperature"] == temperature]


def _in_all(result: Mapping) -> Sequence[Mapping]:
    suite = result["rows"][0]["suite"]
    return [row for row in _at_first(result) if row["suite"] == suite and row["category"] is None]
