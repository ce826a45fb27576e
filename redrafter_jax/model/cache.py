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
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

CACHE_SPEC = P("data", "model", None, None)
MAX_TOKENS_BY_ROW = 16  # new tokens per row, as in most rounds, up to which `by_row` writes them on a TPU


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
        return tuple(jnp.zeros((batch, kv_heads, slots, head_dim), dtype, out_sharding=CACHE_SPEC) for _ in range(layers))

    return KVCache(buffers(), buffers(), jnp.zeros((batch,), jnp.int32, out_sharding=P("data")))


def append(cache: KVCache, rows: KVRows, count_B: jax.Array) -> KVCache:
    """Writes the rows behind each row's ``length`` and counts the first ``count`` of them as live.

    All N rows are written, so ``length + N`` must not pass the last slot, or XLA would move the write back. Whoever
    allocates the cache leaves that room.
    """
    buffers, new = (*cache.keys, *cache.values), (*rows.keys, *rows.values)
    few = {"tpu": by_row} if rows.keys[0].shape[2] <= MAX_TOKENS_BY_ROW else {}
    written = jax.lax.platform_dependent(buffers, new, cache.length, default=by_buffer, **few)
    layers = len(cache.keys)
    return KVCache(written[:layers], written[layers:], cache.length + count_B)


Buffers = tuple[jax.Array, ...]


def by_buffer(buffers: Buffers, new: Buffers, start_B: jax.Array) -> Buffers:
    """Each ``new`` ``[B, K, N, C]`` written into its buffer ``[B, K, S, C]`` from each row's ``start`` on."""

    def write(buffer: jax.Array, new: jax.Array) -> jax.Array:
        at_start = jax.vmap(lambda b, n, start: jax.lax.dynamic_update_slice(b, n, (0, start, 0)))
        return at_start(buffer, new.astype(buffer.dtype), start_B)

    return tuple(map(write, buffers, new))


def by_row(buffers: Buffers, new: Buffers, start_B: jax.Array) -> Buffers:
    """The same, one row of a shard after the other, all buffers at once: XLA:TPU makes a loop over rows of every write of
    `by_buffer`, which for a few tokens costs more in its small operations than the writing."""

    def of_shard(buffers: Buffers, new: Buffers, start_B: jax.Array) -> Buffers:
        together = jnp.stack([each.astype(buffers[0].dtype) for each in new], axis=1)  # one lookup per row

        def write(row, buffers: Buffers) -> Buffers:
            of_row = jax.lax.dynamic_index_in_dim(together, row, keepdims=False)
            at = (row, 0, start_B[row], 0)
            return tuple(jax.lax.dynamic_update_slice(row_major(b), of_row[i, None], at) for i, b in enumerate(buffers))

        return jax.lax.fori_loop(0, start_B.shape[0], write, buffers)

    # else a loop that writes one token chooses a layout by slot, and copies the cache on the way in and out
    row_major = lambda buffer: with_layout_constraint(buffer, Layout((0, 1, 2, 3)))  # noqa: E731
    specs = (CACHE_SPEC,) * len(buffers)
    return jax.shard_map(of_shard, in_specs=(specs, specs, P("data")), out_specs=specs)(buffers, new, start_B)


def take(rows: KVRows, index_BN: jax.Array) -> KVRows:
    """The rows at ``index`` ``[B, M]`` of each batch row, in that order."""
    pick = jax.vmap(lambda row, index: row[:, index])
    return jax.tree.map(lambda row: pick(row, index_BN), rows)
