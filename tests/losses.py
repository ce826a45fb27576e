"""The straightforward form of the loss, and rows to compare the chunked one with it on."""

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax import loss
from tests.support import put


def straightforward(drafter, target, tokens, labels, hidden, segments, config, share=0.0):
    """The loss with all logits at once, by JAX's own differentiation; ``share``: of total variation in that of soft labels."""
    B, T = tokens.shape
    state, total, teacher = jnp.zeros_like(target.hidden_of(hidden)), 0.0, None
    teacher = jax.nn.log_softmax(target.unembed(target.hidden_of(hidden)))
    for i in range(config.positions):
        read = jnp.roll(tokens, -1 - i, axis=1)
        state = drafter.advance(state, target.embed(read))
        logits = jax.nn.log_softmax(drafter.unembed(drafter.exit(drafter.context(hidden), state, read), target))
        label = jnp.roll(labels, -2 - i, axis=1)
        counts = (jnp.arange(T) < T - 2 - i) & (label != loss.IGNORED_LABEL) & (segments == jnp.roll(segments, -2 - i, axis=1))
        hard = -jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == label[..., None], logits, 0), axis=-1)
        p = jnp.exp(jnp.roll(teacher, -1 - i, axis=1))
        apart = jnp.sum(jnp.abs(p - jnp.exp(logits)), axis=-1) / 2
        soft = (1 - share) * -jnp.sum(p * logits, axis=-1) + share * apart
        mixed = (1 - config.distill_weight) * hard + config.distill_weight * soft
        total += config.decay**i * jnp.sum(mixed * counts) / jnp.maximum(jnp.sum(counts), 1)
    return total


def draw_packed_rows(config, rows: int = 2, features: int = 0):
    """Tokens, labels (some of them IGNORED), what a target shows and segments of rows of two examples, or of one and padding."""
    V, D, rng = config.vocab_size, config.hidden_size, np.random.default_rng(0)
    tokens = put(rng.integers(0, V, (rows, 23)), np.int32)
    labels = put(np.where(rng.random((rows, 23)) < 0.3, loss.IGNORED_LABEL, tokens), np.int32)
    segments = put(([[1] * 9 + [2] * 14, [1] * 20 + [0] * 3] * rows)[:rows], np.int32)
    return tokens, labels, put(rng.normal(size=(rows, 23, D * (1 + features))), np.float32), segments
