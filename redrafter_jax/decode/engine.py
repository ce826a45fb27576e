"""Prompts of token ids -> replies, batch by batch, from any thread. Compiled programs are shared by all requests of a bucket.

    engine = Engine(load_target(folder), Recurrent(load_drafter(other), Shape(4, 4)))
    for reply in engine.generate([[1, 15, 27]], Sampling(temperature=0.7), Limits(new=64), seeds=[3]):
        print(reply.token_ids, reply.tokens_per_step)

Not here: text, files, options (`infer/`).
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import jax
import numpy as np

from redrafter_jax.decode import loop, prefill
from redrafter_jax.decode.batch import Request, make_requests, repeat
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.reply import Progress, Reply
from redrafter_jax.decode.report import Report
from redrafter_jax.decode.request import Limits, Sampling, check_stop_ids, require, wrong_number
from redrafter_jax.decode.room import Inputs, room_for
from redrafter_jax.decode.runner import Runner
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target

POLL_SECONDS = 0.05
Watch = Callable[[list[Reply]], Collection[int]]
"""Of the replies so far, at each report: the rows to end now, whatever they asked for."""


class Engine:
    """A target and what proposes for it; decodes batches of prompts on the mesh of the target.

    shapes: others, in which a `scheduler` that adapts may draft in place of the proposer's own; one of length 0 is plain decoding.
    ``proposer`` is what was given, as it decodes (`Proposer.prepare`). ``runner`` has the programs.

    Raises:
      BadInput: a stop id is none of the target's, or the proposer is none or does not fit the target.
    """

    def __init__(
        self, target: Target, proposer: Proposer | None = None, stop_ids: Sequence[int] = (), shapes: Sequence[Shape] = ()
    ):
        self.runner = Runner(target, Plain() if proposer is None else _check_proposer(proposer), shapes)
        self.stop_ids = np.asarray(sorted(check_stop_ids(stop_ids, target.config.vocab_size)) or [-1], np.int32)

    @property
    def target(self) -> Target:
        return self.runner.target

    @property
    def proposer(self) -> Proposer:
        return self.runner.proposer

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self.runner.mesh

    @property
    def compile_seconds(self) -> float:
        return self.runner.compile_seconds

    def autoregressive(self) -> "Engine":
        """The same target without a proposer: plain decoding, by the same loop."""
        stops = [int(token) for token in self.stop_ids if token >= 0]
        plain = Engine(self.target, None, stop_ids=stops)
        plain.runner.on_compile = self.runner.on_compile
        return plain

    def generate(
        self,
        prompts: Iterable[Sequence[int]],
        sampling: Sampling | Iterable[Sampling] = Sampling(),
        limits: Limits | Iterable[Limits] = Limits(),
        seeds: Iterable[int] | None = None,
        batch: int = 1,
        stop_ids: Iterable[int] | Iterable[Iterable[int]] | None = None,
        n: int = 1,
    ) -> Iterator[Reply]:
        """Replies in the order of the prompts, ``batch`` of them decoded at a time: as one ends, the next prompt takes its row.

        sampling, limits, stop_ids: one for all prompts, or a list with one for each; stop_ids None: the engine's.
        seeds: one for each prompt; None for 0, 1, 2 and so on.
        n: replies to each prompt, one after the other, that differ in `Reply.sample`. The first is the only one of n = 1, and no
        two share their noise, also not with those of another seed (`policy.make_policy`).

        Raises:
          BadInput: a prompt, what is given for one, ``batch`` or ``n`` cannot be used.
        """
        require("batch", wrong_number("batch_size", batch))
        return self._in_batches(repeat(self.requests(prompts, sampling, limits, seeds, stop_ids), n), batch)

    def _in_batches(self, requests: list[Request], batch: int) -> Iterator[Reply]:
        if len(requests) > batch > 1:
            yield from in_order(self.scheduler(batch, requests), requests)
            return
        for first in range(0, len(requests), batch):
            *_, last = self._decode(requests[first : first + batch], batch, rounds=loop.ALL_ROUNDS)
            yield from last.replies

    def stream(
        self,
        prompts: Iterable[Sequence[int]],
        sampling: Sampling | Iterable[Sampling] = Sampling(),
        limits: Limits | Iterable[Limits] = Limits(),
        seeds: Iterable[int] | None = (0,),
        rows: int = 0,
        rounds: int | None = None,
        stop_ids: Iterable[int] | Iterable[Iterable[int]] | None = None,
        samples: Iterable[int] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Progress]:
        """One batch, reported after the prefill and then every ``rounds`` rounds until every reply is complete. None: about
        every `POLL_SECONDS`, for a person who reads along; not for several processes, whose clocks differ.

        ``rows`` pads the batch (a row without a prompt is done before it starts), so that a last, smaller batch runs the
        same program. ``samples``: which of the replies to its seed each row gives (`generate`, n); None for the first.
        ``watch`` is called before each report with its replies, and returns the rows to end there; of several processes each
        has to return the same rows. The rest is as for `generate`.

        Raises:
          BadInput: as for `generate`, or there is no prompt.
        """
        require("rows", wrong_number("batch_size", rows, zero="as many as prompts"))
        requests = self.requests(prompts, sampling, limits, seeds, stop_ids, samples)
        if not requests:
            raise BadInput("there should be at least one prompt")
        yield from self._decode(requests, rows, rounds, watch)

    def scheduler(
        self, rows: int, requests: Sequence[Request], prompt: int = 0, *, reuses: bool = True, adapts: bool = False
    ) -> Scheduler:
        """A running batch of so many rows, empty, with room for requests like these, and for prompts of so many tokens; reuses,
        adapts: as of `Scheduler`."""
        require("rows", wrong_number("batch_size", rows))
        deepest = max(way.round.length for way in (self.runner.ways if adapts else (self.proposer,)))
        return Scheduler(self.runner, rows, room_for(requests, self.runner.context, deepest, prompt), reuses=reuses, adapts=adapts)

    def requests(self, prompts, sampling, limits, seeds, stop_ids=None, samples=None) -> list[Request]:
        """What a scheduler takes, one for each prompt. Arguments and errors as for `stream`."""
        config = self.target.config
        stop_ids = [token for token in self.stop_ids.tolist() if token >= 0] if stop_ids is None else stop_ids
        vocab, context = config.vocab_size, config.max_position_embeddings
        return make_requests(prompts, sampling, limits, seeds, stop_ids, vocab, context, samples)

    def _decode(self, requests: list[Request], rows: int, rounds: int | None, watch: Watch | None = None) -> Iterator[Progress]:
        """One batch."""
        inputs, bucket = self._inputs(requests, rows)
        programs = self.runner.programs(inputs, bucket)
        report = Report(requests)
        state = self.runner.call(programs.start, *inputs)
        report.begin_decoding()
        (state, progress), count = self._look(state, report, watch), rounds or 1
        yield progress
        while not all(progress.done):
            looked = time.perf_counter()
            state = self.runner.call(programs.run, state, np.int32(count), np.int32(loop.ALL_ROWS))
            state, progress = self._look(state, report, watch)
            if rounds is None:
                count = max(1, int(count * min(2.0, POLL_SECONDS / (time.perf_counter() - looked))))
            yield progress

    def _look(self, state: DecodeState, report: Report, watch: Watch | None) -> tuple[DecodeState, Progress]:
        """The replies so far; and the state, less the rows that the caller ends."""
        host = self.runner.fetch(report.wanted(state))
        progress = report.read(host)
        ended = watch(progress.replies) if watch is not None else ()
        if not ended:
            return state, progress
        report.end(ended)
        return self.runner.end(state, ended), report.read(host)

    def prepare(self, prompts, sampling, limits, seeds, rows: int = 0, stop_ids=None) -> tuple[Inputs, prefill.Bucket]:
        """What `loop.start` takes besides the models: the batch as arrays, and its bucket. Arguments as for `stream`."""
        return self._inputs(self.requests(prompts, sampling, limits, seeds, stop_ids), rows)

    def _inputs(self, requests: list[Request], rows: int) -> tuple[Inputs, prefill.Bucket]:
        room = room_for(requests, self.runner.context, self.proposer.round.length)
        if any(request.scores_prompt for request in requests):
            raise BadInput("scores_prompt is for a scheduler whose room has scores")
        return self.runner.put(requests, max(rows, len(requests)), room), room.bucket


def _check_proposer(proposer: object) -> Proposer:
    if isinstance(proposer, Drafter):
        raise BadInput("proposer should say how the head drafts, such as Recurrent(drafter, Shape(4, 4)), not be the head alone")
    if not isinstance(proposer, Proposer):
        raise BadInput(f"proposer should be a Proposer, such as Recurrent(drafter, Shape(4, 4)), not {shown(proposer)}")
    return proposer


def in_order(scheduler: Scheduler, requests: Iterable[Request]) -> Iterator[Reply]:
    """The replies to all of them, in their order, each as soon as those before it are complete."""
    tickets = [scheduler.submit(request) for request in requests]
    replies: dict[int, Reply] = {}
    for ticket in tickets:
        while ticket not in replies:
            replies |= {event.ticket: event.reply for event in scheduler.step() if event.done}
        yield replies.pop(ticket)
