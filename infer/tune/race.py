"""Rounds timed against each other: every contender runs a few rounds of the same batch in turn, pass after pass, and those that
are clearly slower drop out. What slows the machine for a while slows all of a pass, so that the ratios within a pass count."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence

MIN_PASSES, MAX_PASSES = 5, 40
FAR, CLOSE = 0.90, 0.96  # of the best score, below which a contender drops out after so many passes, and after twice as many
PLAIN = "plain"  # the contender that all are compared with; it never drops out

Pass = dict[Hashable, float]
"""Seconds per round of each contender that ran in a pass."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """time: runs some rounds and returns seconds per round; gain: plain rounds that one of its rounds saves or stands for, that is
    its speed-up if its rounds cost as much as plain ones."""

    time: Callable[[], float]
    gain: float


def run(
    contenders: Mapping[Hashable, Contender],
    seconds: float,
    passes: Sequence[Pass] = (),
    keep: Callable[[list[Pass]], None] = lambda _: None,
) -> list[Pass]:
    """Passes until time is up, or one contender is left beside `PLAIN`; at least `MIN_PASSES`. ``passes``: of an earlier run that
    was interrupted; ``keep`` is called with all passes after each."""
    passes, began = list(passes), time.monotonic()
    while len(passes) < MIN_PASSES or (len(passes) < MAX_PASSES and time.monotonic() - began < seconds):
        left = remaining(contenders, passes)
        if len(left) <= 2 and len(passes) >= MIN_PASSES:
            break
        passes.append({name: contenders[name].time() for name in left})
        keep(passes)
    return passes


def remaining(contenders: Mapping[Hashable, Contender], passes: Sequence[Pass]) -> list[Hashable]:
    """Who runs in the next pass."""
    if len(passes) < MIN_PASSES:
        return list(contenders)
    scores = speedups(contenders, passes)
    share = CLOSE if len(passes) >= 2 * MIN_PASSES else FAR
    enough = share * max(score for name, score in scores.items() if name != PLAIN)
    ran = passes[-1]
    return [name for name in contenders if name == PLAIN or (name in ran and scores[name] >= enough)]


def speedups(contenders: Mapping[Hashable, Contender], passes: Sequence[Pass]) -> dict[Hashable, float]:
    """Of each contender, its gain over the median of its rounds' cost, in plain rounds of the same pass."""
    return {name: each.gain / round_cost(name, passes) for name, each in contenders.items()}


def round_cost(name: Hashable, passes: Sequence[Pass]) -> float:
    """What a round of a contender costs, in plain rounds: the median over passes."""
    return statistics.median(found[name] / found[PLAIN] for found in passes if name in found)


def plain_seconds(passes: Sequence[Pass]) -> float:
    """Seconds of a plain round: the median over passes."""
    return statistics.median(found[PLAIN] for found in passes)
