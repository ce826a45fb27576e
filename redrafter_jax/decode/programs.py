"""What decodes the batches of one bucket, compiled ahead of the first of them.

The programs take the arrays of target and proposer as one plain list. A module of Flax is flattened in Python at every call,
which costs as much as a short round (docs/decisions.md); so it is flattened once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp

from redrafter_jax.decode import loop, prefill, reading
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.insert import empty, insert
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.room import Room
from redrafter_jax.model.target import Target


@dataclasses.dataclass(frozen=True)
class Programs:
    """``start(weights, *inputs)`` is `loop.start`, ``run(weights, state, rounds, ends)`` is `loop.run`, which donates the state;
    ``weights``: of the target and the proposer that they were compiled for, by `flatten`."""

    start: jax.stages.Compiled
    run: jax.stages.Compiled


@dataclasses.dataclass(frozen=True)
class Refilled:
    """What decodes a running batch whose rows are refilled: ``empty()`` is its state before the first request; ``insert(state, row,
    one)`` is `insert.insert`, which donates the running state; ``run`` as of `Programs`. A prompt is read by ``take(state, row,
    length)``, by ``reads[N](weights, reading, tokens, start, length)`` for each chunk of N tokens, and by ``begin(weights, reading,
    tokens, limit, stop_ids, policy)``, which are those of `reading`; the last two donate what was read."""

    empty: jax.stages.Compiled
    insert: jax.stages.Compiled
    run: jax.stages.Compiled
    take: jax.stages.Compiled
    begin: jax.stages.Compiled
    reads: Mapping[int, jax.stages.Compiled]


def flatten(target: Target, proposer: Proposer) -> list[jax.Array]:
    """The arrays of both, as programs take them."""
    return jax.tree.leaves((target, proposer))


def compile_programs(target: Target, proposer: Proposer, inputs: tuple, bucket: prefill.Bucket) -> Programs:
    """Compiles both programs in parallel for the mesh that is set; nothing runs."""
    weights, structure = jax.tree.flatten((target, proposer))
    start = _start(structure, bucket)
    state = jax.eval_shape(start, weights, *inputs)
    return Programs(*_compile(jax.jit(start).lower(weights, *inputs), _lower_run(structure, weights, state)))


def compile_refilled(target: Target, proposer: Proposer, inputs: tuple, few: tuple, room: Room) -> Refilled:
    """Likewise. inputs: of the running batch; few: of the few rows that are read at a time."""
    weights, structure = jax.tree.flatten((target, proposer))
    bucket, (tokens, length, *others) = room.bucket, few

    def read(weights, was, tokens, start, length):
        return reading.read(*structure.unflatten(weights), was, tokens, start, length, bucket)

    def begin(weights, was, *given):
        return reading.begin(*structure.unflatten(weights), was, *given, bucket)

    def blank(rows):
        return jax.eval_shape(functools.partial(reading.blank, target, proposer, rows, bucket.slots))

    def take(state, row, length):
        return reading.take(proposer, state, row, length)

    number, one, all_rows = jnp.int32(0), blank(len(tokens)), blank(len(inputs[0]))
    state = jax.eval_shape(begin, weights, all_rows, inputs[0], *inputs[2:])
    begun = jax.eval_shape(begin, weights, one, tokens, *others)
    lowered = (
        jax.jit(functools.partial(empty, state)).lower(),
        jax.jit(insert, donate_argnums=0).lower(state, number, begun),
        _lower_run(structure, weights, state),
        jax.jit(take).lower(state, number, number),
        jax.jit(begin, donate_argnums=1).lower(weights, one, tokens, *others),
        *(jax.jit(read, donate_argnums=1).lower(weights, one, tokens[:, :size], number, length) for size in room.chunks),
    )
    blank_state, inserting, running, taking, beginning, *reads = _compile(*lowered)
    return Refilled(blank_state, inserting, running, taking, beginning, dict(zip(room.chunks, reads, strict=True)))


def _start(structure, bucket: prefill.Bucket) -> Callable:
    def start(weights, *inputs):
        return loop.start(*structure.unflatten(weights), *inputs, bucket=bucket)

    return start


def _lower_run(structure, weights, state: DecodeState) -> jax.stages.Lowered:
    def run(weights, state, rounds, ends):
        return loop.run(*structure.unflatten(weights), state, rounds, ends)

    return jax.jit(run, donate_argnums=1).lower(weights, state, jnp.int32(0), jnp.int32(0))


def _compile(*lowered: jax.stages.Lowered) -> list[jax.stages.Compiled]:
    with ThreadPoolExecutor(len(lowered)) as pool:
        return list(pool.map(lambda program: program.compile(), lowered))
