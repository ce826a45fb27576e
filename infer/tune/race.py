"""Rounds timed against each other: every contender runs a few rounds of the same batch in turn, lap after lap, and those that
are clearly slower drop out. What slows the machine for a while slows all of a lap, and what slows it for a moment is left out, as
the fastest quarter of a contender's laps counts."""

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

MIN_LAPS, MAX_LAPS = 6, 200
FAR, CLOSE = 0.90, 0.96  # of the best score, below which a contender drops out after so many laps, and after twice as many
PLAIN = "plain"  # the contender that all are compared with; it never drops out

Lap = dict[Hashable, float]
"""Seconds per round of each contender that ran in a lap."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """time: runs some rounds and returns seconds per round; gain: plain rounds that one of its rounds saves or stands for, that is
    its speed-up if its rounds cost as much as plain ones."""

    time: Callable[[], float]
    gain: float


def run(
    contenders: Mapping[Hashable, Contender],
    seconds: float,
    laps: Sequence[Lap] = (),
    keep: Callable[[list[Lap]], None] = lambda _: None,
) -> list[Lap]:
    """Laps until time is up, or one contender is left beside `PLAIN`; at least `MIN_LAPS`. ``laps``: of an earlier run that
    was interrupted; ``keep`` is called with all laps after each."""
    laps, began = list(laps), time.monotonic()
    while len(laps) < MIN_LAPS or (len(laps) < MAX_LAPS and time.monotonic() - began < seconds):
        left = remaining(contenders, laps)
        if len(left) <= 2 and len(laps) >= MIN_LAPS:
            break
        laps.append({name: contenders[name].time() for name in left})
        keep(laps)
    return laps


def remaining(contenders: Mapping[Hashable, Contender], laps: Sequence[Lap]) -> list[Hashable]:
    """Who runs in the next lap."""
    if len(laps) < MIN_LAPS:
        return list(contenders)
    scores = speedups(contenders, laps)
    share = CLOSE if len(laps) >= 2 * MIN_LAPS else FAR
    enough = share * max(score for name, score in scores.items() if name != PLAIN)
    ran = laps[-1]
    return [name for name in contenders if name == PLAIN or (name in ran and scores[name] >= enough)]


def speedups(contenders: Mapping[Hashable, Contender], laps: Sequence[Lap]) -> dict[Hashable, float]:
    """Of each contender, its gain over its rounds' cost in plain rounds."""
    return {name: each.gain / round_cost(name, laps) for name, each in contenders.items()}


def round_cost(name: Hashable, laps: Sequence[Lap]) -> float:
    """What a round of a contender costs, in plain rounds of the laps that it ran in."""
    both = [lap for lap in laps if name in lap]
    return _quick(lap[name] for lap in both) / _quick(lap[PLAIN] for lap in both)


def plain_seconds(laps: Sequence[Lap]) -> float:
    """Seconds of a plain round."""
    return _quick(lap[PLAIN] for lap in laps)


def _quick(seconds: Iterable[float]) -> float:
    """The first quartile: what a machine takes that nothing disturbs, and not its luckiest moment."""
    return float(np.quantile(list(seconds), 0.25))
