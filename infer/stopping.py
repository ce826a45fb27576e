"""Stop strings: a reply ends where one of them appears in its text, whatever tokens it is made of.

    stopper = Stopper(tokenizer, Stops(("\\n\\n",)))
    for progress in stopper.stream(engine, [prompt], sampling, limits, seeds=[0]):
        print(stopper.text_of(prompt, progress.replies[0]))

The semantics are those of OpenAI's interface and of vLLM: the text is cut before the stop string, or behind it with ``include``;
the token ids go up to the one that completed it; what appears within the first `Limits.min_new` tokens ends nothing. The
library knows no text, so it decodes a few rounds at a time, and the rows whose text has ended are ended in between. A reply is
cut to what it was at its stop string, so it does not depend on when that was noticed.

Nothing here starts JAX before a reply is decoded.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from infer import text
from infer.text import Detokenizer
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.reply import Progress, Reply, cut
from redrafter_jax.decode.request import Limits, Sampling
from redrafter_jax.errors import BadInput, shown

if TYPE_CHECKING:  # it starts JAX
    from redrafter_jax.decode.scheduler import Scheduler
    from redrafter_jax.decode.seat import Event

LOOK_ROUNDS = 8  # rounds between two looks at the text; a row decodes at most so many behind its stop string


@dataclasses.dataclass(frozen=True)
class Stops:
    """The strings that end a reply. include: the text keeps the one that ended it.

    Raises:
      BadInput: one is empty, or no text.
    """

    strings: tuple[str, ...] = ()
    include: bool = False

    def __post_init__(self):
        for string in self.strings:
            if not isinstance(string, str) or not string:
                raise BadInput(f"stop should be texts of at least one character, not {shown(string)}")


class StopText:
    """A `Detokenizer` of a reply that ends at its first stop string: the one that is complete first, and of several the longest.

    What may be the beginning of a stop string is kept back until it is known. found: the stop string, None so far; count:
    tokens up to the one that completed it.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Stops, special: Mapping[int, str], min_new: int = 0):
        self.detokenizer, self.stops, self.special, self.min_new = detokenizer, stops, special, min_new
        self.count = 0
        self.found: str | None = None
        self.kept_back = ""

    def push(self, token: int) -> str:
        """The text that this token adds, as far as it is known to be none of a stop string; nothing behind one."""
        if self.found is not None:
            return ""
        self.count += 1
        if token in self.special and self.count > self.min_new:
            return self._end_at(self.special[token])
        return self._add(self.detokenizer.push(token))

    def flush(self) -> str:
        """What is left when no more tokens come."""
        if self.found is not None:
            return ""
        left = self._add(self.detokenizer.flush())
        kept_back, self.kept_back = self.kept_back, ""
        return left + kept_back

    def _add(self, new: str) -> str:
        known, so_far = self.kept_back + new, len(self.kept_back)
        ends = [] if self.count <= self.min_new else [(end, s) for s in self.stops.strings if (end := _end(known, s, so_far))]
        if ends:
            end, self.found = min(ends, key=lambda found: (found[0], -len(found[1])))
            self.kept_back = ""
            return known[: end if self.stops.include else end - len(self.found)]
        size = _beginning(known, self.stops.strings)
        self.kept_back = known[len(known) - size :]
        return known[: len(known) - size]

    def _end_at(self, special: str) -> str:
        before, self.kept_back = self.kept_back + self.detokenizer.flush(), ""
        self.found = special
        return before + special if self.stops.include else before


def _end(known: str, string: str, so_far: int) -> int | None:
    """Where the string first ends in the text behind its first ``so_far`` characters; None where it does not."""
    at = known.find(string, max(0, so_far + 1 - len(string)))
    return None if at < 0 else at + len(string)


def _beginning(known: str, strings: Sequence[str]) -> int:
    """How many of the last characters are the beginning of a string, at most."""
    longest = min(len(known), max(map(len, strings), default=1) - 1)
    return next((size for size in range(longest, 0, -1) if any(s.startswith(known[-size:]) for s in strings)), 0)


class Stopper:
    """Decodes to stop strings, or as the engine does where there are none. A stop string that is a special token of the tokenizer,
    and so never part of a text, ends a reply as well.

    Raises:
      BadInput: there are stop strings, but there is no tokenizer.
    """

    def __init__(self, tokenizer, stops: Stops = Stops(), subject: str = "stop"):
        if stops.strings and tokenizer is None:
            raise BadInput(f"{subject} needs text, but the target's folder has no tokenizer")
        self.tokenizer, self.stops = tokenizer, stops
        added = tokenizer.added_tokens_decoder.items() if stops.strings else ()
        self.special = {token: str(entry) for token, entry in added if entry.special and str(entry) in stops.strings}

    def text(self, prompt: Sequence[int], min_new: int = 0) -> StopText:
        """The text of a reply to this prompt, for its tokens one by one."""
        return StopText(Detokenizer(self.tokenizer, list(prompt)), self.stops, self.special, min_new)

    def text_of(self, prompt: Sequence[int], reply: Reply) -> str | None:
        """The text of a reply of `stream`; None without a tokenizer."""
        if not isinstance(reply.stop_reason, str):
            return text.text_of(self.tokenizer, list(prompt), reply.token_ids)
        found = self.text(prompt, min_new=len(reply.token_ids) - 1)
        return "".join(map(found.push, reply.token_ids)) + found.flush()

    def stream(
        self,
        engine,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        limits: Limits | Sequence[Limits],
        seeds: Sequence[int],
        rows: int = 0,
        rounds: int | None = None,
        samples: Sequence[int] | None = None,
        stop_ids: Sequence[int] | None = None,
    ) -> Iterator[Progress]:
        """`Engine.stream`, with replies that end at their stop strings: then finish_reason is ``stop``, and stop_reason the
        string."""
        given = {"samples": samples, "stop_ids": stop_ids}
        if not self.stops.strings:
            yield from engine.stream(prompts, sampling, limits, seeds, rows, rounds, **given)
            return
        each = [limits] * len(prompts) if isinstance(limits, Limits) else limits
        watched = [Watched(self.text(prompt, limit.min_new)) for prompt, limit in zip(prompts, each, strict=True)]

        def watch(replies: list[Reply]) -> list[int]:
            return [row for row, reply in enumerate(replies) if watched[row].has_stopped(reply)]

        rounds = None if rounds is None else min(rounds, LOOK_ROUNDS)
        for progress in engine.stream(prompts, sampling, limits, seeds, rows, rounds, **given, watch=watch):
            parts = zip(watched, progress.replies, progress.done, strict=True)
            yield Progress([row.cut(reply, done) for row, reply, done in parts], progress.done)

    def generate(self, engine, prompts, sampling, limits, seeds, rows: int, samples=None, stop_ids=None) -> list[Reply]:
        """The replies to these prompts, in their order. They are decoded as one batch where there are rows for all of them, and
        else as rows become free; arguments as of `stream`."""
        from redrafter_jax.decode import loop  # brings JAX, which what imports this for `Stops` does without

        given = {"samples": samples, "stop_ids": stop_ids}
        if len(prompts) <= rows or rows == 1:
            found = []
            for first in range(0, len(prompts), rows):
                part = slice(first, first + rows)
                own = {"samples": samples[part] if samples is not None else None, "stop_ids": stop_ids}
                *_, last = self.stream(engine, prompts[part], sampling, limits, seeds[part], rows, loop.ALL_ROUNDS, **own)
                found += last.replies
            return found
        requests = engine.requests(prompts, sampling, limits, seeds, **given)
        running = StopScheduler(self, engine.scheduler(rows, requests))
        running.scheduler.prepare()
        asked, found = [running.submit(request) for request in requests], {}
        while len(found) < len(asked):
            found |= {event.ticket: event.reply for event in running.step(loop.ALL_ROUNDS) if event.done}
        return [found[ticket] for ticket in asked]


class StopScheduler:
    """A `Scheduler` whose requests end at their stop strings as well; every event's reply is cut to what it was there."""

    def __init__(self, stopper: Stopper, scheduler: "Scheduler"):
        self.scheduler = scheduler
        self._stopper = stopper
        self._watched: dict[int, Watched] = {}

    def submit(self, request: Request) -> int:
        """`Scheduler.submit`."""
        if not self._stopper.stops.strings:
            return self.scheduler.submit(request)
        ticket = self.scheduler.submit(request, follows=True)
        self._watched[ticket] = Watched(self._stopper.text(request.prompt, request.limits.min_new))
        return ticket

    def step(self, rounds: int) -> "list[Event]":
        """`Scheduler.step`."""
        if not self._stopper.stops.strings:
            return self.scheduler.step(rounds)
        return [self._cut(event) for event in self.scheduler.step(min(rounds, LOOK_ROUNDS), self._stopped)]

    def _stopped(self, events: "Sequence[Event]") -> list[int]:
        return [event.ticket for event in events if self._watched[event.ticket].has_stopped(event.reply)]

    def _cut(self, event: "Event") -> "Event":
        watched = self._watched.pop(event.ticket) if event.done else self._watched[event.ticket]
        return dataclasses.replace(event, reply=watched.cut(event.reply, event.done))


class Watched:
    """The text of a reply that grows, as far as it was looked at."""

    def __init__(self, found: StopText):
        self.text, self.seen = found, 0

    def has_stopped(self, reply: Reply) -> bool:
        """Whether there is a stop string in what it has so far."""
        for token in reply.token_ids[self.seen :]:
            self.text.push(token)
        self.seen = len(reply.token_ids)
        return self.text.found is not None

    def cut(self, reply: Reply, is_done: bool) -> Reply:
        """The reply that was looked at, up to its stop string."""
        if is_done:
            self.text.flush()
        return reply if self.text.found is None else cut(reply, self.text.count, self.text.found)
