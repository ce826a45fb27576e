"""Prompts of token ids -> replies, batch by batch. Compiled programs are shared by all requests of a bucket.

    engine = Engine(weights.load_target(folder), weights.load_drafter(other))
    for reply in engine.generate([[1, 15, 27]], Sampling(temperature=0.7), Limits(new=64), seeds=[3]):
        print(reply.token_ids, reply.tokens_per_step)

Not here: text, files, options (`infer/`).
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from redrafter_jax import processes
from redrafter_jax.decode import loop, prefill, sample
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target

LOOK_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose tokens; the request's ``seed`` alone decides its noise. temperature 0 is greedy; top_k 0 and top_p 1
    are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    rule: sample.Rule = "coupled"


@dataclasses.dataclass(frozen=True)
class Limits:
    """new: new tokens of a reply at most; length: tokens of prompt and reply together at most (0: the target's context)."""

    new: int = 128
    length: int = 0


@dataclasses.dataclass(frozen=True)
class Reply:
    """What was generated for one prompt. ``drafted``: which tokens were accepted drafts; ``accepted_histogram[a]``: rounds
    that accepted a drafts; ``seconds``: from the start of its batch, prefill included, to its last token."""

    token_ids: list[int]
    drafted: list[bool]
    finish_reason: str
    rounds: int
    accepted_histogram: list[int]
    seconds: float
    seed: int

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a target pass yields, a + 1 averaged over rounds; the prefill and its token are not counted."""
        accepted = sum(a * times for a, times in enumerate(self.accepted_histogram))
        return accepted / self.rounds + 1 if self.rounds else 0.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """A batch while it is decoded: its replies so far, and which of them are whole."""

    replies: list[Reply]
    done: list[bool]


class Engine:
    """A target, perhaps a head, and the shape of a round; decodes batches of prompts.

    ``drafter`` is the head as it decodes (`vocabulary.as_decoded`).
    ``compile_seconds`` adds up what was spent on compiling, ``first_token_seconds`` is the newest batch's prefill time.
    """

    def __init__(
        self, target: Target, drafter: Drafter | None = None, shape: loop.Shape = loop.Shape(), stop_ids: Sequence[int] = ()
    ):
        self.target = target
        self.drafter = vocabulary.as_decoded(drafter, target) if drafter is not None else None
        self.shape = shape if drafter is not None else loop.AUTOREGRESSIVE
        self.stop_ids = np.asarray(sorted(stop_ids) or [-1], np.int32)
        self.compile_seconds = 0.0
        self.first_token_seconds = 0.0
        self._compiled: set[tuple] = set()

    def autoregressive(self) -> "Engine":
        """The same target without the head: plain decoding, by the same loop."""
        stops = [int(token) for token in self.stop_ids if token >= 0]
        return Engine(self.target, None, stop_ids=stops)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        limits: Limits = Limits(),
        seeds: Sequence[int] | None = None,
        batch: int = 1,
    ) -> Iterator[Reply]:
        """Replies in the order of the prompts, ``batch`` of them decoded at a time."""
        seeds = list(range(len(prompts))) if seeds is None else seeds
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
        """
        inputs, bucket = self.prepare(prompts, sampling, limits, seeds, rows)
        self._compile(inputs, bucket)
        began = time.perf_counter()
        state = loop.start(self.target, *inputs, bucket)
        jax.block_until_ready(state)
        self.first_token_seconds = time.perf_counter() - began
        finished_at: dict[int, float] = {}
        progress, count = self._report(state, len(prompts), seeds, began, finished_at), rounds or 1
        yield progress
        while not all(progress.done):
            looked = time.perf_counter()
            state = loop.run(self.target, self.drafter, state, count, self.shape)
            progress = self._report(state, len(prompts), seeds, began, finished_at)
            if rounds is None:
                count = max(1, int(count * min(2.0, LOOK_SECONDS / (time.perf_counter() - looked))))
            yield progress

    def prepare(
        self, prompts, sampling: Sampling, limits: Limits, seeds, rows: int = 0
    ) -> tuple[tuple[jax.Array, ...], prefill.Bucket]:
        """What `loop.start` takes besides the target: the batch as arrays, and its bucket."""
        rows = max(rows, len(prompts))
        context = limits.length or self.target.config.max_position_embeddings
        allowed = [min(limits.new, context - len(prompt)) for prompt in prompts]
        if min(allowed) < 1 or min(map(len, prompts)) < 1:
            raise ValueError(f"a prompt needs 1 to {context - 1} tokens in a context of {context}")
        pad = rows - len(prompts)
        bucket = prefill.bucket(max(map(len, prompts)), min(limits.new, context), self.shape.length)
        tokens = np.zeros((rows, bucket.prompt), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        lengths = [len(prompt) for prompt in prompts] + [1] * pad
        by_row = functools.partial(_column, rows=rows)
        policy = sample.Policy(
            temperature=by_row(sampling.temperature or 1.0, np.float32),
            top_k=by_row(sampling.top_k, np.int32),
            top_p=by_row(sampling.top_p, np.float32),
            keys=_keys(_column([*seeds, *[0] * pad], np.uint32, rows)),
            sampled=sampling.temperature > 0,
            filtered=sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1),
            rule=sampling.rule,
        )
        inputs = (
            processes.put(tokens, "data", None),
            by_row(lengths, np.int32),
            by_row([*allowed, *[0] * pad], np.int32),
            processes.put(self.stop_ids),
            policy,
        )
        return inputs, bucket

    def _compile(self, inputs, bucket: prefill.Bucket) -> None:
        key = (bucket, inputs[0].shape, jax.tree.structure(inputs[-1]), self.shape)
        if key in self._compiled:
            return
        began = time.perf_counter()
        state = loop.start(self.target, *inputs, bucket)
        # One round is run, too: the first one sets up what later ones use.
        jax.block_until_ready(loop.run(self.target, self.drafter, state, 1, self.shape))
        self.compile_seconds += time.perf_counter() - began
        self._compiled.add(key)

    def _report(self, state: DecodeState, count: int, seeds, began: float, finished_at: dict[int, float]) -> Progress:
        names = ("text", "drafted", "count", "rounds", "histogram", "done")
        host = {name: value[:count] for name, value in processes.fetch({n: getattr(state, n) for n in names}).items()}
        now = time.perf_counter() - began
        stops = set(self.stop_ids.tolist())
        replies = []
        for row in range(count):
            if host["done"][row]:
                finished_at.setdefault(row, now)
            ids = host["text"][row, : host["count"][row]].tolist()
            replies.append(
                Reply(
                    token_ids=ids,
                    drafted=host["drafted"][row, : len(ids)].tolist(),
                    finish_reason="stop" if ids and ids[-1] in stops else "length",
                    rounds=int(host["rounds"][row]),
                    accepted_histogram=host["histogram"][row].tolist(),
                    seconds=finished_at.get(row, now),
                    seed=int(seeds[row]),
                )
            )
        return Progress(replies, host["done"].tolist())


def _column(value, dtype, rows: int) -> jax.Array:
    return processes.put(np.broadcast_to(np.asarray(value, dtype), (rows,)), "data")


_keys = jax.jit(jax.vmap(jax.random.key))
