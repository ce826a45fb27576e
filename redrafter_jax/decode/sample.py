"""How the target chooses a token, and the noise that makes the choice repeatable.

The choice at absolute position p of row b is ``argmax(filtered_logits / T + gumbel(fold_in(key_b, p)))``. The noise
belongs to the position, not to the round, so the same seed gives the same text however the text is drafted; and under
the rule ``coupled`` the drafter ranks its candidates with that very noise.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.model.layers import pick

Rule = Literal["coupled", "independent", "typical"]
TYPICAL_EPSILON, TYPICAL_DELTA = 0.09, 0.3  # Medusa's published constants: threshold, and factor of exp(-entropy)
BLOCK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Policy:
    """How each row samples. What decides which code runs is static, the numbers are data: changing them compiles nothing.

    temperature, top_p: ``[B]`` float32; top_k: ``[B]`` int32, 0 for off; keys: ``[B]`` typed keys, one per request.
    sampled: False is greedy decoding; filtered: whether top_k or top_p applies anywhere; rule: what is accepted.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    keys: jax.Array
    sampled: bool = dataclasses.field(metadata={"static": True}, default=False)
    filtered: bool = dataclasses.field(metadata={"static": True}, default=False)
    rule: Rule = dataclasses.field(metadata={"static": True}, default="coupled")


def noise(policy: Policy, first_B: jax.Array, count: int, vocab: int) -> jax.Array | None:
    """Gumbel noise ``[B, count, V]`` of the positions ``first .. first + count - 1``; None for greedy decoding."""
    if not policy.sampled:
        return None

    def of_row(key: jax.Array, first: jax.Array) -> jax.Array:
        return jax.vmap(lambda p: jax.random.gumbel(jax.random.fold_in(key, p), (vocab,)))(first + jnp.arange(count))

    return jax.vmap(of_row)(policy.keys, first_B)


def warp(policy: Policy, logits_BNV: jax.Array) -> jax.Array:
    """Logits over temperature, with what top-k and top-p rule out at -inf; unchanged for greedy decoding."""
    if not policy.sampled:
        return logits_BNV
    scaled = logits_BNV / policy.temperature[:, None, None]
    if not policy.filtered:
        return scaled
    scaled = jax.sharding.reshard(scaled, P("data", None, None))
    V = scaled.shape[-1]
    ordered = -jnp.sort(-scaled, axis=-1)
    rank = jnp.arange(V)
    kept = rank < jnp.where(policy.top_k > 0, policy.top_k, V)[:, None, None]
    mass = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(mass, axis=-1) - mass
    kept &= (before < policy.top_p[:, None, None]) | (rank == 0)
    smallest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled >= smallest, scaled, -jnp.inf)


def choose(warped_BNV: jax.Array, noise_BNV: jax.Array | None) -> jax.Array:
    """The target's own next token at each node, ``[B, N]`` int32."""
    scores = warped_BNV if noise_BNV is None else warped_BNV + noise_BNV
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of the last axis and their indices, as ``lax.top_k`` (exactly, ties to the smaller index), fast
    for a small k of a long axis: only the k blocks with the largest maxima can hold them.

    A last axis split over ``model`` is searched on each shard, and only the shards' k best travel.
    """
    *rest, V = x.shape
    spec = jax.typeof(x).sharding.spec
    shards = _shards(x)
    if shards == 1:
        return _blockwise_top_k(jax.sharding.reshard(x, P(*spec[:-1], None)), k)
    split = jnp.reshape(x, (*rest, shards, V // shards), out_sharding=P(*spec, None))
    values, index = _blockwise_top_k(split, min(k, V // shards))
    index = index + (jnp.arange(shards) * (V // shards))[:, None]
    values, index = (_merge(jax.sharding.reshard(t, P(*spec[:-1], None, None))) for t in (values, index))
    best, at = jax.lax.top_k(values, k)
    return best, pick(index, at, len(rest))


def _shards(x: jax.Array) -> int:
    axis = jax.typeof(x).sharding.spec[-1]
    return 1 if axis is None else jax.sharding.get_abstract_mesh().shape[axis]


def _merge(x: jax.Array) -> jax.Array:
    """The last two axes as one; spelled out, for with axes of size 1 a reshape cannot tell which of them is split."""
    *rest, _, _ = x.shape
    return jnp.reshape(x, (*rest, -1), out_sharding=P(*jax.typeof(x).sharding.spec[:-1]))


def _blockwise_top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    *rest, V = x.shape
    if 4 * k * BLOCK > V:
        return jax.lax.top_k(x, k)
    blocks = jnp.pad(x, [(0, 0)] * len(rest) + [(0, -V % BLOCK)], constant_values=-jnp.inf)
    spec = jax.typeof(x).sharding.spec
    blocks = jnp.reshape(blocks, (*rest, -1, BLOCK), out_sharding=P(*spec, None))
    _, best_blocks = jax.lax.top_k(jnp.max(blocks, axis=-1), k)
    best_blocks = jnp.sort(best_blocks, axis=-1)  # in order of index, so that ties fall as they would without blocks
    inside = _merge(pick(blocks, best_blocks, len(rest)))
    values, at = jax.lax.top_k(inside, k)
    return values, pick(best_blocks, at // BLOCK, len(rest)) * BLOCK + at % BLOCK
