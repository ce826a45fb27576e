"""Which way to draft promises the most tokens per second: from what a round of each costs, and from what was accepted of each
lately. Plain numbers; no device and no clock, so that several processes pick the same.

    way       round of 4 rows   tokens a round and row, recently    promise
    2x2            11 ms                1.9                          1.9 / 11 ms   the best
    1x2             9 ms                1.5 (may be 1.8)             1.5 / 9 ms    with 1.8 it would win: tried once in a while
    plain           6 ms                1.0 (exactly)                1.0 / 6 ms

A way that is not in use says nothing about itself, and texts change. So a way that could be better is tried for a few rounds, as
long as all that such trials lose stays within a small share of the time (`TRIAL_SHARE`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

GUESSED_RATE = 0.6  # of a way that was never tried: how often a draft is accepted behind accepted ones
GUESS_ROUNDS = 4.0  # rounds of a row that such a guess is worth
RECENT_ROUNDS = 256.0  # rounds of a row, after which what was seen counts for 1/e
STALE_ROUNDS = 2048.0  # rounds of a row in other ways, after which it counts for as little, and the guess counts again
DEVIATIONS = 1.0  # above the mean, that a way may turn out to be
TRIAL_ROUNDS = 8  # rounds of a row in a trial, in one row or shared by several
TRIAL_SHARE = 0.01  # of the time, that trials may lose
FIRST_TRIALS = 8.0  # rounds of the best way whose time trials may lose before anything is known
MOST_TRIALS = 32.0  # the same at any time, however long there was nothing to try
REVIEW_SECONDS = 0.25  # of rounds at most, between two decisions


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of a way with drafts of L tokens: ``tokens`` that were delivered in so many ``rounds`` of a row, where older
    ones count for less."""

    length: int
    tokens: float
    rounds: float

    @property
    def mean(self) -> float:
        """Tokens of a round and row, from 1 to L + 1."""
        return self.tokens / self.rounds

    @property
    def most(self) -> float:
        """What the mean may turn out to be. A quantity from 1 to L + 1 has at most this variance (Bhatia and Davis 2000)."""
        variance = (self.mean - 1) * (self.length + 1 - self.mean)
        return min(self.length + 1.0, self.mean + DEVIATIONS * math.sqrt(max(variance, 0.0) / self.rounds))

    def behind(self, tokens: int, rounds: int) -> "Evidence":
        """With what was seen now."""
        kept = math.exp(-rounds / RECENT_ROUNDS)
        return Evidence(self.length, self.tokens * kept + tokens, self.rounds * kept + rounds)

    def aged(self, rounds: int) -> "Evidence":
        """After so many rounds of a row in other ways: it turns back into a guess."""
        kept, blank = math.exp(-rounds / STALE_ROUNDS), guess(self.length)
        tokens, count = (kept * own + (1 - kept) * other for own, other in _both(self, blank))
        return Evidence(self.length, tokens, count)


def _both(one: Evidence, other: Evidence) -> tuple[tuple[float, float], tuple[float, float]]:
    return (one.tokens, other.tokens), (one.rounds, other.rounds)


def guess(length: int) -> Evidence:
    """Of a way that was never tried. Plain decoding, L = 0, delivers a token a round, which is no guess."""
    mean = sum(GUESSED_RATE**depth for depth in range(length + 1))
    return Evidence(length, GUESS_ROUNDS * mean, GUESS_ROUNDS)


@dataclasses.dataclass(frozen=True)
class Pick:
    """A way by its number, and for how many rounds at most; ``loses``: seconds of a round that a trial is expected to lose, 0
    where it is no trial."""

    way: int
    rounds: int
    loses: float = 0.0


def pick(seconds: Sequence[float], evidence: Sequence[Evidence], busy: int, allowance: float) -> Pick:
    """The way with the best promise, or one that is worth a trial.

    Args:
      seconds: of a round in each way.
      busy: rows that hold a request.
      allowance: seconds that a trial may lose.
    """
    promises = [each.mean / cost for each, cost in zip(evidence, seconds, strict=True)]
    best = promises.index(max(promises))
    trial, hoped = None, promises[best]
    rounds = -(-TRIAL_ROUNDS // busy)
    for way, (each, cost) in enumerate(zip(evidence, seconds, strict=True)):
        loses = max(0.0, cost - each.mean / promises[best])
        if way != best and each.most / cost > hoped and rounds * loses <= allowance:
            trial, hoped = Pick(way, rounds, loses), each.most / cost
    if trial is not None:
        return trial
    known = max(1, int(evidence[best].rounds) // busy)  # as many again as are known, so that a guess is soon replaced
    return Pick(best, min(known, max(1, int(REVIEW_SECONDS / seconds[best]))))


class Picker:
    """Picks again and again, and is told what came of it.

    Args:
      seconds: of a round, by the rows that it decodes and by the number of the way.
      lengths: L of each way, 0 for plain decoding.
    """

    def __init__(self, seconds: Mapping[tuple[int, int], float], lengths: Sequence[int]):
        self.seconds, self.evidence = dict(seconds), [guess(length) for length in lengths]
        self._allowance = FIRST_TRIALS * self._best_seconds(max(rows for rows, _ in seconds))
        self._last = Pick(0, 1)

    def pick(self, rows: int, busy: int) -> Pick:
        """What to run next with programs of so many rows, of which so many are busy."""
        self._last = pick(self._of(rows), self.evidence, busy, self._allowance)
        return self._last

    def saw(self, rows: int, rounds: int, row_rounds: int, tokens: int) -> None:
        """What came of the last pick: so many rounds, in so many rounds of single rows, with so many tokens."""
        if not row_rounds:
            return
        last, most = self._last, MOST_TRIALS * self._best_seconds(rows)
        earned = TRIAL_SHARE * rounds * self.seconds[rows, last.way]
        self._allowance = min(most, self._allowance + earned) - rounds * last.loses
        self.evidence = [
            each.behind(tokens, row_rounds) if way == last.way else each.aged(row_rounds) for way, each in enumerate(self.evidence)
        ]

    def _of(self, rows: int) -> list[float]:
        return [self.seconds[rows, way] for way in range(len(self.evidence))]

    def _best_seconds(self, rows: int) -> float:
        """Of a round in the way with the best promise."""
        return min(zip(self._of(rows), self.evidence, strict=True), key=lambda each: each[0] / each[1].mean)[0]
