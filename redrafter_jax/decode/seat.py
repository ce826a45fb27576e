"""Requests of a running batch, and what became of them."""

import dataclasses
from collections.abc import Callable, Collection

from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.reply import Reply


@dataclasses.dataclass(frozen=True)
class Event:
    """What a step brought to a request: whether it is complete, and its reply, which is None where it is neither complete nor
    followed; count: tokens of the reply so far; cached: tokens of its prompt that were not read, because a row had them."""

    ticket: int
    reply: Reply | None
    done: bool
    count: int
    cached: int = 0


Watch = Callable[[list[Event]], Collection[int]]
"""Of what a step brought: the tickets to end now, whatever they asked for."""


@dataclasses.dataclass(frozen=True)
class Seat:
    """A request that waits or has a row. follows: its reply is wanted at every look; began: when it was submitted, read: when its
    prompt was, in seconds of `time.perf_counter`; taken: tokens of its prompt that a row had."""

    ticket: int
    request: Request
    follows: bool
    began: float
    read: float = 0.0
    taken: int = 0

    def in_cache(self, reply: Reply) -> list[int]:
        """The tokens whose keys its row has, once it ended with this reply: all but the newest."""
        if self.request.scores_prompt or reply.finish_reason == "error":
            return []
        return [*self.request.prompt, *reply.token_ids[:-1]]
