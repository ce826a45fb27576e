"""How far a target has moved from what it was, and the loss that keeps it near: KL(original || adapted) on a text, in nats.

The distributions are compared at every place whose next token is labelled. The logits of both targets exist for a chunk of
positions at a time, and the backward pass makes those of a chunk again. Not here: the adapter (`model/lora.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.loss import IGNORED_LABEL, chunk_length
from redrafter_jax.model.target import Target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drift:
    """Means over the places that were compared, in nats: kl, of KL(original || adapted); text and original_text, of the
    cross-entropies of the text's own next tokens by the two; agreement: the share of places where both find the same token the
    likeliest; places: how many there were."""

    kl: jax.Array
    text: jax.Array
    original_text: jax.Array
    agreement: jax.Array
    places: jax.Array


def labels_of_next_tokens(labels_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """At each place the label of the next token, ``[B, T]``; IGNORED where that is of another example of the row."""
    shifted = lambda x_BT: jnp.concatenate([x_BT[:, 1:], jnp.zeros_like(x_BT[:, :1])], axis=1)  # noqa: E731
    next_BT = jnp.where(segments_BT == shifted(segments_BT), shifted(labels_BT), IGNORED_LABEL)
    return next_BT.at[:, -1].set(IGNORED_LABEL)


def measure(
    adapted: Target, hidden_BTD: jax.Array, original: Target, original_BTD: jax.Array, next_BT: jax.Array, chunk: int = 0
) -> Drift:
    """The drift on a text that both targets have read. Gradients flow into ``hidden_BTD`` alone.

    Args:
      hidden_BTD, original_BTD: the hidden states of each target after its last norm.
      next_BT: `labels_of_next_tokens`.
      chunk: positions whose logits exist at a time; 0: as many as a device has room for.
    """
    B, T, _ = hidden_BTD.shape
    chunk = min(chunk, T) if chunk else chunk_length(2 * B * original.config.vocab_size, T)
    adapted, original, original_BTD = jax.lax.stop_gradient((adapted, original, original_BTD))

    @jax.checkpoint
    def of_chunk(sums, part):
        hidden_BND, original_BND, next_BN = part
        q_BNV, p_BNV = (jax.nn.log_softmax(each) for each in (adapted.unembed(hidden_BND), original.unembed(original_BND)))
        counts_BN = next_BN != IGNORED_LABEL
        is_label_BNV = jnp.arange(p_BNV.shape[-1]) == next_BN[..., None]
        found = (
            jnp.sum(jnp.exp(p_BNV) * (p_BNV - q_BNV), axis=-1),
            *(-jnp.sum(jnp.where(is_label_BNV, logs_BNV, 0.0), axis=-1) for logs_BNV in (q_BNV, p_BNV)),
            (jnp.argmax(q_BNV, axis=-1) == jnp.argmax(p_BNV, axis=-1)).astype(jnp.float32),
            jnp.ones(counts_BN.shape),
        )
        return tuple(total + jnp.sum(jnp.where(counts_BN, each, 0.0)) for total, each in zip(sums, found, strict=True)), None

    given = (hidden_BTD, original_BTD, next_BT)
    filled = (_cut(x, chunk, IGNORED_LABEL if x is next_BT else 0) for x in given)
    *sums, places = jax.lax.scan(of_chunk, (jnp.float32(0),) * 5, tuple(filled))[0]
    return Drift(*(total / jnp.maximum(places, 1) for total in sums), places)


def _cut(x_BT: jax.Array, chunk: int, padding: int) -> jax.Array:
    """``[B, T, ...]`` in chunks, ``[T / N, B, N, ...]``, the last one padded."""
    B, T, *rest = x_BT.shape
    widths = [(0, 0), (0, -T % chunk), *[(0, 0)] * len(rest)]
    padded = jnp.pad(x_BT, widths, constant_values=padding)
    spec = P("data", *[None] * (len(rest) + 2))
    return jnp.moveaxis(jnp.reshape(padded, (B, -1, chunk, *rest), out_sharding=spec), 1, 0)
