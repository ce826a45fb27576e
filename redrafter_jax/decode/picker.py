"""Which way to draft promises the most tokens per second: from what a round of each costs, and from what was accepted of each
lately. Plain numbers; no device and no clock, so that several processes pick the same.

    way       round of 4 rows   tokens a round and row, recently    promise
    2x2            11 ms                1.9                          1.9 / 11 ms   the best
    1x2             9 ms                1.5 (may be 1.8)             1.5 / 9 ms    with 1.8 it would win: tried once in a while
    plain           6 ms                1.0 (exactly)                1.0 / 6 ms

What a round takes is measured beforehand, and again whenever a way is taken: other work slows a machine, long texts take longer.
A way that is not in use says nothing about itself, and texts change. So it is guessed from how often drafts of others are
accepted, and where it could be better it is tried for a few rounds, as long as all that such trials lose stays within a small
share of the time (`TRIAL_SHARE`). What its rounds take comes into doubt again, too. The first short call after those of another way
finds that one's weights in the caches; it is not timed, and a trial begins with one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from redrafter_jax.decode.round_times import RoundTimes

FIRST_RATE = 0.6  # how often a draft is accepted behind accepted ones, before anything is known
GUESS_ROUNDS = 16.0  # rounds of a row that a guess from that rate is worth
RECENT_ROUNDS = 1024.0  # rounds of a row, after which what was seen of a way counts for 1/e
STALE_ROUNDS = 2048.0  # rounds of a row in other ways, after which it counts for as little
DEVIATIONS = 1.0  # above the mean, that a way may turn out to be
TRIAL_ROUNDS = 8  # rounds of a row in a trial, in one row or shared by several; where its time is in doubt, rounds of all rows
TRIAL_SHARE = 0.005  # of the time, that trials may lose
MOST_TRIALS = 8.0  # rounds of the best way whose time trials may lose at once: at first, and however long there was nothing to try
LEAST_DOUBT = 0.1  # of a round's time, as a share, below which it is believed
COLD_ROUNDS = 2  # that a trial begins with
SWITCH_CALLS = 6.0  # calls whose time besides their rounds a trial costs: two more, and weights that are not in the caches, twice
WARM_ROUNDS = 32  # of a call, from which on it is timed also where it comes behind another way
REVIEW_SECONDS = 0.25  # of rounds at most, between two decisions


def tokens_at(rate: float, length: int) -> float:
    """Tokens of a round whose L drafts are each accepted at this rate behind accepted ones."""
    return sum(rate**depth for depth in range(length + 1))


def rate_of(tokens: float, length: int) -> float:
    """The inverse of `tokens_at`."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_at(middle, length) < tokens else (low, middle)
    return high


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of a way with drafts of L tokens: ``tokens`` that were delivered in so many ``rounds`` of a row, where older
    ones count for less; and a guess from the ``rate`` at which drafts of whatever way were accepted lately. Plain decoding, L = 0,
    has a token a round, whatever the rate."""

    length: int
    tokens: float = 0.0
    rounds: float = 0.0
    rate: float = FIRST_RATE

    @property
    def weight(self) -> float:
        """Rounds of a row, with those that the guess is worth."""
        return self.rounds + GUESS_ROUNDS

    @property
    def mean(self) -> float:
        """Tokens of a round and row, from 1 to L + 1."""
        return (self.tokens + GUESS_ROUNDS * tokens_at(self.rate, self.length)) / self.weight

    @property
    def most(self) -> float:
        """What the mean may turn out to be. A quantity from 1 to L + 1 has at most this variance (Bhatia and Davis 2000)."""
        variance = (self.mean - 1) * (self.length + 1 - self.mean)
        return min(self.length + 1.0, self.mean + DEVIATIONS * math.sqrt(max(variance, 0.0) / self.weight))

    def behind(self, tokens: int, rounds: int) -> "Evidence":
        """With what was seen now."""
        kept = math.exp(-rounds / RECENT_ROUNDS)
        return dataclasses.replace(self, tokens=self.tokens * kept + tokens, rounds=self.rounds * kept + rounds)

    def aged(self, rounds: int, rate: float) -> "Evidence":
        """After so many rounds of a row in another way, and the rate that is known now."""
        kept = math.exp(-rounds / STALE_ROUNDS)
        return dataclasses.replace(self, tokens=self.tokens * kept, rounds=self.rounds * kept, rate=rate)


@dataclasses.dataclass(frozen=True)
class Pick:
    """A way by its number, and for how many rounds at most; ``loses``: seconds of a round that a trial is expected to lose, 0
    where it is no trial; ``switch``: and once besides."""

    way: int
    rounds: int
    loses: float = 0.0
    switch: float = 0.0


def most_promising(seconds: Sequence[float], evidence: Sequence[Evidence]) -> tuple[int, float]:
    """The way with the best promise, and that promise, in tokens per second and row."""
    promises = [each.mean / cost for each, cost in zip(evidence, seconds, strict=True)]
    return promises.index(max(promises)), max(promises)


def pick(
    seconds: Sequence[float],
    evidence: Sequence[Evidence],
    busy: int,
    allowance: float,
    least: Sequence[float] | None = None,
    latest: int | None = None,
    switch: float = 0.0,
) -> Pick:
    """The way with the best promise, or one that is worth a trial.

    Args:
      seconds: of a round in each way.
      busy: rows that hold a request.
      allowance: seconds that a trial may lose.
      least: seconds that a round may turn out to take, where these are fewer.
      latest: the way that ran last. A trial of the time of another begins with rounds that are not timed.
      switch: seconds that a trial of another costs besides its rounds.
    """
    best, promise = most_promising(seconds, evidence)
    trial, hoped = None, promise
    for way, (each, cost, fewest) in enumerate(zip(evidence, seconds, least or seconds, strict=True)):
        loses, is_new = max(0.0, cost - each.mean / promise), way != latest
        rounds = TRIAL_ROUNDS if fewest < cost else -(-TRIAL_ROUNDS // busy)
        cold = COLD_ROUNDS if fewest < cost and is_new else 0
        if way != best and each.most / fewest > hoped and (cold + rounds) * loses + is_new * switch <= allowance:
            trial, hoped = Pick(way, cold or rounds, loses, is_new * switch), each.most / fewest
    if trial is not None:
        return trial
    known = max(1, int(evidence[best].weight) // busy)  # as many again as are known, so that a guess is soon replaced
    return Pick(best, min(known, max(1, int(REVIEW_SECONDS / seconds[best]))))


Key = tuple[int, int]  # rows, and the number of the way


class Picker:
    """Picks again and again, and is told what came of it.

    Args:
      seconds: of a round, by the rows that it decodes and by the number of the way.
      lengths: L of each way, 0 for plain decoding.
      call: seconds of a call besides its rounds.
    """

    def __init__(self, seconds: Mapping[Key, float], lengths: Sequence[int], call: float = 0.0):
        self.evidence, self.call = [Evidence(length) for length in lengths], call
        sizes = {rows for rows, _ in seconds}
        self.times = {rows: RoundTimes([seconds[rows, way] for way in range(len(lengths))], call) for rows in sizes}
        self._latest: Key | None = None  # that a call was of
        self._allowance = self._most_at_once(max(sizes))
        self._last = Pick(0, 1)

    @property
    def seconds(self) -> dict[Key, float]:
        """Of a round, by rows and way, as far as it is known."""
        return {(rows, way): cost for rows, times in self.times.items() for way, cost in enumerate(times.rounds)}

    def pick(self, rows: int, busy: int) -> Pick:
        """What to run next with programs of so many rows, of which so many are busy."""
        times = self.times[rows]
        seconds, (best, _) = times.rounds, most_promising(times.rounds, self.evidence)
        doubts = [times.doubt(way, best) for way in range(len(seconds))]
        least = [cost * (1 - doubt * (doubt > LEAST_DOUBT)) for cost, doubt in zip(seconds, doubts, strict=True)]
        latest = self._latest[1] if self._latest and self._latest[0] == rows else None
        self._last = pick(seconds, self.evidence, busy, self._allowance, least, latest, SWITCH_CALLS * self.call)
        return self._last

    def saw(self, rows: int, rounds: int, row_rounds: int, tokens: int, seconds: float | None = None) -> None:
        """What came of the last pick: so many rounds, in so many rounds of single rows, with so many tokens, in one call of so many
        ``seconds``; None where processes that decide together would not see the same."""
        if not row_rounds:
            return
        last, most = self._last, self._most_at_once(rows)
        key, before, self._latest = (rows, last.way), self._latest, (rows, last.way)
        earned = TRIAL_SHARE * rounds * self.times[rows].rounds[last.way]
        self._allowance = min(most, self._allowance + earned) - rounds * last.loses - last.switch
        own = self.evidence[last.way].behind(tokens, row_rounds)
        fading = FIRST_RATE + (own.rate - FIRST_RATE) * math.exp(-row_rounds / STALE_ROUNDS)  # without drafts nothing is known
        rate = rate_of(own.mean, own.length) if own.length else fading
        self.evidence = [
            dataclasses.replace(own, rate=rate) if way == last.way else each.aged(row_rounds, rate)
            for way, each in enumerate(self.evidence)
        ]
        if seconds is None:
            self.times[rows].settle()
        elif key == before or rounds >= WARM_ROUNDS:
            self.times[rows].saw(last.way, rounds, seconds)

    def _most_at_once(self, rows: int) -> float:
        """Seconds that trials may lose, however long there was nothing to try: of rounds of the way with the best promise."""
        seconds = self.times[rows].rounds
        return MOST_TRIALS * seconds[most_promising(seconds, self.evidence)[0]] + SWITCH_CALLS * self.call
