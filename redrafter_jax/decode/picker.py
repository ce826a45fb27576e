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

FIRST_RATE = 0.6  # how often a draft is accepted behind accepted ones, before anything is known
GUESS_ROUNDS = 16.0  # rounds of a row that a guess from that rate is worth
RECENT_ROUNDS = 1024.0  # rounds of a row, after which what was seen of a way counts for 1/e
STALE_ROUNDS = 2048.0  # rounds of a row in other ways, after which it counts for as little
DEVIATIONS = 1.0  # above the mean, that a way may turn out to be
TRIAL_ROUNDS = 8  # rounds of a row in a trial, in one row or shared by several; where its time is in doubt, rounds of all rows
TRIAL_SHARE = 0.005  # of the time, that trials may lose
MOST_TRIALS = 8.0  # rounds of the best way whose time trials may lose at once: at first, and however long there was nothing to try
MEASURED_ROUNDS = 2.0  # that the time measured beforehand is worth, perhaps beside other work that was starting
DOUBT = 0.3  # share of a round's time by which it may turn out to be faster, where nothing is known; less by what is (`_doubt`)
LEAST_DOUBT = 0.1  # share below which it is believed
COLD_ROUNDS = 2  # that a trial begins with
SWITCH_CALLS = 6.0  # calls whose time besides their rounds a trial costs: two more, and weights that are not in the caches, twice
WARM_ROUNDS = 32  # of a call, from which on it is timed also where it comes behind another way
TIMED_ROUNDS = 512.0  # after which a time that was measured counts for 1/e
TIMED_CALLS = 64.0  # the same of calls
MOST_CHANGE = 2.0  # of a time in one measurement: what stops the machine for a moment says nothing of a round
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


def pick(
    seconds: Sequence[float],
    evidence: Sequence[Evidence],
    busy: int,
    allowance: float,
    least: Sequence[float] | None = None,
    switch: Sequence[float] | None = None,
) -> Pick:
    """The way with the best promise, or one that is worth a trial.

    Args:
      seconds: of a round in each way.
      busy: rows that hold a request.
      allowance: seconds that a trial may lose.
      least: seconds that a round may turn out to take, where these are fewer.
      switch: seconds that a trial of each way costs besides its rounds; none by default.
    """
    promises = [each.mean / cost for each, cost in zip(evidence, seconds, strict=True)]
    best = promises.index(max(promises))
    trial, hoped = None, promises[best]
    given = zip(evidence, seconds, least or seconds, switch or [0.0] * len(seconds), strict=True)
    for way, (each, cost, fewest, change) in enumerate(given):
        loses = max(0.0, cost - each.mean / promises[best])
        rounds = TRIAL_ROUNDS if fewest < cost else -(-TRIAL_ROUNDS // busy)
        if way != best and each.most / fewest > hoped and rounds * loses + change <= allowance:
            trial, hoped = Pick(way, rounds, loses, change), each.most / fewest
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
        self.seconds, self.evidence = dict(seconds), [Evidence(length) for length in lengths]
        self.call, self._timed = call, dict.fromkeys(seconds, MEASURED_ROUNDS)
        self._latest: Key | None = None  # that a call was of
        self._allowance = self._most_at_once(max(rows for rows, _ in seconds))
        self._last = Pick(0, 1)

    def pick(self, rows: int, busy: int) -> Pick:
        """What to run next with programs of so many rows, of which so many are busy."""
        seconds = self._of(rows)
        least = [cost * (1 - self._doubt((rows, way))) for way, cost in enumerate(seconds)]
        switch = [SWITCH_CALLS * self.call * (self._latest != (rows, way)) for way in range(len(seconds))]
        self._last = found = pick(seconds, self.evidence, busy, self._allowance, least, switch)
        if found.loses and least[found.way] < seconds[found.way] and self._latest != (rows, found.way):
            self._last = dataclasses.replace(found, rounds=COLD_ROUNDS)
        return self._last

    def _doubt(self, key: Key) -> float:
        doubt = DOUBT / (1 + self._timed[key] / TRIAL_ROUNDS)
        return doubt if doubt > LEAST_DOUBT else 0.0

    def saw(self, rows: int, rounds: int, row_rounds: int, tokens: int, seconds: float | None = None) -> None:
        """What came of the last pick: so many rounds, in so many rounds of single rows, with so many tokens, in one call of so many
        ``seconds``; None where processes that decide together would not see the same."""
        if not row_rounds:
            return
        last, most = self._last, self._most_at_once(rows)
        key, before, self._latest = (rows, last.way), self._latest, (rows, last.way)
        earned = TRIAL_SHARE * rounds * self.seconds[rows, last.way]
        self._allowance = min(most, self._allowance + earned) - rounds * last.loses - last.switch
        own = self.evidence[last.way].behind(tokens, row_rounds)
        fading = FIRST_RATE + (own.rate - FIRST_RATE) * math.exp(-row_rounds / STALE_ROUNDS)  # without drafts nothing is known
        rate = rate_of(own.mean, own.length) if own.length else fading
        self.evidence = [
            dataclasses.replace(own, rate=rate) if way == last.way else each.aged(row_rounds, rate)
            for way, each in enumerate(self.evidence)
        ]
        if seconds is None:
            self._timed[key] += rounds  # nothing more comes to be known
        elif key == before or rounds >= WARM_ROUNDS:
            self._time(key, rounds, seconds)

    def _time(self, key: Key, rounds: int, seconds: float) -> None:
        """Counts a call of so many seconds. How much longer it took than expected is put down to its rounds and to the call itself
        in equal proportion, since one time does not tell them apart."""
        for other in self._timed:
            if other != key and other[0] == key[0]:
                self._timed[other] *= math.exp(-rounds / STALE_ROUNDS)
        was, known = self.seconds[key], self._timed[key] * math.exp(-rounds / TIMED_ROUNDS)
        change = min(max(seconds / (self.call + rounds * was), 1 / MOST_CHANGE), MOST_CHANGE)
        self.seconds[key] = was * (known + change * rounds) / (known + rounds)
        self.call *= 1 + (change - 1) / TIMED_CALLS
        self._timed[key] = known + rounds

    def _of(self, rows: int) -> list[float]:
        return [self.seconds[rows, way] for way in range(len(self.evidence))]

    def _most_at_once(self, rows: int) -> float:
        """Seconds that trials may lose, however long there was nothing to try: of rounds of the way with the best promise."""
        best, _ = min(zip(self._of(rows), self.evidence, strict=True), key=lambda each: each[0] / each[1].mean)
        return MOST_TRIALS * best + SWITCH_CALLS * self.call
