"""The last word of `infer.tune`: the few best of the race and plain decoding decode whole replies in turn. Rounds that are timed by
themselves are kinder to drafts than a reply is, and whether drafting pays is often a matter of a few percent."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence

from infer.tune.costs import PromptBatches
from infer.tune.points import Point, best_by_head
from infer.tune.race import PLAIN, Lap
from infer.tune.rounds import RoundsProgram

FINALISTS = 3  # of the race, and of every head at least the best
MIN_LAPS, MAX_LAPS = 4, 60  # an even number, so that each is as often before another as behind it


def run(
    batches: PromptBatches,
    programs: Mapping[Hashable, RoundsProgram],
    seconds: float,
    laps: Sequence[Lap] = (),
    keep: Callable[[list[Lap]], None] = lambda _: None,
) -> list[Lap]:
    """Laps in each of which all programs, to and fro, decode one batch of prompts to its end, until time is up; arguments as of
    `race.run`."""
    laps, began = list(laps), time.monotonic()
    batches.let_go()
    while len(laps) < MIN_LAPS or (len(laps) < MAX_LAPS and time.monotonic() - began < seconds):
        number = len(laps) % len(batches.inputs)
        state = batches.start(number)
        order = list(programs)[:: 1 if len(laps) % 2 else -1]
        found = {name: programs[name].reply_seconds(batches.seen_by(state, programs[name].features)) for name in order}
        laps.append({name: took / rounds for name, (took, rounds) in found.items()})
        keep(laps)
    return laps


def round_cost(name: Hashable, laps: Sequence[Lap]) -> float:
    """What a round costs in plain rounds: the median over laps, each of which a slow machine slows as a whole."""
    return statistics.median(lap[name] / lap[PLAIN] for lap in laps)


def plain_seconds(laps: Sequence[Lap]) -> float:
    """Seconds of a plain round."""
    return statistics.median(lap[PLAIN] for lap in laps)


def finalists(speedups: Mapping[Point, float], most: int = FINALISTS) -> list[Point]:
    """The fastest points of a race, and of every head its fastest."""
    ranked = sorted(speedups, key=speedups.get, reverse=True)
    return list(dict.fromkeys([*ranked[:most], *best_by_head(speedups).values()]))
