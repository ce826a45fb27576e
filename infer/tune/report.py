"""The report of `infer.tune` for people: a table of each batch, a legend, what was chosen, a plot. Not here: measuring."""

import pathlib
from collections.abc import Sequence

from infer.tune.measure import Measured
from infer.tune.points import Estimate, Point, frontier

MIN_SHOWN = 0.9  # of the best expected speed-up; what is below is not in the table
MAX_NAME = 24  # letters of a head's name in the table
LEGEND = """
  tok/step  tokens per target pass on these prompts, counted along the target's own replies
  round     what a round should cost, in rounds of plain decoding, by the cost of its parts
  expected  speed-up over plain decoding by these two (in a batch the slowest row decides)
  rounds    speed-up with rounds timed in turn with plain ones; only the best expected are timed
  replies   speed-up over whole replies, decoded in turn; only the best of those, and these figures decide
  rows: what was timed, and what no other shape beats in both rounds and their cost, unless it is expected
  to be far below the best; * chosen
"""


def table(outcome: Measured) -> str:
    """The frontier of a batch and what was timed, cheapest rounds first, at most 100 columns."""
    estimates = {each.point: each for each in outcome.estimates}
    edge = {each.point for each in frontier(outcome.estimates)}
    enough = MIN_SHOWN * max(each.speedup for each in outcome.estimates)
    shown = {point for point in edge if estimates[point].speedup >= enough} | outcome.raced.keys()
    rows = [each for each in _all(outcome) if each.point in shown]
    lines = [f"{'head':<{MAX_NAME}}  {'WxL':>5}  nodes  top-k  tok/step  round  expected  rounds  replies"]
    for each in sorted(rows, key=lambda each: each.seconds):
        lines.append(_row(each, outcome, "*" * (each.point == outcome.best)))
    plain = next(iter(outcome.choices.values())).plain_tokens_per_second
    head = f"batch {outcome.batch}, context {outcome.context}: plain decoding {plain:,.1f} tokens/s"
    return "\n".join([head, *lines])


def _all(outcome: Measured) -> list[Estimate]:
    """The estimates, and of points that differ from one only in draft_top_k that one's, as near as any."""
    found = {each.point: each for each in outcome.estimates}
    alike = {_but_for_cut(each.point): each for each in outcome.estimates}
    more = [point for point in outcome.raced if point not in found]
    return [*outcome.estimates, *(Estimate(point, *_figures(alike[_but_for_cut(point)])) for point in more)]


def _but_for_cut(point: Point) -> tuple:
    return point.head, point.width, point.length, point.budget


def _figures(each: Estimate) -> tuple[float, ...]:
    return each.tokens_per_step, each.gain, each.seconds, each.speedup


def _row(each: Estimate, outcome: Measured, mark: str) -> str:
    point, plain = each.point, each.speedup * each.seconds / each.gain
    measured = [f"{found[point]:.2f}x" if point in found else "-" for found in (outcome.raced, outcome.speedups)]
    cut = "-" if point.width == 1 else str(point.draft_top_k or "all")
    return (
        f"{point.head[:MAX_NAME]:<{MAX_NAME}}  {point.shape:>5}  {point.nodes:>5}  {cut:>5}  {each.tokens_per_step:>8.2f}"
        f"  {each.seconds / plain:>5.2f}  {each.speedup:>7.2f}x  {measured[0]:>6}  {measured[1]:>7} {mark}"
    ).rstrip()


def chosen(outcome: Measured) -> str:
    """One line: what is fastest at this batch."""
    head, best = max(outcome.choices.items(), key=lambda item: item[1].speedup)
    if not best.speculates:
        return f"batch {outcome.batch}: do not speculate; the best of the drafts is {best.name} with {head}, {best.speedup:.2f}x"
    cut = f", draft_top_k {best.draft_top_k}" if best.width > 1 else ""
    return f"batch {outcome.batch}: {best.name}{cut} with {head}: {best.speedup:.2f}x, {best.tokens_per_second:,.1f} tokens/s"


def plot(outcomes: Sequence[Measured], path: pathlib.Path, subject: str, software: str) -> None:
    """A panel for each batch: tokens per step over what a round costs, with the line where both are equal, above which drafting
    pays. The file says that ``software`` wrote it."""
    from matplotlib.figure import Figure  # of requirements-dev.txt

    figure = Figure(figsize=(1 + 4.4 * len(outcomes), 4.6), layout="constrained")
    figure.suptitle(subject, fontsize=10)
    panels = figure.subplots(1, len(outcomes), squeeze=False)[0]
    for axes, outcome in zip(panels, outcomes, strict=True):
        _draw(axes, outcome)
    panels[0].set_ylabel("plain rounds that one round stands for")
    panels[0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": software})


def _draw(axes, outcome: Measured) -> None:
    raced = outcome.raced | outcome.speedups
    best = max(outcome.speedups, key=outcome.speedups.get)
    for number, head in enumerate(sorted(outcome.choices)):
        mine = [each for each in outcome.estimates if each.point.head == head]
        edge = frontier(mine)
        axes.scatter(*_places(mine), s=9, color=f"C{number}", alpha=0.35)
        axes.plot(*_places(edge), color=f"C{number}", label=head, linewidth=1)
    for each in outcome.estimates:
        if each.point in raced:
            is_best = _but_for_cut(each.point) == _but_for_cut(best)
            axes.scatter(*_places([each]), s=90 if is_best else 24, marker="*" if is_best else "o", color="black", zorder=3)
    said = [f"{raced[point]:.2f}x  {point.shape}, {point.nodes} nodes, {point.head}" for point in sorted(raced, key=raced.get)]
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0}
    axes.text(0.02, 0.98, "\n".join(["measured", *said[::-1]]), transform=axes.transAxes, va="top", fontsize=7, bbox=box, zorder=4)
    top = max(axes.get_xlim()[1], axes.get_ylim()[1])
    for speedup in (0.5, 1.0, 1.5, 2.0):
        style = {"color": "black", "linewidth": 1.2} if speedup == 1.0 else {"color": "grey", "linewidth": 0.5, "linestyle": ":"}
        axes.plot([0, top], [0, speedup * top], **style)
    axes.set(title=f"batch {outcome.batch}, context {outcome.context}", xlabel="cost of a round, in plain rounds")
    axes.set(xlim=(0.9, max(_places(outcome.estimates)[0]) * 1.05), ylim=(0.9, max(_places(outcome.estimates)[1]) * 1.1))


def _places(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """Cost of a round in plain ones, and the plain rounds that it saves."""
    return [each.gain / each.speedup for each in estimates], [each.gain for each in estimates]
