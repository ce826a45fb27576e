"""Row of a small batch -> row of the running batch, in place.

    running   . . a a a | b b b . . | . . c c c        rows of R requests, each at its own length
    one       d d d                                    a prompt that was read beside them
    inserted  . . a a a | d d d . . | . . c c c        b was done; no other row is touched, and no buffer is copied

Every leaf of a `DecodeState` has rows first, so the proposer's memory, the noise keys and the limits move with the cache.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode.commit import DecodeState


def insert(state: DecodeState, row: jax.Array, one: DecodeState) -> DecodeState:
    """The running state with the first row of ``one`` as its row number ``row``; both of one bucket, with the same flags of their
    policies. For a jitted caller that donates ``state``."""
    return jax.tree.map(lambda leaf, new: _insert(leaf, row, new), state, one)


def empty(shapes: DecodeState) -> DecodeState:
    """A state of these shapes in which every row is done."""
    return dataclasses.replace(jax.tree.map(_zeros, shapes), done=_zeros(shapes.done) | True)


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    spec = shape.sharding.spec
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, shape)
        return jax.random.wrap_key_data(jnp.zeros(words.shape, words.dtype, out_sharding=P(*spec, None)))
    return jnp.zeros(shape.shape, shape.dtype, out_sharding=spec)


def _insert(leaf: jax.Array, row: jax.Array, new: jax.Array) -> jax.Array:
    """``[R, ...]`` with the first of ``new`` ``[G, ...]`` at ``row``. Each shard of rows writes to its own: the new row, or again
    what is there."""
    rest = jax.typeof(leaf).sharding.spec[1:]
    first = jax.sharding.reshard(new, P(None, *rest))[:1]

    def of_shard(leaf: jax.Array, row: jax.Array, first: jax.Array) -> jax.Array:
        at = row - jax.lax.axis_index("data") * leaf.shape[0]
        is_here = (at >= 0) & (at < leaf.shape[0])
        at = jnp.clip(at, 0, leaf.shape[0] - 1)
        there = jax.lax.dynamic_slice_in_dim(leaf, at, 1)
        return jax.lax.dynamic_update_slice_in_dim(leaf, jnp.where(is_here, first, there), at, 0)

    return jax.shard_map(of_shard, in_specs=(P("data", *rest), P(), P(None, *rest)), out_specs=P("data", *rest))(leaf, row, first)
