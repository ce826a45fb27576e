"""The key-value cache: one pair of buffers per layer, and one length per row.

    slot      0 1 2 3 4 5 6 7 8 9
    row 0     k k k k k k . . . .    length 6
    row 1     k k k . . . . . . .    length 3

Rows are left-aligned and advance on their own. A slot at or past ``length`` is dead: the attention mask never shows
it, so what stands there is never cleared and nothing is ever rolled back.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

SPEC = P("data", "model", None, None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """keys, values: one ``[B, K, S, C]`` array per layer, keys after rotation; length: ``[B]`` int32, live slots."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVRows:
    """Keys and values of the N tokens of one pass, not yet in any cache: one ``[B, K, N, C]`` array per layer."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def empty(layers: int, batch: int, kv_heads: int, slots: int, head_dim: int, dtype: jnp.dtype) -> KVCache:
    def buffers() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((batch, kv_heads, slots, head_dim), dtype, out_sharding=SPEC) for _ in range(layers))

    return KVCache(buffers(), buffers(), jnp.zeros((batch,), jnp.int32, out_sharding=P("data")))


def append(cache: KVCache, rows: KVRows, count_B: jax.Array) -> KVCache:
    """Writes the rows behind each row's ``length`` and counts the first ``count`` of them as live.

    All N rows are written, so ``length + N`` must not pass the last slot (the write would be moved back by XLA);
    whoever makes the cache leaves that slack.
    """

    def write(buffer: jax.Array, new: jax.Array) -> jax.Array:
        at_length = jax.vmap(lambda b, n, start: jax.lax.dynamic_update_slice(b, n, (0, start, 0)))
        return at_length(buffer, new.astype(buffer.dtype), cache.length)

    keys = tuple(map(write, cache.keys, rows.keys))
    values = tuple(map(write, cache.values, rows.values))
    return KVCache(keys, values, cache.length + count_B)


def take(rows: KVRows, index_BN: jax.Array) -> KVRows:
    """The rows at ``index`` ``[B, M]`` of each batch row, in that order."""
    pick = jax.vmap(lambda row, index: row[:, index])
    return jax.tree.map(lambda row: pick(row, index_BN), rows)
