"""What decodes the batches of one bucket, compiled ahead of the first of them.

The programs take the arrays of target and proposer as one plain list. A module of Flax is flattened in Python at every call,
which costs as much as a short round (docs/decisions.md); so it is flattened once.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp

from redrafter_jax.decode import loop, prefill
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.model.target import Target


@dataclasses.dataclass(frozen=True)
class Programs:
    """``start(weights, *inputs)`` is `loop.start`, ``run(weights, state, rounds)`` is `loop.run`, which donates the state;
    ``weights``: of the target and the proposer that they were compiled for, by `flatten`."""

    start: jax.stages.Compiled
    run: jax.stages.Compiled


def flatten(target: Target, proposer: Proposer) -> list[jax.Array]:
    """The arrays of both, as programs take them."""
    return jax.tree.leaves((target, proposer))


def compile_programs(target: Target, proposer: Proposer, inputs: tuple, bucket: prefill.Bucket) -> Programs:
    """Compiles both programs in parallel for the mesh that is set; nothing runs."""
    weights, structure = jax.tree.flatten((target, proposer))

    def start(weights, *inputs):
        return loop.start(*structure.unflatten(weights), *inputs, bucket=bucket)

    def run(weights, state, rounds):
        return loop.run(*structure.unflatten(weights), state, rounds)

    state = jax.eval_shape(start, weights, *inputs)
    lowered = jax.jit(start).lower(weights, *inputs), jax.jit(run, donate_argnums=1).lower(weights, state, jnp.int32(0))
    with ThreadPoolExecutor(2) as pool:
        return Programs(*pool.map(lambda program: program.compile(), lowered))
