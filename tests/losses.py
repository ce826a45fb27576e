"""The straightforward form of the loss, and rows to compare the chunked one with it on."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from redrafter_jax import loss
from redrafter_jax.cross_entropy import BEAM
from tests.support import put


def straightforward(drafter, target, tokens, labels, hidden, segments, config, share=0.0):
    """The loss with all logits at once, by JAX's own differentiation; ``share``: of the config's distance in the soft labels'."""
    B, T = tokens.shape
    state, total, teacher = jnp.zeros_like(hidden), 0.0, jax.nn.log_softmax(target.unembed(hidden))
    for i in range(config.positions):
        read = jnp.roll(tokens, -1 - i, axis=1)
        state = drafter.advance(state, target.embed(read))
        logits = jax.nn.log_softmax(drafter.unembed(drafter.exit(drafter.context(hidden), state, read), target))
        label = jnp.roll(labels, -2 - i, axis=1)
        counts = (jnp.arange(T) < T - 2 - i) & (label != loss.IGNORED_LABEL) & (segments == jnp.roll(segments, -2 - i, axis=1))
        hard = -jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == label[..., None], logits, 0), axis=-1)
        p = jnp.exp(jnp.roll(teacher, -1 - i, axis=1))
        apart = distance(config.distance, logits, p)
        soft = (1 - share) * -jnp.sum(p * logits, axis=-1) + share * apart
        mixed = (1 - config.distill_weight) * hard + config.distill_weight * soft
        total += config.decay**i * jnp.sum(mixed * counts) / jnp.maximum(jnp.sum(counts), 1)
    return total


def distance(kind, logits, p):
    """What a soft label's cross-entropy is mixed with, from log-probabilities and the target's probabilities."""
    if kind == "among":
        least = jax.lax.top_k(jax.sharding.reshard(logits, P("data")), BEAM)[0][..., -1:]
        return jnp.sum(p * jnp.log1p(jnp.exp(least - logits)), axis=-1)
    overlap = jnp.sum(jnp.minimum(p, jnp.exp(logits)), axis=-1)
    return -jnp.log(overlap) if kind == "overlap" else 1 - overlap


def draw_packed_rows(config, rows: int = 2):
    """Tokens, labels (some of them IGNORED), hidden states and segments of rows of two examples, or of one and padding."""
    V, D, rng = config.vocab_size, config.hidden_size, np.random.default_rng(0)
    tokens = put(rng.integers(0, V, (rows, 23)), np.int32)
    labels = put(np.where(rng.random((rows, 23)) < 0.3, loss.IGNORED_LABEL, tokens), np.int32)
    segments = put(([[1] * 9 + [2] * 14, [1] * 20 + [0] * 3] * rows)[:rows], np.int32)
    return tokens, labels, put(rng.normal(size=(rows, 23, D)), np.float32), segments
