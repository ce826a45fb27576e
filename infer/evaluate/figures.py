"""From what was decoded to figures: ratios with their standard errors, and acceptance by position. Nothing here starts JAX."""

import dataclasses
import math
from collections.abc import Sequence

from redrafter_jax.decode import metrics
from redrafter_jax.decode.reply import Reply


@dataclasses.dataclass(frozen=True)
class RatioEstimate:
    """A ratio of sums and its standard error, each None where nothing says what it is."""

    value: float | None
    error: float | None


def ratio(over: Sequence[Sequence[float]], under: Sequence[Sequence[float]]) -> RatioEstimate:
    """The product of the sums ``over``, divided by the product of the sums ``under``, each a sum over the same units
    (conversations, or batches of them).

    Its standard error is that of a ratio estimator (Cochran, Sampling Techniques, 1977, 6.4): the relative error of unit i is
    e_i = the sum of x_i / sum(x) over ``over``, less the same over ``under``; with n units the standard error is the ratio times
    sqrt(n / (n - 1) * sum(e_i ^ 2)). Units that are slow for all methods alike cancel out in it.
    """
    sums_over, sums_under = [sum(each) for each in over], [sum(each) for each in under]
    if not all(sums_under):
        return RatioEstimate(None, None)
    value = math.prod(sums_over) / math.prod(sums_under)
    n = len(under[0])
    if n < 2 or not all(sums_over):
        return RatioEstimate(value, None)
    shares = [[x / total for x in each] for each, total in zip((*over, *under), (*sums_over, *sums_under), strict=True)]
    signs = [1] * len(over) + [-1] * len(under)
    errors = [sum(sign * share for sign, share in zip(signs, unit, strict=True)) for unit in zip(*shares, strict=True)]
    return RatioEstimate(value, value * math.sqrt(n / (n - 1) * sum(error * error for error in errors)))


@dataclasses.dataclass
class Answers:
    """What a method replied to the turns of one conversation."""

    replies: list[Reply] = dataclasses.field(default_factory=list)

    @property
    def delivered(self) -> int:
        """Tokens that rounds delivered: each reply's first is the prefill's."""
        return sum(max(len(reply.token_ids) - 1, 0) for reply in self.replies)

    @property
    def rounds(self) -> int:
        return sum(reply.rounds for reply in self.replies)


@dataclasses.dataclass(frozen=True)
class Spent:
    """What decoding some replies took: seconds, reading included; of them those of rounds; and passes of the target over all rows,
    after prompts were read."""

    seconds: float
    round_seconds: float
    passes: int

    @classmethod
    def on_batch(cls, replies: Sequence[Reply]) -> "Spent":
        """A batch lasts until its slowest row."""
        seconds = max(reply.seconds for reply in replies)
        return cls(seconds, seconds - replies[0].first_token_seconds, max(reply.rounds for reply in replies))


@dataclasses.dataclass
class Tally:
    """What a method did for the conversations that are decoded together. tokens: of all replies; passes: of the target after the
    prefill, each for all rows."""

    conversations: list[Answers]
    tokens: int = 0
    seconds: float = 0.0
    round_seconds: float = 0.0
    passes: int = 0

    def add(self, replies: Sequence[Reply], spent: Spent) -> None:
        """Replies that were decoded together."""
        self.tokens += sum(len(reply.token_ids) for reply in replies)
        self.seconds += spent.seconds
        self.round_seconds += spent.round_seconds
        self.passes += spent.passes


def tokens_per_step(conversations: Sequence[Answers]) -> RatioEstimate:
    """τ over conversations."""
    return ratio([[each.delivered for each in conversations]], [[each.rounds for each in conversations]])


def histogram(replies: Sequence[Reply]) -> list[int]:
    """How many rounds accepted 0..L drafts."""
    return [sum(counts) for counts in zip(*(reply.accepted_histogram for reply in replies), strict=True)]


def acceptance(counts: Sequence[int]) -> list[float]:
    """For i = 1..L the share of rounds that accepted at least i drafts, of `histogram`; empty where there was no round."""
    rounds = sum(counts)
    return [sum(counts[i:]) / rounds for i in range(1, len(counts))] if rounds else []


def row(own: Sequence[Tally], plain: Sequence[Tally]) -> dict:
    """The figures of a method over some batches of conversations, beside plain decoding of the same."""
    conversations = [each for work in own for each in work.conversations]
    replies = [reply for each in conversations for reply in each.replies]
    theirs = [reply for work in plain for each in work.conversations for reply in each.replies]
    counts = histogram(replies)
    tau = tokens_per_step(conversations)
    speed = ratio([_all(own, "tokens")], [_all(own, "seconds")])
    speedup = ratio([_all(own, "tokens"), _all(plain, "seconds")], [_all(own, "seconds"), _all(plain, "tokens")])
    in_steps = ratio([_all(own, "round_seconds"), _all(plain, "passes")], [_all(own, "passes"), _all(plain, "round_seconds")])
    same = [one.token_ids == other.token_ids for one, other in zip(replies, theirs, strict=True)]
    return {
        "conversations": len(conversations),
        "replies": len(replies),
        "tokens": sum(len(reply.token_ids) for reply in replies),
        "rounds": sum(counts),
        "tokens_per_step": tau.value,
        "tokens_per_step_error": tau.error,
        "acceptance_by_position": acceptance(counts),
        "accepted_histogram": counts,
        "tokens_per_second": speed.value,
        "speedup": speedup.value,
        "speedup_error": speedup.error,
        "round_seconds": ratio([_all(own, "round_seconds")], [_all(own, "passes")]).value,
        "round_over_plain": in_steps.value,
        "identical_replies": sum(same),
        "identical_tokens": sum(len(one.token_ids) for one, is_same in zip(replies, same, strict=True) if is_same),
        "metrics": {"speculative_decoding": metrics.speculative_decoding(counts, [n for reply in replies for n in reply.scored])},
    }


def _all(works: Sequence[Tally], name: str) -> list[float]:
    return [getattr(work, name) for work in works]


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The place of the first token that differs; None where all are the same."""
    if list(one) == list(other):
        return None
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
