"""Grouped-query attention of N new tokens to a cache and to each other, under one boolean mask.

The N tokens can be a prompt (each sees the ones before it) or a tree (each sees its ancestors): the difference is the
``[B, N, N]`` mask. Their own keys and values stay apart from the cache during the pass, so a pass only reads the
cache; what is accepted is written afterwards, once.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.model.cache import KVCache
from redrafter_jax.model.layers import capped, einsum

MASKED_SCORE = -1e30  # a finite stand-in for -inf: a row that sees nothing gives a mean, not NaN


@dataclasses.dataclass(frozen=True)
class Scores:
    """What becomes of the product of a query and a key before the softmax: times ``scale`` (None: 1 / sqrt(C)), and then, where
    there is a ``cap``, cap * tanh(score / cap)."""

    scale: float | None = None
    cap: float | None = None


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
    scores: Scores = Scores(),
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
        attends = [functools.partial(_attend_to_prefix, size, scores) for size in prefixes]
        which = jnp.sum(jnp.max(length_B) > jnp.array(prefixes[:-1], jnp.int32))
        return jax.lax.switch(which, attends, q_BNHC, k_BKNC, v_BKNC, visible_BNN, keys, values, length_B, seen_BNS)
    B, N, H, C = q_BNHC.shape
    G = H // k_BKNC.shape[1]
    # A masked key has weight zero, but zero times NaN is NaN, so its value is replaced by zero too.
    v_BKNC = jnp.where(jnp.any(visible_BNN, axis=1)[:, None, :, None], v_BKNC, 0)
    keys, values, masks = [k_BKNC], [v_BKNC], [jnp.tile(visible_BNN, (1, G, 1))]
    if cached is not None:
        cache_k, cache_v, length_B = cached
        live_BS = jnp.arange(cache_k.shape[2]) < length_B[:, None]
        live_BNS = live_BS[:, None, :] if seen_BNS is None else jnp.tile(live_BS[:, None, :] & seen_BNS, (1, G, 1))
        keys.insert(0, cache_k)
        values.insert(0, jnp.where(live_BS[:, None, :, None], cache_v, 0))
        masks.insert(0, jnp.broadcast_to(live_BNS, (B, G * N, live_BS.shape[1])))
    operands = (_by_key_head(q_BNHC, G), tuple(keys), tuple(values), tuple(masks))
    mix = functools.partial(softmax_mix, scores=scores)
    if G * N == 1:
        of_eight = functools.partial(of_eight_queries, scores=scores)
        mixed = jax.lax.platform_dependent(*operands, tpu=of_eight, default=mix)
    else:
        mixed = mix(*operands)
    return _by_query_head(mixed, G)


def _by_key_head(q_BNHC: jax.Array, group: int) -> jax.Array:
    """``[B, K, G*N, C]``: the queries of the G heads that share keys side by side, so that scores are plain batched products."""
    B, N, H, C = q_BNHC.shape
    K = H // group
    q_BNKGC = jnp.reshape(q_BNHC, (B, N, K, group, C), out_sharding=P("data", None, "model", None, None))
    return jnp.reshape(q_BNKGC.transpose(0, 2, 3, 1, 4), (B, K, group * N, C), out_sharding=P("data", "model", None, None))


def _by_query_head(mixed_BKMC: jax.Array, group: int) -> jax.Array:
    """The inverse: ``[B, N, H, C]``."""
    B, K, M, C = mixed_BKMC.shape
    N = M // group
    split = jnp.reshape(mixed_BKMC, (B, K, group, N, C), out_sharding=P("data", "model", None, None, None))
    return jnp.reshape(split.transpose(0, 3, 1, 2, 4), (B, N, K * group, C), out_sharding=P("data", None, "model", None))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """Attention to some of the keys, in float32; `joined` combines parts into attention to all of them.

    mixed: ``[B, K, M, C]``, the sum of their values by weights exp(score - largest); largest: ``[B, K, M, 1]``, their largest
    score; total: ``[B, K, M, 1]``, the sum of the weights.
    """

    mixed: jax.Array
    largest: jax.Array
    total: jax.Array


def part(q_BKMC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array, visible_BMS: jax.Array, scores: Scores = Scores()) -> Part:
    """Attention of M queries per head of keys to S keys that lie side by side. A kernel may take its place for the cache."""
    scores_BKMS = _scores(q_BKMC, k_BKSC, visible_BMS, scores)
    largest_BKM1 = jnp.max(scores_BKMS, axis=-1, keepdims=True)
    weights_BKMS = jnp.exp(scores_BKMS - largest_BKM1)
    mixed_BKMC = _mix(weights_BKMS.astype(q_BKMC.dtype), v_BKSC)
    return Part(mixed_BKMC, largest_BKM1, jnp.sum(weights_BKMS, axis=-1, keepdims=True))


def joined(parts: Sequence[Part]) -> jax.Array:
    """Attention to the keys of all parts under one softmax, float32 ``[B, K, M, C]``. A part whose keys are all masked weighs
    nothing beside one that has any to see."""
    if len(parts) == 1:
        return parts[0].mixed / parts[0].total
    largest_BKM1 = functools.reduce(jnp.maximum, (each.largest for each in parts))
    shares = [jnp.exp(each.largest - largest_BKM1) for each in parts]
    total_BKM1 = sum(share * each.total for share, each in zip(shares, parts, strict=True))
    mixed_BKMC = sum(share * each.mixed for share, each in zip(shares, parts, strict=True))
    # The division by the sum of the weights comes last, where there are fewer numbers to divide.
    return mixed_BKMC / total_BKM1


Arrays = tuple[jax.Array, ...]


def softmax_mix(q_BKMC: jax.Array, keys: Arrays, values: Arrays, masks: Arrays, scores: Scores = Scores()) -> jax.Array:
    """The values, mixed for each of M queries ``[B, K, M, C]`` in the dtype of the queries: keys and values ``[B, K, S, C]`` and
    masks ``[B, M, S]`` of parts that do not lie side by side, each of its own S."""
    return joined([part(q_BKMC, *each, scores) for each in zip(keys, values, masks, strict=True)]).astype(q_BKMC.dtype)


def of_eight_queries(q_BK1C: jax.Array, keys: Arrays, values: Arrays, masks: Arrays, scores: Scores = Scores()) -> jax.Array:
    """The same for one query per head of keys, with seven of zeros beside it: XLA:TPU takes the vector unit for the products of
    one query, and the matrix unit for those of a tile of them."""
    padded = jnp.pad(q_BK1C, ((0, 0), (0, 0), (0, 7), (0, 0)))
    return softmax_mix(padded, keys, values, masks, scores)[:, :, :1]


def _attend_to_prefix(
    size: int, scores: Scores, q_BNHC, k_BKNC, v_BKNC, visible_BNN, keys_BKSC, values_BKSC, length_B, seen_BNS
) -> jax.Array:
    cached = (keys_BKSC[:, :, :size], values_BKSC[:, :, :size], length_B) if size else None
    seen_BNS = None if seen_BNS is None else seen_BNS[:, :, :size]
    return attend(q_BNHC, k_BKNC, v_BKNC, visible_BNN, cached, seen_BNS, scores=scores)


def _scores(q_BKMC: jax.Array, k_BKSC: jax.Array, visible_BMS: jax.Array, how: Scores) -> jax.Array:
    scores = einsum("bkmc,bksc->bkms", q_BKMC, k_BKSC, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q_BKMC.shape[-1]) if how.scale is None else scores * how.scale
    scores = scores if how.cap is None else capped(scores, how.cap)
    return jnp.where(visible_BMS[:, None], scores, MASKED_SCORE)


def _mix(weights_BKMS: jax.Array, v_BKSC: jax.Array) -> jax.Array:
    return einsum("bkms,bksc->bkmc", weights_BKMS, v_BKSC, preferred_element_type=jnp.float32)


def layer_of(cache: KVCache | None, layer: int) -> tuple[jax.Array, jax.Array, jax.Array] | None:
    """One layer's keys, values and the lengths, as ``attend`` takes them."""
    return None if cache is None else (cache.keys[layer], cache.values[layer], cache.length)
