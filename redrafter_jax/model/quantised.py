"""Matrices of eight bits a number: whole numbers (int8) or float8_e4m3fn (fp8), with one scale per output channel.

    W[i, o] = values[i, o] scale[o]        x W = (x values) scale

The scale comes after the product, so a compiler reads eight bits a number and widens them on their way into the product: no
matrix is ever there in a wider format. Symmetric: there is no zero point. Not here: the product (`layers.times`), quantised
checkpoints (`redrafter_jax/files/quantisation.py`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from redrafter_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Format:
    """dtype: of the values; largest: the magnitude that a channel's largest weight gets."""

    dtype: jnp.dtype
    largest: float


FORMATS = {"int8": Format(jnp.dtype(jnp.int8), 127.0), "fp8": Format(jnp.dtype(jnp.float8_e4m3fn), 448.0)}


def check_device(name: str, what: str = "weights") -> None:
    """Raises BadInput where the default device cannot compute with values of a format; ``what`` names the option."""
    try:
        jax.block_until_ready(jax.jit(lambda x: x.astype(FORMATS[name].dtype).astype(jnp.float32))(jnp.ones(8)))
    except (jax.errors.JaxRuntimeError, NotImplementedError, TypeError, ValueError) as error:
        device = jax.devices()[0].device_kind
        raise BadInput(f"{what} {name}: {device} does not compute with {FORMATS[name].dtype}; take another format") from error


class Quantised(nnx.Module):
    """A matrix ``[..., in, out]``: ``values`` of eight bits, of the matrix's own shape and split, and ``scale`` ``[..., out]`` in
    float32, split as the outputs are. A stack of matrices has scales of its own for each."""

    def __init__(self, values: jax.Array, scale: jax.Array):
        self.values, self.scale = nnx.Param(values), nnx.Param(scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def size(self) -> int:
        """Weights, of which a scale is none."""
        return self.values.size


@functools.partial(jax.jit, static_argnums=1)
def quantise(weight: jax.Array, name: str) -> Quantised:
    """The matrix ``[..., in, out]`` in a format of FORMATS. The largest magnitude of each output channel becomes the format's
    largest value, and the others the nearest values; computed in float32, whatever the matrix is in."""
    form, wide = FORMATS[name], weight.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=-2)
    scale = jnp.where(largest > 0, largest / form.largest, 1.0)
    values = jnp.clip(wide / jnp.expand_dims(scale, -2), -form.largest, form.largest)
    values = jnp.round(values) if jnp.issubdtype(form.dtype, jnp.integer) else values
    return Quantised(values.astype(form.dtype), scale)


def widen(matrix: Quantised) -> jax.Array:
    """The float32 matrix that the values and scales stand for, ``[..., in, out]``."""
    return matrix.values[...].astype(jnp.float32) * jnp.expand_dims(matrix.scale[...], -2)
