"""How the target chooses a token, and the noise that makes the choice repeatable.

The choice at absolute position p of row b is ``argmax(filtered_logits / T + gumbel(fold_in(key_b, p)))``. The noise
belongs to the position, not to the round, so the same seed gives the same text however the text is drafted; and under
the rule ``coupled`` the drafter ranks its candidates with that very noise.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.wanted import filled, where_wanted
from redrafter_jax.model.layers import take_rows

TYPICAL_EPSILON, TYPICAL_DELTA = 0.09, 0.3  # Medusa's published constants: threshold, and factor of exp(-entropy)
DRAFTS, DECISIONS = 2**32 - 1, 2**32 - 2  # positions that no text has: streams of noise besides the target's
BLOCK, SHORT_BLOCK = 128, 16
MANY = 100  # tokens, as candidates are: from so many on, a top-k is worth short blocks where a top-k is a sort, as on TPU and GPU
WORTH_SELECTING, SHARE = 16384, 128  # from so many tokens on, top-k and top-p look among one in SHARE first, the largest


def noise(policy: Policy, first_B: jax.Array, count: int, vocab: int) -> jax.Array | None:
    """Gumbel noise ``[B, count, V]`` of the positions ``first .. first + count - 1``, 0 for a greedy row; None for a greedy
    batch. Each shard of the vocabulary makes its own part, which is the same as without shards."""
    if not policy.sampled:
        return None

    def of_row(key: jax.Array, first: jax.Array) -> jax.Array:
        at = lambda p: jax.random.gumbel(jax.random.fold_in(key, p), (vocab,), out_sharding=P("model"))  # noqa: E731
        return jax.vmap(at)(first + jnp.arange(count))

    make = lambda: jnp.where(policy.samples_B[:, None, None], jax.vmap(of_row)(policy.keys_B, first_B), 0.0)  # noqa: E731
    return where_wanted(policy.samples_B, make, filled(make, 0.0))


def show_noise(policy: Policy, noise_BMV: jax.Array | None) -> jax.Array | None:
    """What the drafter sees of the noise: that of the L positions that it drafts, 0 for a row that shows none; None for a
    batch that shows none."""
    if noise_BMV is None or not policy.shown:
        return None
    return jnp.where(policy.shown_B[:, None, None], noise_BMV[:, :-1], 0.0)


def draft_noise(policy: Policy, position_B: jax.Array, width: int, count: int) -> jax.Array:
    """Gumbel noise ``[B, W, U]`` for drawing W drafts among U tokens at a position, independent of what the target will add to its
    logits there; 0 for a greedy row."""

    def of_row(key: jax.Array, position: jax.Array) -> jax.Array:
        keys = jax.random.split(_stream(key, DRAFTS, position), width)
        return jax.vmap(lambda key: jax.random.gumbel(key, (count,), out_sharding=P("model")))(keys)

    return jnp.where(policy.samples_B[:, None, None], jax.vmap(of_row)(policy.keys_B, position_B), 0.0)


def acceptance_draws(policy: Policy, position_B: jax.Array, width: int) -> jax.Array:
    """Uniform draws ``[B, W]`` in [0, 1), by which the drafts at a position are accepted; independent of all other noise."""
    of_row = lambda key, position: jax.random.uniform(_stream(key, DECISIONS, position), (width,))  # noqa: E731
    return jax.vmap(of_row)(policy.keys_B, position_B)


def _stream(key: jax.Array, stream: int, position: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, jnp.uint32(stream)), position)


def divisor(policy: Policy) -> jax.Array | None:
    """What each row's logits are divided by, ``[B]``: the temperature, or 1 for a greedy row; None for a greedy batch."""
    return jnp.where(policy.samples_B, policy.temperature_B, 1.0) if policy.sampled else None


def warp(policy: Policy, logits_BNV: jax.Array) -> jax.Array:
    """Logits over temperature, with what top-k and top-p rule out at -inf; unchanged for a greedy row."""
    divisor_B = divisor(policy)
    if divisor_B is None:
        return logits_BNV
    scaled = logits_BNV / divisor_B[:, None, None]
    if not policy.filtered:
        return scaled
    find = lambda: _smallest_kept(policy, scaled)  # noqa: E731
    smallest_BN = where_wanted(policy.filters_B, find, filled(find, -jnp.inf))
    # A comparison with NaN is false, so a NaN stays where it is, for `choose` to notice.
    return jnp.where(scaled < smallest_BN[..., None], -jnp.inf, scaled)


def _smallest_kept(policy: Policy, scaled_BNV: jax.Array) -> jax.Array:
    """The smallest logit ``[B, N]`` that top-k and then top-p keep; -inf for a row that has neither."""
    if scaled_BNV.shape[-1] < WORTH_SELECTING:
        found_BN = _cut(policy, scaled_BNV, scaled_BNV.shape[-1])[0]
    else:
        by_value, by_block = (functools.partial(_smallest_kept_of_largest, policy, find=f) for f in (_largest, _largest_blocks))
        found_BN = jax.lax.platform_dependent(scaled_BNV, cpu=by_value, default=by_block)
    return jnp.where(policy.filters_B[:, None], found_BN, -jnp.inf)


Find = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Of a shard's logits ``[B, N, V]`` some, ``[B, N, X]``, among them all above a bound ``[B, N, 1]`` that V / SHARE reach."""


def _smallest_kept_of_largest(policy: Policy, scaled_BNV: jax.Array, find: Find) -> jax.Array:
    """Searches the largest logits of each shard of the vocabulary, without moving any. Where these do not decide every row,
    the full vocabulary is searched, for the undecided rows alone: what a row keeps does not depend on the rows beside it."""
    V, spec = scaled_BNV.shape[-1], jax.typeof(scaled_BNV).sharding.spec
    top_BN = jnp.max(scaled_BNV, axis=-1)
    total_BN = jnp.sum(jnp.exp(scaled_BNV - top_BN[..., None]), axis=-1)
    among_BNX, bounds_BNM = jax.shard_map(find, in_specs=spec, out_specs=spec)(scaled_BNV)
    found_BN, enough_BN = _cut(policy, among_BNX, V, total_BN)
    complete_BNX = among_BNX >= jnp.max(bounds_BNM, axis=-1, keepdims=True)  # down to here no larger logit is missing
    mass_BN = jnp.sum(jnp.where(complete_BNX, jnp.exp(among_BNX - top_BN[..., None]), 0.0), axis=-1)
    has_k_BN = jnp.sum(complete_BNX, axis=-1) >= policy.top_k_B[:, None]
    has_p_BN = (mass_BN >= enough_BN) | (policy.top_p_B >= 1)[:, None]
    settled_BN = has_k_BN & has_p_BN & jnp.isfinite(top_BN)
    search_all = lambda: jnp.where(settled_BN, found_BN, _cut(policy, scaled_BNV, V)[0])  # noqa: E731
    return jax.lax.cond(jnp.all(settled_BN), lambda: found_BN, search_all)


def _largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest alone (`Find`)."""
    best = jax.lax.top_k(x, x.shape[-1] // SHARE)[0]
    # the least value, not the last one: XLA:CPU turns a sliced top-k into a sort, which takes ten times as long
    return best, jnp.min(best, axis=-1, keepdims=True)


def _largest_blocks(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The blocks with the largest maxima (`Find`): a sixteenth to sort, where a top-k is a sort, as on TPU and GPU."""
    blocks = _in_blocks(x, SHORT_BLOCK)
    best, at = jax.lax.top_k(jnp.max(blocks, axis=-1), x.shape[-1] // SHARE)
    return take_rows(blocks, at, x.ndim - 1).reshape(*x.shape[:-1], -1), best[..., -1:]


def _cut(policy: Policy, among_BNX: jax.Array, vocab: int, total_BN: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The smallest of these logits that top-k and then top-p keep, and the mass that top-p asks for (inf without a top-p).
    Mass is the sum of exp(logit - largest logit). ``total``: the vocabulary's mass, if these logits are a part of it.

    Both keep a value by what lies above it: fewer than k values, less than top_p of the probability of the k. Found by
    bisection, so that a vocabulary that is split over ``model`` need neither be sorted nor gathered.
    """
    k_B1 = jnp.where(policy.top_k_B > 0, policy.top_k_B, vocab)[:, None]
    count_above = lambda x_BN: jnp.sum(among_BNX > x_BN[..., None], axis=-1)  # noqa: E731
    last_BN = jax.lax.cond(
        jnp.any(policy.top_k_B > 0),
        lambda: _bisect(lambda x_BN: count_above(x_BN) < k_B1, among_BNX),
        lambda: jnp.maximum(jnp.min(among_BNX, axis=-1), jnp.finfo(jnp.float32).min),
    )
    mass_BNX = jnp.exp(among_BNX - jnp.max(among_BNX, axis=-1, keepdims=True))
    mass_above = lambda x_BN: jnp.sum(jnp.where(among_BNX > x_BN[..., None], mass_BNX, 0.0), axis=-1)  # noqa: E731
    of_last_BN = jnp.exp(last_BN - jnp.max(among_BNX, axis=-1))
    of_k_BN = mass_above(last_BN) + (k_B1 - count_above(last_BN)) * of_last_BN  # of values equal to the k-th, as many as make k
    if total_BN is not None:
        of_k_BN = jnp.where((policy.top_k_B > 0)[:, None], of_k_BN, total_BN)
    enough_BN = jnp.where(policy.top_p_B[:, None] < 1, policy.top_p_B[:, None] * of_k_BN, jnp.inf)
    smallest_BN = jax.lax.cond(
        jnp.any(policy.top_p_B < 1),
        lambda: jnp.maximum(last_BN, _bisect(lambda x_BN: mass_above(x_BN) < enough_BN, among_BNX)),
        lambda: last_BN,
    )
    return smallest_BN, enough_BN


def _bisect(keeps, x_BNV: jax.Array) -> jax.Array:
    """The smallest float ``[B, N]`` for which ``keeps`` is true. ``keeps`` has to be monotone, and true for the row's
    largest. The bisection runs over int32 in the order of the floats, so it ends at an exact float32."""
    largest_BN = _as_ordered_int(jnp.max(x_BNV, axis=-1))

    def halve(_, bounds):
        low, high = bounds  # keeps(high), and not keeps(low)
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        kept = keeps(_as_float(middle))
        return jnp.where(kept, low, middle), jnp.where(kept, middle, high)

    lowest_BN = jnp.zeros_like(largest_BN) + _as_ordered_int(jnp.float32(-jnp.inf))
    return _as_float(jax.lax.fori_loop(0, 32, halve, (lowest_BN, largest_BN))[1])


def _as_ordered_int(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _as_float(ordered: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(jnp.where(ordered < 0, ordered ^ jnp.int32(0x7FFFFFFF), ordered), jnp.float32)


def choose(warped_BNV: jax.Array, noise_BNV: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The target's own next token at each node, ``[B, N]`` int32; and whether it is one, ``[B, N]`` bool: where a logit is NaN
    or Inf, or none is left, the largest score is not finite and the token means nothing."""
    scores = warped_BNV if noise_BNV is None else warped_BNV + noise_BNV
    largest_BN, index_BN = _largest_of(scores)
    return index_BN, jnp.isfinite(largest_BN)


def _largest_of(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of the last axis and its index, int32: `jnp.argmax` (the first NaN, else the first of the largest) with the
    value that it compares, which would otherwise take another pass, and another operation between shards."""

    def larger(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (x, i), (y, j) = one, other
        both_nan, only_x_nan = (x != x) & (y != y), (x != x) & (y == y)
        is_one = only_x_nan | (x > y) | (((x == y) | both_nan) & (i < j))
        return jnp.where(is_one, x, y), jnp.where(is_one, i, j)

    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1, out_sharding=jax.typeof(x).sharding)
    start = (jnp.array(-jnp.inf, x.dtype), jnp.int32(0))
    return jax.lax.reduce((x, index), start, larger, (x.ndim - 1,))


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of the last axis and their indices, as ``lax.top_k`` (exactly, ties to the smaller index), fast
    for a small k of a long axis: only the k blocks with the largest maxima can hold them.

    A last axis split over ``model`` is searched on each shard, and only the shards' k best travel. Each device searches its
    own shard explicitly, because XLA's partitioner would gather the full operand of a top-k.
    """
    spec = jax.typeof(x).sharding.spec
    if spec[-1] is None:
        return jax.shard_map(lambda x: _blockwise_top_k(x, k), in_specs=spec, out_specs=spec)(x)

    def of_shard(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, index = _blockwise_top_k(x, min(k, x.shape[-1]))
        return values, index + jax.lax.axis_index(spec[-1]) * x.shape[-1]

    def combine(values: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        best, at = jax.lax.top_k(values, k)
        return best, jnp.take_along_axis(index, at, axis=-1)

    whole = P(*spec[:-1], None)
    found = (jax.sharding.reshard(part, whole) for part in jax.shard_map(of_shard, in_specs=spec, out_specs=spec)(x))
    return jax.shard_map(combine, in_specs=whole, out_specs=whole)(*found)


def _blockwise_top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """On one device."""
    *rest, V = x.shape
    size = BLOCK if 4 * k * BLOCK <= V else SHORT_BLOCK
    if 3 * k * size > 2 * V or (size == SHORT_BLOCK and k < MANY):
        return jax.lax.top_k(x, k)
    blocks = _in_blocks(x, size)
    _, best_blocks = jax.lax.top_k(jnp.max(blocks, axis=-1), k)
    best_blocks = jnp.sort(best_blocks, axis=-1)  # in order of index, so that ties fall as they would without blocks
    inside = take_rows(blocks, best_blocks, len(rest)).reshape(*rest, -1)
    values, at = jax.lax.top_k(inside, k)
    return values, take_rows(best_blocks, at // size, len(rest)) * size + at % size


def _in_blocks(x: jax.Array, size: int) -> jax.Array:
    """``[..., V]`` as ``[..., V / size, size]``, the last block filled with -inf."""
    *rest, V = x.shape
    return jnp.pad(x, [(0, 0)] * len(rest) + [(0, -V % size)], constant_values=-jnp.inf).reshape(*rest, -1, size)
