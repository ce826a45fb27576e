"""What both networks are made of: weights with a sharding, the linear layer and its one product, RMSNorm."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from redrafter_jax.model.quantised import Quantised, quantise

COLUMNS, ROWS = P(None, "model"), P("model", None)
"""How an ``[in, out]`` matrix is split: each shard makes some outputs, or sums over some inputs (and the sums are added)."""


def param(key: jax.Array, shape: tuple[int, ...], spec: P, dtype: jnp.dtype, scale: float | None = None) -> nnx.Param:
    """A normally distributed weight; ``scale`` is its standard deviation, 1/sqrt(fan_in) of an ``[in, out]`` matrix
    if not given."""
    scale = 1 / math.sqrt(shape[0]) if scale is None else scale
    weight = jax.random.normal(key, shape, jnp.float32, out_sharding=spec) * scale
    return nnx.Param(weight.astype(dtype))


def zeros(shape: tuple[int, ...], spec: P, dtype: jnp.dtype) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, dtype, out_sharding=spec))


def ones(shape: tuple[int, ...], spec: P, dtype: jnp.dtype) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, dtype, out_sharding=spec))


class Linear(nnx.Module):
    """x W + b with W ``[in, out]``, split over ``model`` by COLUMNS or by ROWS: every layer of the target and of the head."""

    def __init__(self, key, shape: tuple[int, int], split: P, dtype, bias: bool = False, scale: float | None = None):
        self.split = split
        self.weight = param(key, shape, split, dtype, scale)
        self.bias = zeros(shape[1:], P(split[1]), dtype) if bias else None

    def quantise(self, weight_format: str) -> None:
        """Puts the matrix into a format of `quantised.FORMATS`, in place of the float one."""
        self.weight = quantise(self.weight[...], weight_format)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, ..., in]`` -> ``[B, ..., out]``."""
        y = times(x, self.weight, self.split)
        return y if self.bias is None else y + self.bias[...]


class SplitLinear(nnx.Module):
    """A `Linear` that reads ``[h ; s]``, with its rows for h and those for s as two weights: XLA:CPU would copy a slice of one
    weight in every round."""

    def __init__(self, layer: Linear):
        D = layer.weight.shape[0] // 2
        self.weight_h, self.weight_s = nnx.Param(layer.weight[:D]), nnx.Param(layer.weight[D:])
        self.bias = layer.bias


def halves(layer: Linear | SplitLinear) -> tuple[nnx.Param | jax.Array, nnx.Param | jax.Array]:
    """The rows for h and those for s of a layer that reads ``[h ; s]``, both ``[D, out]``."""
    if isinstance(layer, SplitLinear):
        return layer.weight_h, layer.weight_s
    weight = gather_weight(layer.weight, COLUMNS)
    D = weight.shape[0] // 2
    return weight[:D], weight[D:]


def quantise_matrices(module: nnx.Module, weight_format: str) -> nnx.Module:
    """The module with the matrices of its parts in a format of `quantised.FORMATS`, where a part can have them so."""
    for part in vars(module).values():
        if hasattr(part, "quantise"):
            part.quantise(weight_format)
    return module


def times(x: jax.Array, weight: nnx.Param | jax.Array | Quantised, split: P = COLUMNS) -> jax.Array:
    """x W for x ``[B, ..., in]`` and W ``[in, out]``, ``split`` over ``model``: ``[B, ..., out]``.

    Every matrix of the target and of the head is multiplied here, so another kind of weight (quantised, or with a low-rank
    delta) needs to be known here alone.
    """
    spec = P("data", *[None] * (x.ndim - 2), split[1])
    if isinstance(weight, Quantised):
        values, scale = gather_weight(weight.values, split), gather_weight(weight.scale, P(split[1]))
        with jax.named_scope("linear"):
            return (product(x, values.astype(x.dtype), spec) * scale).astype(x.dtype)
    ready = gather_weight(weight, split)
    with jax.named_scope("linear"):  # so that a profile tells it from gathering the weight, and from attention
        return product(x, ready, spec)


def gather_weight(weight: nnx.Param | jax.Array, spec: P) -> jax.Array:
    """A weight as it is multiplied: gathered over ``data`` where it is stored split over that axis too. A weight marked as
    `reduced` already is."""
    array = weight[...] if isinstance(weight, nnx.Variable) else weight
    return array if jax.typeof(array).sharding.spec.reduced else jax.sharding.reshard(array, spec)


def gather_features(x: jax.Array) -> jax.Array:
    """Gathers features ``[B, ..., D]`` that are split over ``model``, so that every shard has all of them."""
    return jax.sharding.reshard(x, P("data", *[None] * (x.ndim - 1)))


def einsum(subscripts: str, x: jax.Array, y: jax.Array, **options) -> jax.Array:
    """`jnp.einsum` of two arrays, through which every product goes but that of experts, at `precision_of` them."""
    return jnp.einsum(subscripts, x, y, precision=precision_of(x, y), **options)


def precision_of(x: jax.Array, y: jax.Array) -> jax.lax.Precision | None:
    """Float32 operands are multiplied as float32 on every device, unless `jax.default_matmul_precision` says otherwise: TPUs and
    GPUs would round them to bfloat16 or TF32 first."""
    is_exact = jnp.result_type(x, y) == jnp.float32 and jax.config.jax_default_matmul_precision is None
    return jax.lax.Precision.HIGHEST if is_exact else None


def product(x: jax.Array, weight: jax.Array, spec: P) -> jax.Array:
    """x W over the last axis of x ``[B, ..., in]`` with W ``[in, out]``, split as ``spec`` says.

    XLA:TPU multiplies a single row on the vector unit, which by its own cost model takes three to four times as long as
    reading the weights. From two rows on it uses the matrix unit, so on a TPU a shard's only row gets a second one of
    zeros.
    """
    rows = math.prod(jax.typeof(x).sharding.shard_shape(x.shape)[:-1])
    times = functools.partial(_times, spec=spec)
    if rows > 1 or x.ndim != 3:
        return times(x, weight)
    return jax.lax.platform_dependent(x, weight, tpu=functools.partial(of_two_rows, spec=spec), default=times)


def _times(x: jax.Array, weight: jax.Array, spec: P) -> jax.Array:
    return einsum("...i,io->...o", x, weight, out_sharding=spec)


def of_two_rows(x: jax.Array, weight: jax.Array, spec: P) -> jax.Array:
    """The same for x ``[B, 1, in]``, computed as that of ``[B, 2, in]`` whose second row is zeros."""
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    return _times(padded, weight, spec)[:, :1]


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, adds_one: bool = False) -> jax.Array:
    """x / rms(x) * weight over the last axis; the mean square in float32, the product in x's dtype. With ``adds_one`` it is
    times 1 + weight, all in float32, as in Gemma."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * (1 + weight.astype(jnp.float32))).astype(x.dtype) if adds_one else weight * wide.astype(x.dtype)


def scaled(x: jax.Array, by: float) -> jax.Array:
    """x times a number that x's dtype need not have; the product is rounded once."""
    return x if by == 1 else (x.astype(jnp.float32) * by).astype(x.dtype)


def capped(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap): a soft limit on scores and logits."""
    return cap * jnp.tanh(x / cap)


def take_rows(values: jax.Array, index: jax.Array, batch: int = 1) -> jax.Array:
    """``values[..., index[...], ...]``: each row (of the first ``batch`` axes) indexes its own next axis, from 0 up. A gather
    under `vmap`, so that a split batch axis stays split."""
    take = lambda row, at: row.at[at].get(mode="clip", wrap_negative_indices=False)  # noqa: E731
    for _ in range(batch):
        take = jax.vmap(take)
    return take(values, index)
