"""The loss of heads with parts beyond the paper's, and with total variation in it, against the straightforward form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax import loss
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target, TargetConfig
from tests.losses import draw_packed_rows, straightforward
from tests.support import put

KINDS = {
    "slim": dict(tied=True, bigram=8, gated=True, depths=(0, 1)),
    "full": dict(bigram=8),
    "slim of a draft vocabulary": dict(tied=True, bigram=8, draft_vocab=24),
}


def make(config: TargetConfig, kind: str) -> Drafter:
    """A head whose parts all do something."""
    D = config.hidden_size
    width = D if KINDS[kind].get("tied") else 2 * D
    shapes = DrafterConfig(vocab_size=config.vocab_size, hidden_size=D, exit_size=width, **KINDS[kind])
    ids = jnp.sort(jax.random.permutation(jax.random.key(1), config.vocab_size)[:24]) if shapes.draft_vocab else None
    head = Drafter(jax.random.key(2), shapes, ids=ids)
    head.bigram.columns[...] = 0.3 * jax.random.normal(jax.random.key(5), head.bigram.columns.shape)  # not the untrained zeros
    if head.depths:
        head.depths.mix.weight[...] = 0.1 * jax.random.normal(jax.random.key(6), head.depths.mix.weight.shape)
    for linear in (head.gates.keep_u, head.gates.read_u) if head.gates else ():
        linear.bias[...] = jnp.zeros_like(linear.bias[...])  # half open, so that all weights have gradients
    return head


@pytest.mark.parametrize(("kind", "soft", "share"), [("slim", 1.0, 0.5), ("full", 0.3, 0.0), ("full", 0.7, 1.0)])
def test_value_and_gradients_are_those_of_the_straightforward_form(kind, soft, share, mha):
    target, _ = mha
    drafter = make(target.config, kind)
    given = draw_packed_rows(target.config, features=len(drafter.config.depths))
    config = loss.LossConfig(3, soft, chunk=5, decay=0.8, with_distance=share > 0)
    value, gradient = jax.jit(jax.value_and_grad(straightforward), static_argnames=("config", "share"))(
        drafter, target, *given, config=config, share=share
    )
    tokens, labels, hidden, segments = given
    ours = jax.jit(jax.value_and_grad(loss.draft_loss, has_aux=True), static_argnames="config")
    found = ours(drafter, target, tokens, labels, hidden, config=config, segments_BT=segments, distance_share=share)
    assert float(found[0][0]) == pytest.approx(float(value), rel=1e-5)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(gradient), strict=True):
        largest = np.abs(other).max()
        np.testing.assert_allclose(one, other, atol=1e-3 * largest)
        assert largest > 0


def test_a_share_of_zero_is_the_cross_entropy(mha):
    target, _ = mha
    drafter = make(target.config, "slim")
    tokens, labels, hidden, segments = draw_packed_rows(target.config, features=len(drafter.config.depths))
    ours = jax.jit(loss.draft_loss, static_argnames="config")
    configs = [loss.LossConfig(3, 1.0, with_distance=with_distance) for with_distance in (False, True)]
    plain, other = (ours(drafter, target, tokens, labels, hidden, config=config, segments_BT=segments) for config in configs)
    assert float(plain[0]) == float(other[0])


def test_a_mesh_gives_the_same_gradients():
    config = TargetConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8,
    )  # fmt: skip
    target = Target(jax.random.key(0), config)
    given = [np.asarray(each) for each in draw_packed_rows(target.config, rows=4)]
    drafter, how = make(config, "slim of a draft vocabulary"), loss.LossConfig(3, 1.0, chunk=8, with_distance=True)
    ours = jax.jit(jax.value_and_grad(loss.draft_loss, has_aux=True, allow_int=True), static_argnames="config")
    found = []
    for shape in ((1, 1), (2, 2)):
        with jax.set_mesh(make_mesh(*shape)):
            placed = [placed_on_mesh(module) for module in (drafter, target)]
            tokens, labels, hidden, segments = map(put, given)
            more = dict(config=how, segments_BT=segments, distance_share=0.5)
            found.append(jax.tree.map(np.asarray, ours(*placed, tokens, labels, hidden, **more)))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        if one.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(one, other, atol=1e-5)


def placed_on_mesh(module):
    """The module with its weights where their shardings put them on the current mesh."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), jax.typeof(leaf).sharding.spec), module)
