"""A part of a prompt, read behind what a cache has of it already. Target and draft models read by the same function."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import attention, cache
from redrafter_jax.model.layers import take_rows
from redrafter_jax.model.target import Target

# Slots in a tile of bfloat16 on a TPU; at other counts XLA:TPU chooses another layout for the cache and copies it in every pass.
TILE_SLOTS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """tokens: ``[B, N]``, which stand at slots ``start`` to start + N - 1, past a row's prompt with any id; start: int32, the
    same for all rows; length: ``[B]``, tokens of each row's prompt; arrives: ``[B]``, the length of the text that they arrive with
    (`Target`); prefixes: static, as of `attention.attend`, 0 alone where nothing stands before the chunk."""

    tokens: jax.Array
    start: jax.Array
    length: jax.Array
    arrives: jax.Array
    prefixes: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def read_chunk(model: Target, kv: cache.KVCache, chunk: Chunk) -> tuple[cache.KVCache, jax.Array]:
    """The cache with the chunk's tokens, and what a draft head reads of them ``[B, N, D + F*D]`` (`Pass.shown`)."""
    N = chunk.tokens.shape[1]
    left_B = _left(chunk)
    valid_BN = jnp.arange(N) < left_B[:, None]
    positions_BN = jnp.broadcast_to(chunk.start + jnp.arange(N), chunk.tokens.shape) + jnp.zeros_like(chunk.tokens)
    lengths_BN = jnp.broadcast_to(chunk.arrives[:, None], chunk.tokens.shape)
    before = kv if any(chunk.prefixes) else None
    made = model(chunk.tokens, positions_BN, attention.causal(valid_BN), before, lengths_BN, prefixes=chunk.prefixes)
    return cache.append(_after_pass(kv, take_rows(made.hidden, left_B - 1)), made.rows, left_B), made.shown


def _after_pass(kv: cache.KVCache, hidden_BD: jax.Array) -> cache.KVCache:
    """The cache, with a dependency that makes its write wait for the pass to have read it, or XLA:CPU would copy every buffer to
    keep both versions (as in `commit.py`). No sum of absolute values is negative, so the length stays what it is."""
    never_B = jnp.sum(jnp.abs(hidden_BD), axis=-1) < 0
    return dataclasses.replace(kv, length=kv.length + never_B)


def read_on(model: Target, kv: cache.KVCache, h_BD: jax.Array, chunk: Chunk) -> tuple[cache.KVCache, jax.Array, jax.Array]:
    """The cache with the chunk's tokens; h ``[B, D + F*D]``, which is that of the last token where a row's prompt ends here; and
    likewise ``[B, N, D + F*D]`` of all of them."""
    kv, hidden_BND = read_chunk(model, kv, chunk)
    left_B = _left(chunk)
    ends_here_B = (left_B > 0) & (chunk.length <= chunk.start + hidden_BND.shape[1])
    return kv, jnp.where(ends_here_B[:, None], take_rows(hidden_BND, left_B - 1), h_BD), hidden_BND


def _left(chunk: Chunk) -> jax.Array:
    """``[B]``: the row's tokens in this chunk."""
    return jnp.clip(chunk.length - chunk.start, 0, chunk.tokens.shape[1])


def unread(model: Target, rows: int, slots: int) -> tuple[cache.KVCache, jax.Array]:
    """A cache without a token, with room for ``slots`` or more in each row, and zeros in place of h ``[B, D + F*D]``."""
    config, dtype = model.config, model.norm[...].dtype
    slots = TILE_SLOTS * -(-slots // TILE_SLOTS)
    kv = cache.empty(config.num_hidden_layers, rows, config.num_key_value_heads, slots, config.head_dim, dtype)
    return kv, jnp.zeros((rows, config.hidden_size * (1 + len(model.features))), dtype, out_sharding=P("data", None))
