"""Prompts of token ids -> replies, batch by batch, from any thread. Compiled programs are shared by all requests of a bucket.

    engine = Engine(load_target(folder), Recurrent(load_drafter(other), Shape(4, 4)))
    for reply in engine.generate([[1, 15, 27]], Sampling(temperature=0.7), Limits(new=64), seeds=[3]):
        print(reply.token_ids, reply.tokens_per_step)

Not here: text, files, options (`infer/`).
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import jax
import numpy as np

from redrafter_jax.decode import loop, prefill
from redrafter_jax.decode.batch import Request, make_requests, repeat, stop_id_table
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.decode.programs import Programs, compile_programs, flatten
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.reply import Progress, Reply
from redrafter_jax.decode.report import Report
from redrafter_jax.decode.request import Limits, Sampling, check_stop_ids, require, wrong_number
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target

POLL_SECONDS = 0.05
Watch = Callable[[list[Reply]], Collection[int]]
"""Of the replies so far, at each report: the rows to end now, whatever they asked for."""


class Engine:
    """A target and what proposes for it; decodes batches of prompts on the mesh of the target.

    ``proposer`` is what was given, as it decodes (`Proposer.prepare`).
    ``compile_seconds`` adds up what was spent on compiling; ``on_compile`` makes a context that the programs of each bucket
    are compiled in.

    Raises:
      BadInput: a stop id is none of the target's, or the proposer is none or does not fit the target.
    """

    def __init__(self, target: Target, proposer: Proposer | None = None, stop_ids: Sequence[int] = ()):
        self.target = target
        self.mesh: jax.sharding.Mesh = jax.tree.leaves(target)[0].sharding.mesh
        proposer = Plain() if proposer is None else _check_proposer(proposer)
        with jax.set_mesh(self.mesh):
            self.proposer = proposer.prepare(target)
        self._weights = flatten(target, self.proposer)
        self.stop_ids = np.asarray(sorted(check_stop_ids(stop_ids, target.config.vocab_size)) or [-1], np.int32)
        self.compile_seconds = 0.0
        self.on_compile: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        self._programs: dict[tuple, Programs] = {}

    def autoregressive(self) -> "Engine":
        """The same target without a proposer: plain decoding, by the same loop."""
        stops = [int(token) for token in self.stop_ids if token >= 0]
        plain = Engine(self.target, None, stop_ids=stops)
        plain.on_compile = self.on_compile
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
        """Replies in the order of the prompts, ``batch`` of them decoded at a time.

        sampling, limits, stop_ids: one for all prompts, or a list with one for each; stop_ids None: the engine's.
        seeds: one for each prompt; None for 0, 1, 2 and so on.
        n: replies to each prompt, one after the other, that differ in `Reply.sample`. The first is the only one of n = 1, and no
        two share their noise, also not with those of another seed (`policy.make_policy`). Each reads its prompt itself.

        Raises:
          BadInput: a prompt, what is given for one, ``batch`` or ``n`` cannot be used.
        """
        require("batch", wrong_number("batch_size", batch))
        return self._in_batches(repeat(self._requests(prompts, sampling, limits, seeds, stop_ids), n), batch)

    def _in_batches(self, requests: list[Request], batch: int) -> Iterator[Reply]:
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
        requests = self._requests(prompts, sampling, limits, seeds, stop_ids, samples)
        if not requests:
            raise BadInput("there should be at least one prompt")
        yield from self._decode(requests, rows, rounds, watch)

    def _requests(self, prompts, sampling, limits, seeds, stop_ids, samples=None) -> list[Request]:
        config = self.target.config
        stop_ids = [token for token in self.stop_ids.tolist() if token >= 0] if stop_ids is None else stop_ids
        vocab, context = config.vocab_size, config.max_position_embeddings
        return make_requests(prompts, sampling, limits, seeds, stop_ids, vocab, context, samples)

    def _decode(self, requests: list[Request], rows: int, rounds: int | None, watch: Watch | None = None) -> Iterator[Progress]:
        """One batch."""
        inputs, bucket = self._inputs(requests, rows)
        programs = self._programs_of(inputs, bucket)
        report = Report(requests)
        state = self._on_mesh(programs.start, self._weights, *inputs)
        report.begin_decoding()
        (state, progress), count = self._look(state, report, watch), rounds or 1
        yield progress
        while not all(progress.done):
            looked = time.perf_counter()
            state = self._on_mesh(programs.run, self._weights, state, np.int32(count))
            state, progress = self._look(state, report, watch)
            if rounds is None:
                count = max(1, int(count * min(2.0, POLL_SECONDS / (time.perf_counter() - looked))))
            yield progress

    def _look(self, state: DecodeState, report: Report, watch: Watch | None) -> tuple[DecodeState, Progress]:
        """The replies so far; and the state, less the rows that the caller ends."""
        host = self._on_mesh(processes.fetch, report.wanted(state))
        progress = report.read(host)
        ended = watch(progress.replies) if watch is not None else ()
        if not ended:
            return state, progress
        report.end(ended)
        rows = np.isin(np.arange(len(host["done"])), list(ended))
        with jax.set_mesh(self.mesh):
            rows_B = processes.put(rows, "data")
        return self._on_mesh(loop.end, state, rows_B), report.read(host)

    def _on_mesh(self, call: Callable, *arguments):
        """The result of a call, after waiting for it. A mesh belongs to a thread, so it is set for each call."""
        with jax.set_mesh(self.mesh):
            return jax.block_until_ready(call(*arguments))

    def prepare(
        self, prompts, sampling, limits, seeds, rows: int = 0, stop_ids=None
    ) -> tuple[tuple[jax.Array, ...], prefill.Bucket]:
        """What `loop.start` takes besides the models: the batch as arrays, and its bucket. Arguments as for `stream`."""
        return self._inputs(self._requests(prompts, sampling, limits, seeds, stop_ids), rows)

    def _inputs(self, requests: list[Request], rows: int) -> tuple[tuple[jax.Array, ...], prefill.Bucket]:
        rows = max(rows, len(requests))
        contexts = [request.limits.length or self.target.config.max_position_embeddings for request in requests]
        lengths = [len(request.prompt) for request in requests]
        news = [min(request.limits.new, context) for request, context in zip(requests, contexts, strict=True)]
        allowed = [min(new, context - length) for new, context, length in zip(news, contexts, lengths, strict=True)]
        bucket = prefill.bucket(max(lengths), max(news), self.proposer.round.length)
        tokens = np.zeros((rows, bucket.prompt), np.int32)
        for row, request in enumerate(requests):
            tokens[row, : lengths[row]] = request.prompt
        stops = stop_id_table([request.stop_ids for request in requests], rows)
        filler = rows - len(requests)
        with jax.set_mesh(self.mesh):
            inputs = (
                processes.put(tokens, "data", None),
                processes.put(np.asarray(lengths + [1] * filler, np.int32), "data"),
                processes.put(np.asarray(allowed + [0] * filler, np.int32), "data"),
                processes.put(stops, "data", None),
                make_policy(
                    [request.sampling for request in requests] + [Sampling()] * filler,
                    [request.seed for request in requests] + [0] * filler,
                    [request.sample for request in requests] + [0] * filler,
                    [request.limits.min_new for request in requests] + [0] * filler,
                ),
            )
        return inputs, bucket

    def _programs_of(self, inputs: tuple, bucket: prefill.Bucket) -> Programs:
        key = (bucket, jax.tree.structure(inputs), *(leaf.shape for leaf in jax.tree.leaves(inputs)))
        if key not in self._programs:
            began = time.perf_counter()
            with self.on_compile():
                self._programs[key] = self._on_mesh(compile_programs, self.target, self.proposer, inputs, bucket)
            self.compile_seconds += time.perf_counter() - began
        return self._programs[key]


def _check_proposer(proposer: object) -> Proposer:
    if isinstance(proposer, Drafter):
        raise BadInput("proposer should say how the head drafts, such as Recurrent(drafter, Shape(4, 4)), not be the head alone")
    if not isinstance(proposer, Proposer):
        raise BadInput(f"proposer should be a Proposer, such as Recurrent(drafter, Shape(4, 4)), not {shown(proposer)}")
    return proposer
