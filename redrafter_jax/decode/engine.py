"""Prompts of token ids -> replies, batch by batch, from any thread. Compiled programs are shared by all requests of a bucket.

    engine = Engine(weights.load_target(folder), weights.load_drafter(other))
    for reply in engine.generate([[1, 15, 27]], Sampling(temperature=0.7), Limits(new=64), seeds=[3]):
        print(reply.token_ids, reply.tokens_per_step)

Not here: text, files, options (`infer/`).
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax.decode import loop, prefill
from redrafter_jax.decode.batch import Request, make_requests, stop_id_table
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.decode.reply import Progress, Reply
from redrafter_jax.decode.request import Limits, Sampling, check_stop_ids, require, wrong_number
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target

LOOK_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Programs:
    """What decodes the batches of one bucket, compiled: `loop.start` of (target, *inputs), `loop.run` of (target, drafter, state,
    rounds), with their static arguments."""

    start: jax.stages.Compiled
    run: jax.stages.Compiled


def compile_programs(
    target: Target, drafter, inputs: tuple, bucket: prefill.Bucket, shape: loop.Shape, propose: loop.Propose = loop.propose
) -> Programs:
    """Compiles both programs, beside each other, for the mesh that is set; nothing runs."""
    start = loop.start.lower(target, *inputs, bucket)
    state = jax.eval_shape(loop.start, target, *inputs, bucket=bucket)
    run = loop.run.lower(target, drafter, state, jnp.int32(0), shape, propose)
    with ThreadPoolExecutor(2) as pool:
        return Programs(*pool.map(lambda lowered: lowered.compile(), (start, run)))


class Engine:
    """A target, perhaps a head, and the shape of a round; decodes batches of prompts on the mesh that the target lies on.

    ``drafter`` is the head as it decodes (`vocabulary.as_decoded`).
    ``compile_seconds`` adds up what was spent on compiling.

    Raises:
      BadInput: a stop id is none of the target's, or the head has fewer tokens to draft than ``shape`` has beams.
    """

    def __init__(
        self, target: Target, drafter: Drafter | None = None, shape: loop.Shape = loop.Shape(), stop_ids: Sequence[int] = ()
    ):
        self.target = target
        self.mesh: jax.sharding.Mesh = jax.tree.leaves(target)[0].sharding.mesh
        if drafter is not None:
            shape.check_vocabulary(target.config.vocab_size, drafter.config.draft_vocab)
        with jax.set_mesh(self.mesh):
            self.drafter = vocabulary.as_decoded(drafter, target) if drafter is not None else None
        self.shape = shape if drafter is not None else loop.AUTOREGRESSIVE
        self.stop_ids = np.asarray(sorted(check_stop_ids(stop_ids, target.config.vocab_size)) or [-1], np.int32)
        self.compile_seconds = 0.0
        self._programs: dict[tuple, Programs] = {}

    def autoregressive(self) -> "Engine":
        """The same target without the head: plain decoding, by the same loop."""
        stops = [int(token) for token in self.stop_ids if token >= 0]
        return Engine(self.target, None, stop_ids=stops)

    def generate(
        self,
        prompts: Iterable[Sequence[int]],
        sampling: Sampling | Iterable[Sampling] = Sampling(),
        limits: Limits | Iterable[Limits] = Limits(),
        seeds: Iterable[int] | None = None,
        batch: int = 1,
        stop_ids: Iterable[int] | Iterable[Iterable[int]] | None = None,
    ) -> Iterator[Reply]:
        """Replies in the order of the prompts, ``batch`` of them decoded at a time.

        sampling, limits, stop_ids: one for all prompts, or a list with one for each; stop_ids None: the engine's.
        seeds: one for each prompt; None for 0, 1, 2 and so on.

        Raises:
          BadInput: a prompt, what is given for one, or ``batch`` cannot be used.
        """
        require("batch", wrong_number("batch_size", batch))
        return self._in_batches(self._requests(prompts, sampling, limits, seeds, stop_ids), batch)

    def _in_batches(self, requests: list[Request], batch: int) -> Iterator[Reply]:
        for first in range(0, len(requests), batch):
            *_, last = self._decode(requests[first : first + batch], batch, rounds=1 << 30, first=first)
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
    ) -> Iterator[Progress]:
        """One batch, reported after the prefill and then every ``rounds`` rounds until every reply is complete. None: every
        LOOK_SECONDS or so, as a person reads along; not for several processes, whose clocks differ.

        ``rows`` pads the batch (a row without a prompt is done before it starts), so that a last, smaller batch runs the
        same program. The rest is as for `generate`.

        Raises:
          BadInput: as for `generate`, or there is no prompt.
        """
        require("rows", wrong_number("batch_size", rows, zero="as many as prompts"))
        requests = self._requests(prompts, sampling, limits, seeds, stop_ids)
        if not requests:
            raise BadInput("there should be at least one prompt")
        yield from self._decode(requests, rows, rounds)

    def _requests(self, prompts, sampling, limits, seeds, stop_ids) -> list[Request]:
        config = self.target.config
        stop_ids = [token for token in self.stop_ids.tolist() if token >= 0] if stop_ids is None else stop_ids
        return make_requests(prompts, sampling, limits, seeds, stop_ids, config.vocab_size, config.max_position_embeddings)

    def _decode(self, requests: list[Request], rows: int, rounds: int | None, first: int = 0) -> Iterator[Progress]:
        """One batch, of which the first request is number ``first`` of its call."""
        inputs, bucket = self._inputs(requests, rows)
        programs = self._programs_of(inputs, bucket)
        times = _Times(time.perf_counter())
        state = self._on_mesh(programs.start, self.target, *inputs)
        times.first_token = time.perf_counter() - times.began
        progress, count = self._report(state, requests, first, times), rounds or 1
        yield progress
        while not all(progress.done):
            looked = time.perf_counter()
            state = self._on_mesh(programs.run, self.target, self.drafter, state, np.int32(count))
            progress = self._report(state, requests, first, times)
            if rounds is None:
                count = max(1, int(count * min(2.0, LOOK_SECONDS / (time.perf_counter() - looked))))
            yield progress

    def _on_mesh(self, call: Callable, *arguments):
        """The result of a call once it is there. A mesh belongs to a thread, so it is set for each call and not kept."""
        with jax.set_mesh(self.mesh):
            return jax.block_until_ready(call(*arguments))

    def prepare(
        self, prompts, sampling, limits, seeds, rows: int = 0, stop_ids=None
    ) -> tuple[tuple[jax.Array, ...], prefill.Bucket]:
        """What `loop.start` takes besides the target: the batch as arrays, and its bucket. Arguments as for `stream`."""
        return self._inputs(self._requests(prompts, sampling, limits, seeds, stop_ids), rows)

    def _inputs(self, requests: list[Request], rows: int) -> tuple[tuple[jax.Array, ...], prefill.Bucket]:
        rows = max(rows, len(requests))
        contexts = [request.limits.length or self.target.config.max_position_embeddings for request in requests]
        lengths = [len(request.prompt) for request in requests]
        news = [min(request.limits.new, context) for request, context in zip(requests, contexts, strict=True)]
        allowed = [min(new, context - length) for new, context, length in zip(news, contexts, lengths, strict=True)]
        bucket = prefill.bucket(max(lengths), max(news), self.shape.length)
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
                ),
            )
        return inputs, bucket

    def _programs_of(self, inputs: tuple, bucket: prefill.Bucket) -> Programs:
        key = (bucket, jax.tree.structure(inputs), *(leaf.shape for leaf in jax.tree.leaves(inputs)))
        if key not in self._programs:
            began = time.perf_counter()
            self._programs[key] = self._on_mesh(compile_programs, self.target, self.drafter, inputs, bucket, self.shape)
            self.compile_seconds += time.perf_counter() - began
        return self._programs[key]

    def _report(self, state: DecodeState, requests: list[Request], first: int, times: "_Times") -> Progress:
        names = ("text", "drafted", "count", "rounds", "histogram", "done", "failed")
        fetched = self._on_mesh(processes.fetch, {name: getattr(state, name) for name in names})
        host = {name: value[: len(requests)] for name, value in fetched.items()}
        now = time.perf_counter() - times.began
        replies = []
        for row, request in enumerate(requests):
            if host["done"][row]:
                times.finished.setdefault(row, now)
            ids = host["text"][row, : host["count"][row]].tolist()
            stopped = bool(ids) and ids[-1] in request.stop_ids
            replies.append(
                Reply(
                    token_ids=ids,
                    drafted=host["drafted"][row, : len(ids)].tolist(),
                    finish_reason="error" if host["failed"][row] else "stop" if stopped else "length",
                    rounds=int(host["rounds"][row]),
                    accepted_histogram=host["histogram"][row].tolist(),
                    seconds=times.finished.get(row, now),
                    seed=int(request.seed),
                    first_token_seconds=times.first_token,
                    index=first + row,
                )
            )
        return Progress(replies, host["done"].tolist())


@dataclasses.dataclass
class _Times:
    """Of one batch: when it began, and the seconds from then to its first tokens and to the end of each row."""

    began: float
    first_token: float = 0.0
    finished: dict[int, float] = dataclasses.field(default_factory=dict)
