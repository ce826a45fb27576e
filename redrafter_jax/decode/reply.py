"""Replies, complete or in progress, and the tokens that a target pass delivered to them."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Reply:
    """What was generated for one prompt.

    drafted: which tokens were accepted drafts; finish_reason: ``stop``, ``length``, or ``error`` where the target's logits
    were not finite behind the tokens that are there; rounds: target passes after the prefill; accepted_histogram: how many of
    them delivered 0..L drafts and one token more; seconds: from the start of its batch, prefill included, to its last token;
    first_token_seconds: from there to the end of the prefill; index: the number of its prompt in the call, from 0.
    """

    token_ids: list[int]
    drafted: list[bool]
    finish_reason: str
    rounds: int
    accepted_histogram: list[int]
    seconds: float
    seed: int
    first_token_seconds: float = 0.0
    index: int = 0

    @property
    def tokens_per_step(self) -> float | None:
        """Of this reply alone."""
        return tokens_per_step(len(self.token_ids), 1, self.rounds)


def tokens_per_step(tokens: int, replies: int, rounds: int) -> float | None:
    """Tokens that a target pass delivers: those of so many replies, less the first of each, which is the prefill's, over all
    rounds. Drafts that a limit or a stop id cut off are no tokens of a reply. None where there was no round."""
    return (tokens - replies) / rounds if rounds else None


def mean_tokens_per_step(replies: Sequence[Reply]) -> float | None:
    """Over all rounds of all replies. One that failed before its first token took nothing from the prefill."""
    begun = [reply for reply in replies if reply.token_ids]
    return tokens_per_step(sum(len(reply.token_ids) for reply in begun), len(begun), sum(reply.rounds for reply in replies))


@dataclasses.dataclass(frozen=True)
class Progress:
    """A batch while it is decoded: its replies so far, and which of them are complete."""

    replies: list[Reply]
    done: list[bool]
