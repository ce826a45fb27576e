"""Rotary positions: how far each pair of features turns per position, the table of cos and sin, and the turning itself.

A kind that depends on the length of the text (`dynamic`, `longrope`) takes it as data, one length per token: of a prompt all
tokens arrive together, and a decoded token arrives alone, with the text up to itself.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding as a ``config.json`` describes it, and as transformers' `modeling_rope_utils` computes it.

    ``kind`` is ``default``, ``linear`` (positions divided by ``factor``), ``dynamic`` (the base grows once a text is longer than
    ``original_length``), ``llama3`` (each frequency is kept, divided or blended by its wavelength), ``yarn`` (likewise, by the
    turns that it makes within the original length, between ``beta_fast`` and ``beta_slow`` of them; ``truncate``: the ends of
    that range are whole features) or ``longrope`` (each frequency is divided by its own short factor and, once the text is
    longer than the original length, by its long one).

    attention_factor: cos and sin are multiplied by it. share: of a head's features the first so many turn, rounded down; the
    others do not. rereads: of longrope, a text that has become longer than the original length is read again from its first
    token, with the long factors, as Phi is decoded; without it what is cached stays as it is.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    share: float = 1.0
    rereads: bool = False

    def width(self, head_dim: int) -> int:
        """Features of a head that turn."""
        return int(head_dim * self.share)

    def inverse_frequencies(self, head_dim: int, length: jax.Array) -> jax.Array:
        """Radians per position, ``[..., width / 2]`` for ``length`` ``[...]``, the length of the text that a token arrives with
        (used by ``dynamic`` and ``longrope`` alone)."""
        width = self.width(head_dim)
        exponent = jnp.arange(0, width, 2, dtype=jnp.float32) / width
        theta = jnp.float32(self.theta)
        if self.kind == "dynamic":
            longest = jnp.maximum(length, self.original_length).astype(jnp.float32)
            growth = self.factor * longest / self.original_length - (self.factor - 1)
            theta = (theta * growth ** (width / (width - 2)))[..., None]
        powers = theta**exponent
        if self.kind == "longrope":
            short, long = (1.0 / (jnp.float32(factors) * powers) for factors in (self.short_factors, self.long_factors))
            return jnp.where(length[..., None] > self.original_length, long, short)
        frequencies = jnp.broadcast_to(1.0 / powers, (*length.shape, width // 2))
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "llama3":
            return self._by_band(frequencies)
        if self.kind == "yarn":
            kept = self._kept(width)
            return frequencies / self.factor * (1 - kept) + frequencies * kept
        return frequencies

    def _by_band(self, frequencies: jax.Array) -> jax.Array:
        turns = self.original_length * frequencies / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = jnp.clip(blend, 0.0, 1.0)  # 0: long wavelengths, divided; 1: short ones, kept
        return frequencies * ((1 - blend) / self.factor + blend)

    def _kept(self, width: int) -> np.ndarray:
        """Of each frequency, ``[width / 2]``, the share that is kept (1: all, 0: it is divided by the factor)."""

        def feature(turns: float) -> float:
            """Of the pairs the one, as a number that need not be whole, that makes so many turns within the original length."""
            return width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        first, last = feature(self.beta_fast), feature(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        span = 0.001 if first == last else last - first
        return 1 - np.clip((np.arange(width // 2, dtype=np.float32) - first) / span, 0, 1)


def lengths_alone(rope: Rope, positions_BN: jax.Array, has_cache: bool) -> jax.Array:
    """The length of the text ``[B, N]`` that each token arrives with, where nobody says: behind a cache, or where it makes no
    lasting difference, that up to itself. A text that would be read again (`Rope.rereads`) arrives as a whole."""
    if rope.rereads and not has_cache:
        return jnp.max(positions_BN, axis=1, keepdims=True) + 1 + jnp.zeros_like(positions_BN)
    return positions_BN + 1


def rope_table(rope: Rope, head_dim: int, positions_BN: jax.Array, lengths_BN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin ``[B, N, width]`` in float32 for absolute positions, times the attention factor; half-split layout (feature i
    turns with i + width / 2)."""
    angles = positions_BN.astype(jnp.float32)[..., None] * rope.inverse_frequencies(head_dim, lengths_BN)
    angles = jnp.concatenate([angles, angles], axis=-1)
    if rope.attention_factor == 1:
        return jnp.cos(angles), jnp.sin(angles)
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(x_BNHC: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns queries or keys ``[B, N, H, C]`` by their positions, as many of their features as the table has."""
    cos, sin = (t[:, :, None, :].astype(x_BNHC.dtype) for t in table)
    width = cos.shape[-1]
    low, high = jnp.split(x_BNHC[..., :width], 2, axis=-1)
    turned = x_BNHC[..., :width] * cos + jnp.concatenate([-high, low], axis=-1) * sin
    return turned if width == x_BNHC.shape[-1] else jnp.concatenate([turned, x_BNHC[..., width:]], axis=-1)
