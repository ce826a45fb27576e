"""Prompts of token ids -> replies, batch by batch, from any thread. Compiled programs are shared by all requests of a bucket.

    engine = Engine(load_target(folder), Recurrent(load_drafter(other), Shape(4, 4)))
    for reply in engine.generate([[1, 15, 27]], Sampling(temperature=0.7), Limits(new=64), seeds=[3]):
        print(reply.token_ids, reply.tokens_per_step)

Not here: text, files, options (`infer/`).
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax.decode import loop, prefill, sample
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.reply import Progress, Reply
from redrafter_jax.decode.request import (
    Limits,
    Sampling,
    as_list,
    check_how,
    check_prompts,
    check_seeds,
    check_stop_ids,
    require,
    wrong_number,
)
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.fields import shown
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target

LOOK_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Programs:
    """What decodes the batches of one bucket, compiled: `loop.start` of (target, proposer, *inputs), `loop.run` of (target,
    proposer, state, rounds)."""

    start: jax.stages.Compiled
    run: jax.stages.Compiled


def compile_programs(target: Target, proposer: Proposer, inputs: tuple, bucket: prefill.Bucket) -> Programs:
    """Compiles both programs, beside each other, for the mesh that is set; nothing runs."""
    start = loop.start.lower(target, proposer, *inputs, bucket)
    state = jax.eval_shape(loop.start, target, proposer, *inputs, bucket=bucket)
    run = loop.run.lower(target, proposer, state, jnp.int32(0))
    with ThreadPoolExecutor(2) as pool:
        return Programs(*pool.map(lambda lowered: lowered.compile(), (start, run)))


class Engine:
    """A target and what proposes for it; decodes batches of prompts on the mesh of the target.

    ``drafter`` is the head as it decodes (`vocabulary.as_decoded`).
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
        self.stop_ids = np.asarray(sorted(check_stop_ids(stop_ids, target.config.vocab_size)) or [-1], np.int32)
        self.compile_seconds = 0.0
        self.on_compile: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        self._programs: dict[tuple, Programs] = {}

    def autoregressive(self) -> "Engine":
        """The same target without the head: plain decoding, by the same loop."""
        stops = [int(token) for token in self.stop_ids if token >= 0]
        plain = Engine(self.target, None, stop_ids=stops)
        plain.on_compile = self.on_compile
        return plain

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        limits: Limits = Limits(),
        seeds: Sequence[int] | None = None,
        batch: int = 1,
    ) -> Iterator[Reply]:
        """Replies in the order of the prompts, ``batch`` of them decoded at a time.

        Raises:
          BadInput: a prompt, the seeds, ``batch``, or how to decode cannot be used.
        """
        require("batch", wrong_number("batch_size", batch))
        check_how(sampling, limits)
        prompts = as_list("prompts", prompts)
        seeds = list(range(len(prompts))) if seeds is None else as_list("seeds", seeds)
        check_seeds(seeds, len(prompts))
        return self._in_batches(prompts, sampling, limits, seeds, batch)

    def _in_batches(self, prompts: list, sampling: Sampling, limits: Limits, seeds: list[int], batch: int) -> Iterator[Reply]:
        for first in range(0, len(prompts), batch):
            part = slice(first, first + batch)
            *_, last = self.stream(prompts[part], sampling, limits, seeds[part], rows=batch, rounds=1 << 30)
            yield from last.replies

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        limits: Limits = Limits(),
        seeds: Sequence[int] = (0,),
        rows: int = 0,
        rounds: int | None = None,
    ) -> Iterator[Progress]:
        """One batch, reported after the prefill and then every ``rounds`` rounds until every reply is whole. None: every
        LOOK_SECONDS or so, as a person reads along; not for several processes, whose clocks differ.

        ``rows`` pads the batch (a row without a prompt is done before it starts), so that a last, smaller batch runs the
        same program.

        Raises:
          BadInput: as for `generate`.
        """
        require("rows", wrong_number("batch_size", rows, zero="as many as prompts"))
        check_how(sampling, limits)
        prompts, seeds = as_list("prompts", prompts), as_list("seeds", seeds)
        inputs, bucket = self.prepare(prompts, sampling, limits, seeds, rows)
        programs = self._programs_of(inputs, bucket)
        times = _Times(time.perf_counter())
        state = self._on_mesh(programs.start, self.target, self.proposer, *inputs)
        times.first_token = time.perf_counter() - times.began
        progress, count = self._report(state, seeds, times), rounds or 1
        yield progress
        while not all(progress.done):
            looked = time.perf_counter()
            state = self._on_mesh(programs.run, self.target, self.proposer, state, np.int32(count))
            progress = self._report(state, seeds, times)
            if rounds is None:
                count = max(1, int(count * min(2.0, LOOK_SECONDS / (time.perf_counter() - looked))))
            yield progress

    def _on_mesh(self, call: Callable, *arguments):
        """The result of a call once it is there. A mesh belongs to a thread, so it is set for each call and not kept."""
        with jax.set_mesh(self.mesh):
            return jax.block_until_ready(call(*arguments))

    def prepare(
        self, prompts, sampling: Sampling, limits: Limits, seeds, rows: int = 0
    ) -> tuple[tuple[jax.Array, ...], prefill.Bucket]:
        """What `loop.start` takes besides the models: the batch as arrays, and its bucket."""
        rows = max(rows, len(prompts))
        context = limits.length or self.target.config.max_position_embeddings
        check_prompts(prompts, seeds, self.target.config.vocab_size, context)
        allowed = [min(limits.new, context - len(prompt)) for prompt in prompts]
        pad = rows - len(prompts)
        bucket = prefill.bucket(max(map(len, prompts)), min(limits.new, context), self.proposer.round.length)
        tokens = np.zeros((rows, bucket.prompt), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        lengths = [len(prompt) for prompt in prompts] + [1] * pad
        by_row = functools.partial(_column, rows=rows)
        with jax.set_mesh(self.mesh):
            inputs = (
                processes.put(tokens, "data", None),
                by_row(lengths, np.int32),
                by_row([*allowed, *[0] * pad], np.int32),
                processes.put(self.stop_ids),
                _policy(sampling, by_row, [*seeds, *[0] * pad]),
            )
        return inputs, bucket

    def _programs_of(self, inputs: tuple, bucket: prefill.Bucket) -> Programs:
        key = (bucket, inputs[0].shape, jax.tree.structure(inputs[-1]))
        if key not in self._programs:
            began = time.perf_counter()
            with self.on_compile():
                self._programs[key] = self._on_mesh(compile_programs, self.target, self.drafter, inputs, bucket, self.shape)
            self.compile_seconds += time.perf_counter() - began
        return self._programs[key]

    def _report(self, state: DecodeState, seeds: list[int], times: "_Times") -> Progress:
        names = ("tokens", "drafted", "prompt", "count", "rounds", "histogram", "done", "failed")
        fetched = self._on_mesh(processes.fetch, {name: getattr(state, name) for name in names})
        host = {name: value[: len(seeds)] for name, value in fetched.items()}
        now = time.perf_counter() - times.began
        stops = set(self.stop_ids.tolist())
        replies = []
        for row, seed in enumerate(seeds):
            if host["done"][row]:
                times.finished.setdefault(row, now)
            reply = slice(host["prompt"][row], host["prompt"][row] + host["count"][row])
            ids = host["tokens"][row, reply].tolist()
            replies.append(
                Reply(
                    token_ids=ids,
                    drafted=host["drafted"][row, reply].tolist(),
                    finish_reason="error" if host["failed"][row] else "stop" if ids and ids[-1] in stops else "length",
                    rounds=int(host["rounds"][row]),
                    accepted_histogram=host["histogram"][row].tolist(),
                    seconds=times.finished.get(row, now),
                    seed=int(seed),
                    first_token_seconds=times.first_token,
                )
            )
        return Progress(replies, host["done"].tolist())


def _check_proposer(proposer: object) -> Proposer:
    if isinstance(proposer, Drafter):
        raise BadInput("proposer should say how the head drafts, such as Recurrent(drafter, Shape(4, 4)), not be the head alone")
    if not isinstance(proposer, Proposer):
        raise BadInput(f"proposer should be a Proposer, such as Recurrent(drafter, Shape(4, 4)), not {shown(proposer)}")
    return proposer


@dataclasses.dataclass
class _Times:
    """Of one batch: when it began, and the seconds from then to its first tokens and to the end of each row."""

    began: float
    first_token: float = 0.0
    finished: dict[int, float] = dataclasses.field(default_factory=dict)


def _policy(sampling: Sampling, by_row: Callable[..., jax.Array], seeds: Sequence[int]) -> sample.Policy:
    return sample.Policy(
        temperature=by_row(sampling.temperature or 1.0, np.float32),
        top_k=by_row(sampling.top_k, np.int32),
        top_p=by_row(sampling.top_p, np.float32),
        keys=_keys(by_row(seeds, np.uint32)),
        sampled=sampling.temperature > 0,
        filtered=sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1),
        rule=sampling.rule,
    )


def _column(value, dtype, rows: int) -> jax.Array:
    return processes.put(np.broadcast_to(np.asarray(value, dtype), (rows,)), "data")


_keys = jax.jit(jax.vmap(jax.random.key))
