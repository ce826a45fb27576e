"""The paper's own labels (section 3.3): from every place of a text, the tokens that the target would generate there.

All places of a row are continued together: each is a branch that sees the text up to its place and its own tokens, so
K + 1 tokens take K passes over as many tokens as the row has, after the one that reads the text. A round of decoding from
every place would read the text again for each.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import attention, cache
from redrafter_jax.model.target import Pass, Target
from train.data.rows import Batch

CHUNK_TOKENS = 64  # places of each row whose logits exist at a time


def paths(target: Target, batch: Batch, text: Pass, count: int) -> jax.Array:
    """``[B, T, count]`` int32: the target's ``count`` greedy tokens from each place of a text that it has read.

    Args:
      text: what the target made of the batch.
    """
    B, T = batch.tokens.shape
    read_BTT = attention.causal(batch.segments > 0) & (batch.segments[:, :, None] == batch.segments[:, None, :])
    itself_BTT = jnp.broadcast_to(jnp.eye(T, dtype=bool), (B, T, T), out_sharding=P("data", None, None))
    seen, read, positions = [read_BTT], [text.rows], [batch.positions]
    tokens_BT = best(target, text.hidden)
    found = [tokens_BT]
    for depth in range(1, count):
        kv = _as_cache(read, B)
        seen_BTS = jnp.concatenate(seen, axis=2)
        slots_BS = jnp.concatenate(positions, axis=1)
        positions.append(batch.positions + depth)
        made = target(tokens_BT, positions[-1], itself_BTT, kv, seen_BNS=seen_BTS, slot_positions_BS=slots_BS)
        seen.append(itself_BTT)
        read.append(made.rows)
        tokens_BT = best(target, made.hidden)
        found.append(tokens_BT)
    return jnp.stack(found, axis=2)


def _as_cache(read: list[cache.KVRows], B: int) -> cache.KVCache:
    joined = jax.tree.map(lambda *layers: jnp.concatenate(layers, axis=2), *read)
    length_B = jnp.full((B,), joined.keys[0].shape[2], jnp.int32, out_sharding=P("data"))
    return cache.KVCache(joined.keys, joined.values, length_B)


def best(target: Target, hidden_BTD: jax.Array) -> jax.Array:
    """``[B, T]``, the likeliest next tokens; logits exist for `CHUNK_TOKENS` places at a time."""
    B, T, D = hidden_BTD.shape
    chunks = -(-T // CHUNK_TOKENS)
    padded = jnp.pad(hidden_BTD, ((0, 0), (0, chunks * CHUNK_TOKENS - T), (0, 0)))
    cut = jnp.reshape(padded, (B, chunks, CHUNK_TOKENS, D), out_sharding=P("data", None, None, None))
    found = jax.lax.map(lambda chunk: jnp.argmax(target.unembed(chunk), axis=-1).astype(jnp.int32), jnp.moveaxis(cut, 1, 0))
    return jnp.reshape(jnp.moveaxis(found, 0, 1), (B, -1), out_sharding=P("data", None))[:, :T]
