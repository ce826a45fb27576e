"""Parts that a draft head may have beyond the paper's. An untrained part changes nothing, or little, so that a head that has learnt
without it can go on with it.

    bigram      logits += R[x_{t-1}] C          R: V rows of rank r, C: ``[r, U]``
    depths      h + [n(f_1) ; .. ; n(f_F)] M    f: outputs of inner layers of the target, n: to a root mean square of 1
    gated       s_t = u s_{t-1} + (1 - u) silu(W e(x_{t-1}) + U (r * s_{t-1}) + b)
                u, r = sigmoid(their own W and U)          a GRU with the paper's activation (arXiv 1406.1078)

Apple's architecture has a place for none of them. Not here: the head (`drafter.py`).
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import layers

FEATURE_EPS = 1e-6
OPEN, SHUT = 4.0, -4.0  # biases of untrained gates: the state is reset by 0.98 and kept by 0.02, nearly the cell without them


class Bigram(nnx.Module):
    """A low-rank table of which token often follows which; the columns start at zero, None where a candidate head has them."""

    def __init__(self, key, vocabulary: int, drafted: int, rank: int, dtype, has_columns: bool = True):
        self.rows = layers.param(key, (vocabulary, rank), layers.COLUMNS, dtype, scale=rank**-0.5)
        self.columns = layers.zeros((rank, drafted), layers.COLUMNS, dtype) if has_columns else None

    def of(self, tokens: jax.Array) -> jax.Array:
        """The rows ``[B, ..., r]`` of tokens ``[B, ...]``, ids of the target's."""
        spec = P("data", *[None] * tokens.ndim)
        rows_VR = layers.gather_weight(self.rows, layers.COLUMNS)
        return rows_VR.at[tokens].get(out_sharding=spec, mode="promise_in_bounds")


class Depths(nnx.Module):
    """What a head reads of inner layers of the target, added to h; the matrix starts at zero (features of several depths: EAGLE-3,
    arXiv 2503.01840). It is multiplied once for all beams and steps of a round."""

    def __init__(self, key, width: int, count: int, dtype):
        self.mix = layers.Linear(key, (count * width, width), layers.COLUMNS, dtype, scale=0.0)

    def __call__(self, shown: jax.Array) -> jax.Array:
        """``[..., D]`` from what the target shows ``[..., D + F*D]``."""
        D = self.mix.weight.shape[1]
        h, *inner = (shown[..., at : at + D] for at in range(0, shown.shape[-1], D))
        one = jnp.ones(D, shown.dtype)
        normed = jnp.concatenate([layers.rms_norm(each, one, FEATURE_EPS) for each in inner], axis=-1)
        return h + layers.gather_features(self.mix(normed)).astype(h.dtype)


def evenly(layers_of_target: int, count: int) -> tuple[int, ...]:
    """So many layers of a target, counted from 0, that part it evenly: of 6 layers the second and the fourth. A target of no more
    than ``count``, as one that is cut for a measurement may be, has its first ones, the last as often as it takes."""
    parted = max(layers_of_target, count + 1)
    return tuple(min(round(parted * (i + 1) / (count + 1)), layers_of_target) - 1 for i in range(count))


def all_features(parts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The layers that are in any of these, ascending."""
    return tuple(sorted(set().union(*parts)))


def pick_features(shown: jax.Array, layers_shown: tuple[int, ...], wanted: tuple[int, ...]) -> jax.Array:
    """``[..., D + G*D]``, the hidden state and G layers, of what a target shows (`Pass.shown`), ``[..., D + F*D]``."""
    if layers_shown == wanted:
        return shown
    D = shown.shape[-1] // (1 + len(layers_shown))
    places = [0, *(D * (1 + layers_shown.index(layer)) for layer in wanted)]
    return jnp.concatenate([shown[..., at : at + D] for at in places], axis=-1)


class Gates(nnx.Module):
    """What a cell keeps of its state (u), and what its candidate reads of it (r)."""

    def __init__(self, key, width: int, dtype):
        keys = jax.random.split(key, 4)
        linear = functools.partial(layers.Linear, shape=(width, width), split=layers.COLUMNS, dtype=dtype)
        self.keep_w, self.keep_u = linear(keys[0]), linear(keys[1], bias=True)
        self.read_w, self.read_u = linear(keys[2]), linear(keys[3], bias=True)
        self.keep_u.bias = nnx.Param(self.keep_u.bias[...] + jnp.asarray(SHUT, dtype))
        self.read_u.bias = nnx.Param(self.read_u.bias[...] + jnp.asarray(OPEN, dtype))

    def __call__(self, state: jax.Array, embedding: jax.Array) -> tuple[jax.Array, jax.Array]:
        """u and r ``[..., D]``, each from 0 to 1; both arguments ``[..., D]``."""
        keep = jax.nn.sigmoid(self.keep_w(embedding) + self.keep_u(state))
        read = jax.nn.sigmoid(self.read_w(embedding) + self.read_u(state))
        return layers.gather_features(keep), layers.gather_features(read)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnColumns:
    """The LM head of a head with a bigram term. lm_head: ``[E, U]``, None for the target's; bigram: ``[r, U]``, by which the last r
    features of an exit are multiplied."""

    lm_head: jax.Array | None
    bigram: jax.Array


def split_exit(exit_: jax.Array, bigram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An exit ``[..., E + r]`` as what the LM head reads and what the bigram's columns ``[r, U]`` are multiplied by."""
    E = exit_.shape[-1] - bigram.shape[0]
    return exit_[..., :E], exit_[..., E:]
