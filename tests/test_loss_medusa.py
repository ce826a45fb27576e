"""The loss of Medusa's heads against the form that makes all logits at once: value, metrics, gradients, decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax import loss
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.model.target import Target, TargetConfig
from tests import support
from tests.support import put

K, DECAY = 3, 0.8


def straightforward(heads, target, tokens, labels, hidden, segments, soft):
    """Head k at place t is scored against the token at t + 2 + k, where both are of one example."""
    (B, T), V = tokens.shape, target.config.vocab_size
    total, losses = 0.0, []
    matrices = [own[...] for own in heads.lm_heads] or [target.lm_head[...]] * K
    teacher = np.asarray(jax.nn.softmax(hidden @ np.asarray(target.lm_head[...])))
    for k in range(K):
        z = hidden
        for block in heads.blocks[k]:
            z = z + jax.nn.silu(z @ block.weight[...] + block.bias[...])
        logp = jax.nn.log_softmax(z @ matrices[k])
        counts, right, taught = np.zeros((B, T)), np.zeros((B, T, V)), np.zeros((B, T), int)
        for b in range(B):
            for t in range(T - 2 - k):
                if segments[b, t] == segments[b, t + 2 + k] and labels[b, t + 2 + k] != loss.IGNORED_LABEL:
                    counts[b, t], right[b, t, labels[b, t + 2 + k]] = 1, 1
            taught[b] = np.minimum(np.arange(T) + 1 + k, T - 1)
        mixed = (1 - soft) * right + soft * np.take_along_axis(teacher, taught[..., None], axis=1)
        losses.append(-jnp.sum(mixed * logp * counts[..., None]) / counts.sum())
        total += DECAY**k * losses[-1]
    return total, jnp.stack(losses)


@pytest.mark.parametrize("tied", [True, False], ids=["the target's LM head", "LM heads of their own"])
@pytest.mark.parametrize("soft", [0.0, 0.6])
def test_value_and_gradients_are_those_of_the_straightforward_form(mha, tied, soft):
    target = mha[0]
    heads = support.medusa_heads(target.config, K, 0.1, tied=tied)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, target.config.vocab_size, (2, 21))
    labels = np.where(rng.random(tokens.shape) < 0.8, tokens, loss.IGNORED_LABEL)
    segments = np.sort(rng.integers(1, 4, tokens.shape), axis=1)
    hidden = rng.normal(size=(*tokens.shape, target.config.hidden_size)).astype(np.float32)
    config = loss.LossConfig(K, soft, chunk=8, decay=DECAY)

    with jax.set_mesh(make_mesh(1, 1)):
        aim = jax.value_and_grad(loss.draft_loss, has_aux=True)
        arguments = (put(tokens), put(labels), put(hidden), config, put(segments))
        (total, metrics), gradients = jax.jit(aim, static_argnums=5)(heads, target, *arguments)
        aim = jax.value_and_grad(straightforward, has_aux=True)
        (expected, losses), wanted = aim(heads, target, tokens, labels, hidden, segments, soft)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(wanted)
    for found, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, leaf, atol=2e-5)
        assert np.abs(leaf).max() > 0


def test_the_gradient_is_the_same_on_a_mesh():
    shapes = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = TargetConfig(vocab_size=64, hidden_size=16, **shapes)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 64, (4, 16))
    hidden = rng.normal(size=(4, 16, 16)).astype(np.float32)
    found = []
    for mesh in ((1, 1), (2, 2)):
        with jax.set_mesh(make_mesh(*mesh)):
            target, heads = Target(jax.random.key(0), config), support.medusa_heads(config, K, 0.1, tied=False)
            aim = jax.grad(lambda *given: loss.draft_loss(*given, loss.LossConfig(K, 0.5))[0])
            gradients = jax.jit(aim)(heads, target, put(tokens), put(tokens), put(hidden))
            found.append([np.asarray(leaf) for leaf in jax.tree.leaves(gradients)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_more_positions_than_heads_are_refused(mha):
    heads = support.medusa_heads(mha[0].config, 2)
    tokens, hidden = put(np.zeros((1, 8)), np.int32), put(np.zeros((1, 8, mha[0].config.hidden_size)), np.float32)
    with pytest.raises(ValueError, match="2 heads cannot draft 3"):
        loss.draft_loss(heads, mha[0], tokens, tokens, hidden, loss.LossConfig(3))
