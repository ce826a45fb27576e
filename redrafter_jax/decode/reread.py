"""A text that outgrows the context for which its cached keys were turned is read again (`Rope.rereads`, of Phi's longrope).

    cached tokens   below O            O                        above O
    factors         short              long: read again here    long

O is the original length. Keys up to O were turned by the short factors, and a token at position O needs the long ones
everywhere. So a round never accepts a node at a position from O on while it reads a cache of short factors (`cut`), and a row
whose cache has grown to exactly O tokens is read again before its next round (`at_crossing`). transformers' `generate` drops
its cache at the same token, so greedy ids are equal. Nothing here depends on the data but which rows are selected.
"""

import dataclasses

import jax
import jax.numpy as jnp

from redrafter_jax.decode import prefill
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.pack import Tree
from redrafter_jax.model.target import Target


def crosses(target: Target, slots: int) -> bool:
    """Whether a row with so many slots can outgrow the original length of this target. Static: most programs have no part of this
    file in them."""
    return target.config.rope.rereads and slots > target.config.rope.original_length


def at_crossing(target: Target, state: DecodeState) -> DecodeState:
    """The state with the rows that have reached the original length read again; h is that of the new cache, g stays."""
    if not crosses(target, state.cache.slots):
        return state
    original = target.config.rope.original_length
    crossing_B = ~state.done & (state.cache.length == original)
    cache, h_BD = jax.lax.cond(jnp.any(crossing_B), _read_again, _keep, target, state, crossing_B)
    return dataclasses.replace(state, cache=cache, h=h_BD)


def _read_again(target: Target, state: DecodeState, crossing_B: jax.Array):
    original = target.config.rope.original_length
    length_B = jnp.where(crossing_B, original, 0)
    made, h_BD = prefill.read(target, state.tokens[:, :original], length_B, original, arrives=original + 1)
    is_new = crossing_B[:, None, None, None]

    def put(buffer: jax.Array, new: jax.Array) -> jax.Array:
        kept = jnp.where(is_new, new[:, :, :original].astype(buffer.dtype), buffer[:, :, :original])
        return buffer.at[:, :, :original].set(kept)

    kv = state.cache
    keys, values = (tuple(map(put, old, new)) for old, new in ((kv.keys, made.keys), (kv.values, made.values)))
    return dataclasses.replace(kv, keys=keys, values=values), jnp.where(crossing_B[:, None], h_BD, state.h)


def _keep(target: Target, state: DecodeState, crossing_B: jax.Array):
    return state.cache, state.h


def cut(target: Target, tree: Tree, length_B: jax.Array, slots: int) -> Tree:
    """The tree without the nodes that a cache of short factors cannot score."""
    if not crosses(target, slots):
        return tree
    original = target.config.rope.original_length
    is_beyond_BN = length_B[:, None] + tree.depth >= original
    return dataclasses.replace(tree, valid=tree.valid & ~(is_beyond_BN & (length_B < original)[:, None]))
