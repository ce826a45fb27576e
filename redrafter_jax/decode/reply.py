"""Replies, complete or in progress, and the tokens that a target pass delivered to them."""

import dataclasses
from collections.abc import Sequence

from redrafter_jax.decode import markup, metrics


@dataclasses.dataclass(frozen=True)
class Reply:
    """What was generated for one prompt.

    drafted: which tokens were accepted drafts; finish_reason: ``stop``, ``length``, ``ended`` where the caller ended it, or
    ``error`` where the target's logits were not finite behind the tokens that are there; stop_reason: the stop id, or the stop
    string, where finish_reason is ``stop``; rounds: target passes after the prefill; accepted_histogram: how many of
    them delivered 0..L drafts and one token more; seconds: from the start of its batch, prefill included, to its last token;
    first_token_seconds: from there to the end of the prefill; index: the number of its prompt in the call, from 0; sample:
    which of several replies to a prompt with one seed it is, from 0.

    logprobs: the log-probability of each token; top_logprobs: for each token the ids of the likeliest ones and their
    log-probabilities, the likeliest first. Both are None where `Sampling.logprobs` is 0, which says what they are of.
    prompt_logprobs, prompt_top_logprobs: likewise of the prompt's tokens but the first, where `Request.scores_prompt`.

    scored: for the first token of each target pass the nodes that the pass scored, with the root; 0 for other tokens.

    cached_tokens: of its prompt, those that were not read because a row of a running batch had them.
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
    sample: int = 0
    stop_reason: int | str | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    scored: list[int] = dataclasses.field(default_factory=list, repr=False)
    cached_tokens: int = 0
    prompt_logprobs: list[float] | None = None
    prompt_top_logprobs: list[dict[int, float]] | None = None

    @property
    def metrics(self) -> dict:
        """How well drafting went, as vLLM says it of a request (`metrics.speculative_decoding`)."""
        return {"speculative_decoding": metrics.speculative_decoding(self.accepted_histogram, self.scored)}

    @property
    def tokens_per_step(self) -> float | None:
        """Of this reply alone."""
        return tokens_per_step(len(self.token_ids), 1, self.rounds)

    @property
    def caption(self) -> str:
        """What a notebook writes below the reply."""
        pace = "" if self.tokens_per_step is None else f", {self.tokens_per_step:.2f} tokens per step"
        return f"{len(self.token_ids)} tokens, {self.rounds} target passes after the prompt's{pace}; ended by {self.finish_reason}."

    def _repr_html_(self) -> str:
        """The ids, as a notebook shows them."""
        return markup.mark_drafts([(f"{t} ", d) for t, d in zip(self.token_ids, self.drafted, strict=True)], self.caption)


def cut(reply: Reply, count: int, stop_reason: str) -> Reply:
    """The reply as if decoding had stopped at its first ``count`` tokens, at least one, for this reason: also its figures are
    what they had been then, however many rounds came after. A round delivers drafts and then one token that is none."""
    drafted = reply.drafted[:count]
    rounds = "".join(map(str, map(int, drafted[1:]))).split("0")  # the drafts of each; the last one is cut off, or empty
    delivered = [len(drafts) + 1 for drafts in rounds[:-1]] + [len(drafts) for drafts in rounds[-1:] if drafts]
    return dataclasses.replace(
        reply,
        token_ids=reply.token_ids[:count],
        drafted=drafted,
        scored=reply.scored[:count],
        finish_reason="stop",
        stop_reason=stop_reason,
        rounds=len(delivered),
        accepted_histogram=[delivered.count(1 + accepted) for accepted in range(len(reply.accepted_histogram))],
        logprobs=None if reply.logprobs is None else reply.logprobs[:count],
        top_logprobs=None if reply.top_logprobs is None else reply.top_logprobs[:count],
    )


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
