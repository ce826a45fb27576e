"""Grouped-query attention of N new tokens to a cache and to each other, under one boolean mask.

The N tokens can be a prompt (each sees the ones before it) or a tree (each sees its ancestors): the difference is the
``[B, N, N]`` mask. Their own keys and values stay apart from the cache during the pass, so a pass only reads the
cache; what is accepted is written afterwards, once.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.model.cache import KVCache
from redrafter_jax.model.layers import product

DEAD = -1e30  # a finite stand-in for -inf: a row that sees nothing gives a mean, not NaN


def causal(valid_BN: jax.Array) -> jax.Array:
    """``[B, N, N]``: token i sees token j if j <= i and j is a real token."""
    count = valid_BN.shape[1]
    return jnp.tril(jnp.ones((count, count), bool)) & valid_BN[:, None, :]


def attend(
    q_BNHC: jax.Array,
    k_BKNC: jax.Array,
    v_BKNC: jax.Array,
    visible_BNN: jax.Array,
    cached: tuple[jax.Array, jax.Array, jax.Array] | None,
    seen_BNS: jax.Array | None = None,
    prefixes: tuple[int, ...] = (),
) -> jax.Array:
    """Softmax attention in float32; returns ``[B, N, H, C]`` in the dtype of the queries.

    Args:
      visible_BNN: which of the N tokens each of the N tokens sees.
      cached: keys ``[B, K, S, C]``, values ``[B, K, S, C]`` and length ``[B]`` of the cache; None for an empty one.
      seen_BNS: which of the cache's slots each token sees, if not all of the live ones.
      prefixes: numbers of slots, ascending. Only the first so many are read, as few of these numbers as hold every row's live
        ones; () reads all slots. The last one should be as many as can be live.
    """
    if cached is not None and prefixes:
        keys, values, length_B = cached
        attends = [functools.partial(_attend_to_prefix, size) for size in prefixes]
        which = jnp.sum(jnp.max(length_B) > jnp.array(prefixes[:-1], jnp.int32))
        return jax.lax.switch(which, attends, q_BNHC, k_BKNC, v_BKNC, visible_BNN, keys, values, length_B)
    B, N, H, C = q_BNHC.shape
    K = k_BKNC.shape[1]
    G = H // K
    # Heads that share keys become one block of G·N queries, so that scores are plain batched matrix products.
    q_BKMC = jnp.reshape(q_BNHC, (B, N, K, G, C), out_sharding=P("data", None, "model", None, None))
    q_BKMC = jnp.reshape(q_BKMC.transpose(0, 2, 3, 1, 4), (B, K, G * N, C), out_sharding=P("data", "model", None, None))
    # What nobody may see has weight zero, but zero times NaN is NaN: its value is cut off, not just outweighed.
    v_BKNC = jnp.where(jnp.any(visible_BNN, axis=1)[:, None, :, None], v_BKNC, 0)
    keys, values, masks = [k_BKNC], [v_BKNC], [jnp.tile(visible_BNN, (1, G, 1))]
    if cached is not None:
        cache_k, cache_v, length_B = cached
        live_BS = jnp.arange(cache_k.shape[2]) < length_B[:, None]
        cache_v = jnp.where(live_BS[:, None, :, None], cache_v, 0)
        keys.insert(0, cache_k)
        values.insert(0, cache_v)
        live_BNS = live_BS[:, None, :] if seen_BNS is None else jnp.tile(live_BS[:, None, :] & seen_BNS, (1, G, 1))
        masks.insert(0, jnp.broadcast_to(live_BNS, (B, G * N, live_BS.shape[1])))
    scores = [_scores(q_BKMC, k, m) for k, m in zip(keys, masks, strict=True)]
    # One softmax over both parts, without laying them side by side; divided by its sum at the end, where there are fewer numbers.
    largest_BKM1 = functools.reduce(jnp.maximum, (jnp.max(part, axis=-1, keepdims=True) for part in scores))
    weights = [jnp.exp(part - largest_BKM1) for part in scores]
    total_BKM1 = sum(jnp.sum(part, axis=-1, keepdims=True) for part in weights)
    mixed_BKMC = sum(_mix(part.astype(q_BNHC.dtype), v) for part, v in zip(weights, values, strict=True))
    out = (mixed_BKMC / total_BKM1).astype(q_BNHC.dtype)
    out = jnp.reshape(out, (B, K, G, N, C), out_sharding=P("data", "model", None, None, None)).transpose(0, 3, 1, 2, 4)
    return jnp.reshape(out, (B, N, H, C), out_sharding=P("data", None, "model", None))


def _attend_to_prefix(size: int, q_BNHC, k_BKNC, v_BKNC, visible_BNN, keys_BKSC, values_BKSC, length_B) -> jax.Array:
    cached = (keys_BKSC[:, :, :size], values_BKSC[:, :, :size], length_B) if size else None
    return attend(q_BNHC, k_BKNC, v_BKNC, visible_BNN, cached)


def _scores(q_BKMC: jax.Array, k_BKSC: jax.Array, visible_BMS: jax.Array) -> jax.Array:
    scores = product("bkmc,bksc->bkms", q_BKMC, k_BKSC, preferred_element_type=jnp.float32)
    return jnp.where(visible_BMS[:, None], scores / math.sqrt(q_BKMC.shape[-1]), DEAD)


def _mix(weights_BKMS: jax.Array, v_BKSC: jax.Array) -> jax.Array:
    return product("bkms,bksc->bkmc", weights_BKMS, v_BKSC, preferred_element_type=jnp.float32)


def layer_of(cache: KVCache | None, layer: int) -> tuple[jax.Array, jax.Array, jax.Array] | None:
    """One layer's keys, values and the lengths, as ``attend`` takes them."""
    return None if cache is None else (cache.keys[layer], cache.values[layer], cache.length)
