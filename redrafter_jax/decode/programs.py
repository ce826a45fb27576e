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

from redrafter_jax.decode import loop, prefill
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.insert import empty, insert
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.model.target import Target


@dataclasses.dataclass(frozen=True)
class Programs:
    """``start(weights, *inputs)`` is `loop.start`, ``run(weights, state, rounds, ends)`` is `loop.run`, which donates the state;
    ``weights``: of the target and the proposer that they were compiled for, by `flatten`."""

    start: jax.stages.Compiled
    run: jax.stages.Compiled


@dataclasses.dataclass(frozen=True)
class Refilled:
    """What decodes a running batch whose rows are refilled: ``empty()`` is its state before the first request; ``starts[T](weights,
    *inputs)`` is `loop.start` of a few rows with prompts of at most T tokens, ``scoring[T]`` likewise with the log-probabilities of
    the prompts; ``insert(state, row, few)`` is `insert.insert`, which donates the running state; ``run`` as of `Programs`."""

    empty: jax.stages.Compiled
    insert: jax.stages.Compiled
    run: jax.stages.Compiled
    starts: Mapping[int, jax.stages.Compiled]
    scoring: Mapping[int, jax.stages.Compiled]


def flatten(target: Target, proposer: Proposer) -> list[jax.Array]:
    """The arrays of both, as programs take them."""
    return jax.tree.leaves((target, proposer))


def compile_programs(target: Target, proposer: Proposer, inputs: tuple, bucket: prefill.Bucket) -> Programs:
    """Compiles both programs in parallel for the mesh that is set; nothing runs."""
    weights, structure = jax.tree.flatten((target, proposer))
    start = _start(structure, bucket)
    state = jax.eval_shape(start, weights, *inputs)
    return Programs(*_compile(jax.jit(start).lower(weights, *inputs), _lower_run(structure, weights, state)))


def compile_refilled(
    target: Target, proposer: Proposer, inputs: tuple, few: Mapping[int, tuple], bucket: prefill.Bucket, scores: bool = False
) -> Refilled:
    """Likewise. inputs: of the running batch; few: of the few rows that are read at a time, by the tokens T of their prompts;
    scores: also those that score the prompts."""
    weights, structure = jax.tree.flatten((target, proposer))
    start = _start(structure, bucket)
    state = jax.eval_shape(start, weights, *inputs)
    one = jax.eval_shape(start, weights, *next(iter(few.values())))
    lowered = (
        jax.jit(functools.partial(empty, state)).lower(),
        jax.jit(insert, donate_argnums=0).lower(state, jnp.int32(0), one),
        _lower_run(structure, weights, state),
        *(jax.jit(start).lower(weights, *each) for each in few.values()),
        *(jax.jit(_start(structure, bucket, True)).lower(weights, *each) for each in few.values() if scores),
    )
    blank, inserting, running, *starts = _compile(*lowered)
    plain, scoring = starts[: len(few)], starts[len(few) :]
    return Refilled(blank, inserting, running, dict(zip(few, plain, strict=True)), dict(zip(few, scoring, strict=scores)))


def _start(structure, bucket: prefill.Bucket, scores: bool = False) -> Callable:
    def start(weights, *inputs):
        return loop.start(*structure.unflatten(weights), *inputs, bucket=bucket, scores=scores)

    return start


def _lower_run(structure, weights, state: DecodeState) -> jax.stages.Lowered:
    def run(weights, state, rounds, ends):
        return loop.run(*structure.unflatten(weights), state, rounds, ends)

    return jax.jit(run, donate_argnums=1).lower(weights, state, jnp.int32(0), jnp.int32(0))


def _compile(*lowered: jax.stages.Lowered) -> list[jax.stages.Compiled]:
    with ThreadPoolExecutor(len(lowered)) as pool:
        return list(pool.map(lambda program: program.compile(), lowered))
