"""The loss over a draft vocabulary, against its straightforward form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from redrafter_jax import loss
from redrafter_jax.model import vocabulary
from tests.draft_vocabularies import random_head
from tests.support import put


@functools.partial(jax.jit, static_argnames="config")
def differentiated(drafter, target, tokens, labels, hidden, segments, config):
    table = lambda w: vocabulary.merge(w, drafter)  # noqa: E731
    aim = lambda w: loss.draft_loss(table(w), target, tokens, labels, hidden, config, segments)  # noqa: E731
    return jax.value_and_grad(aim, has_aux=True)(vocabulary.trainable(drafter))


@functools.partial(jax.jit, static_argnames="config")
def straightforward(drafter, target, tokens, labels, hidden, segments, config):
    """Loss, its gradients, and top-1 accuracy, with all logits at once, each label looked up in the table."""
    ids, T = drafter.ids[...], tokens.shape[1]

    def aim(weights):
        head, state, total, hits = vocabulary.merge(weights, drafter), jnp.zeros_like(hidden), 0.0, []
        teacher = jax.nn.softmax(target.unembed(hidden).at[..., ids].get(out_sharding=P("data", None, "model")))
        for i in range(config.positions):
            state = head.advance(state, target.embed(jnp.roll(tokens, -1 - i, axis=1)))
            logits = jax.nn.log_softmax(head.unembed(head.exit(head.context(hidden), state), target))
            label = jnp.roll(labels, -2 - i, axis=1)
            counts = (jnp.arange(T) < T - 2 - i) & (label != loss.IGNORED_LABEL) & (segments == jnp.roll(segments, -2 - i, axis=1))
            is_label = ids == label[..., None]
            inside = counts & jnp.any(is_label, axis=-1)
            hard = -jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
            soft = -jnp.sum(jnp.roll(teacher, -1 - i, axis=1) * logits, axis=-1)
            total += (1 - config.distill_weight) * jnp.sum(hard * inside) / jnp.maximum(jnp.sum(inside), 1)
            total += config.distill_weight * jnp.sum(soft * counts) / jnp.maximum(jnp.sum(counts), 1)
            first = jnp.any(is_label & (logits == jnp.max(logits, axis=-1, keepdims=True)), axis=-1)
            hits.append(jnp.sum(first & counts) / jnp.maximum(jnp.sum(counts), 1))
        return total, jnp.stack(hits)

    return jax.value_and_grad(aim, has_aux=True)(vocabulary.trainable(drafter))


def texts(V: int, D: int):
    """Tokens, labels, hidden states and segments, packed, with labels that do not count."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (2, 23))
    labels = np.where(rng.random((2, 23)) < 0.3, loss.IGNORED_LABEL, tokens)
    segments = put([[1] * 9 + [2] * 14, [1] * 20 + [0] * 3], np.int32)
    return put(tokens, np.int32), put(labels, np.int32), put(rng.normal(size=(2, 23, D)), np.float32), segments


@pytest.mark.parametrize("kind", ["full", "slim"])
@pytest.mark.parametrize("soft", [pytest.param(0.0, marks=pytest.mark.slow), 0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_the_loss_over_a_part_of_the_vocabulary_is_that_of_the_straightforward_form(mha, kind, soft):
    target, _ = mha
    drafter = random_head(target, kind, np.arange(1, 503, 3))
    config = loss.LossConfig(3, soft, chunk=5)
    (total, metrics), gradients = differentiated(drafter, target, *texts(503, 64), config)
    (value, top1), gradient = straightforward(drafter, target, *texts(503, 64), config)
    assert float(total) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(metrics.accuracy[:, 0], top1, atol=1e-6)
    assert len(jax.tree.leaves(gradients)) == len(jax.tree.leaves(drafter)) - 1
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "slim"])
def test_the_loss_over_the_whole_vocabulary_is_the_loss_without_a_table(mha, kind):
    target, _ = mha
    without, with_ = random_head(target, kind), random_head(target, kind, np.arange(503))
    config = loss.LossConfig(3, 0.3, chunk=5)
    (total, metrics), gradients = differentiated(with_, target, *texts(503, 64), config)
    (value, other), gradient = differentiated(without, target, *texts(503, 64), config)
    assert float(total) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_array_equal(metrics.accuracy, other.accuracy)
    np.testing.assert_array_equal(metrics.scored, other.scored)
    for one, two in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
