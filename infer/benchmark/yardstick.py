"""What plain decoding is held against: the bytes that a pass reads, and how fast XLA reads them here."""

import jax
import jax.numpy as jnp

from infer.stages import clock
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.model.target import Target


def round_bytes(target: Target, state: DecodeState) -> int:
    """Bytes that a pass over one node per row has to read: every weight but the embedding, of which it reads a row, and
    the live keys and values."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(target)) - target.embedding[...].nbytes
    slot = sum(leaf.nbytes for leaf in (*state.cache.keys, *state.cache.values)) / (state.cache.slots * len(state.g))
    return int(weights + slot * float(jnp.sum(state.cache.length)))


def sum_rate(target: Target, repeats: int) -> float:
    """Bytes per second at which XLA adds up all of the target's weights here, the best of ``repeats``. It is a reference,
    not the memory's speed: on a CPU a plain C loop reads weights that are in its cache several times as fast."""
    leaves = jax.tree.leaves(target)
    read = jax.jit(lambda leaves: [jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves])
    clock(lambda: read(leaves))
    return sum(leaf.nbytes for leaf in leaves) / min(clock(lambda: read(leaves)) for _ in range(repeats))
