"""On meshes of eight simulated devices: the tokens, the losses and the gradients of one device, from weights read in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.medusa import Medusa
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import stored, tensors, weights
from redrafter_jax.loss import LossConfig
from redrafter_jax.model.drafter import Drafter, full, slim
from redrafter_jax.model.medusa import MedusaConfig
from redrafter_jax.model.target import Target, TargetConfig
from tests import support
from train.data import rows
from train.run import step

CONFIG = TargetConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
)  # two key-value heads, so four and eight shards repeat them
MESHES = [(8, 1), (1, 8), (2, 4), (4, 2)]
PROMPTS = [[row + 1] * (row + 2) for row in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random target on disk."""
    jax.set_mesh(make_mesh())
    path = tmp_path_factory.mktemp("target")
    weights.save_target(jax.jit(Target, static_argnums=(1, 2))(jax.random.key(0), CONFIG, jnp.float32), path)
    return path


@functools.cache
def decode(folder, shape: tuple[int, int], head, sampling: Sampling, beside: Lookup | None = None, rows=8) -> list[list[int]]:
    jax.set_mesh(make_mesh(*shape))
    target = weights.load_target(folder)
    drafter = jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), head(256, 64), jnp.float32)
    recurrent = Recurrent(drafter, Shape(4, 3))
    engine = Engine(target, Union(recurrent, beside) if beside else recurrent)
    return [reply.token_ids for reply in engine.generate(PROMPTS, sampling, Limits(24), batch=rows)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "coupled"])
@pytest.mark.parametrize("mesh_shape", MESHES, ids=str)
def test_every_mesh_gives_the_tokens_of_one_device(folder, mesh_shape, sampling):
    expected = decode(folder, (1, 1), full, sampling)
    assert decode(folder, mesh_shape, full, sampling) == expected
    assert len(np.unique(expected)) > 8


def test_refilled_rows_on_a_mesh_give_the_tokens_of_one_device(folder):
    """Eight requests in two rows, each row in another data shard: a row that is inserted leaves the other shard's as it was."""
    assert decode(folder, (2, 4), full, Sampling(1.0), rows=2) == decode(folder, (1, 1), full, Sampling(1.0))


def test_a_slim_head_and_filters_run_split_as_well(folder):
    sampling = Sampling(1.0, 20, 0.9)
    assert decode(folder, (2, 4), slim, sampling) == decode(folder, (1, 1), slim, sampling)


@pytest.mark.parametrize("mesh_shape", [(2, 4), (8, 1)], ids=str)
def test_a_union_with_a_lookup_gives_the_tokens_of_one_device(folder, mesh_shape):
    how = Sampling(1.0, 20, 0.9)
    assert decode(folder, mesh_shape, slim, how, Lookup(3, 1, 3, 2)) == decode(folder, (1, 1), slim, how)


@functools.cache
def decode_by(folder, shape: tuple[int, int], name: str, rule: str) -> list[list[int]]:
    jax.set_mesh(make_mesh(*shape))
    target, small = weights.load_target(folder), weights.load_target(folder)
    leaves, structure = jax.tree.flatten(small)
    small = structure.unflatten([leaf * (0.9 if leaf.ndim == 2 else 1.0) for leaf in leaves])  # often right, and not always
    proposer = {
        "a small model's chain": lambda: SmallModel(small, Shape(1, 3)),
        "a head with candidates": lambda: Recurrent(few_of(target), Shape(4, 3)),
        "chains of such a head": lambda: Recurrent(few_of(target), Shape(2, 3, tree="chains")),
        "a small model's search": lambda: SmallModel(small, Shape(3, 2)),
        "medusa": lambda: Medusa(MedusaConfig(vocab_size=256, hidden_size=64, num_heads=3).make(jax.random.key(1)), TREE),
    }[name]()
    engine = Engine(target, proposer)
    replies = list(engine.generate(PROMPTS, Sampling(1.0, 20, 0.9, rule), Limits(16), batch=8))
    assert sum(sum(reply.drafted) for reply in replies) > 10
    return [reply.token_ids for reply in replies]


def few_of(target) -> Drafter:
    """A head that follows the target now and then, with few candidates and an inner layer's features."""
    drafter = jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), slim(256, 64), jnp.float32)
    return support.with_candidates(support.with_features(drafter), target, count=24, rank=24)


TREE = ((0,), (1,), (2,), (0, 0), (0, 1), (0, 0, 0))
OTHERS = [("a small model's chain", "rejection"), ("medusa", "coupled"), ("a head with candidates", "coupled")]
SLOW_OTHERS = [("chains of such a head", "rejection"), ("a small model's chain", "coupled"), ("a small model's search", "coupled")]


@pytest.mark.parametrize("mesh_shape", [(2, 4), pytest.param((1, 8), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(("name", "rule"), [*OTHERS, *(pytest.param(*other, marks=pytest.mark.slow) for other in SLOW_OTHERS)])
def test_other_ways_to_draft_give_the_tokens_of_one_device(folder, name, rule, mesh_shape):
    assert decode_by(folder, mesh_shape, name, rule) == decode_by(folder, (1, 1), name, rule)


@functools.cache
def trained(folder, shape: tuple[int, int], spread: bool = False):
    """The loss, its gradients and the head after an update, on the host; and which axes split the matrices."""
    jax.set_mesh(make_mesh(*shape))
    target = weights.load_target(folder, spread=spread)
    schedule, config = step.Schedule(10, warmup=0), LossConfig(2, 0.5, chunk=5)
    state = jax.jit(functools.partial(step.start, spread=spread), static_argnums=(1, 2))(jax.random.key(1), full(256, 64), schedule)
    batch = rows.put_unpacked(np.random.default_rng(0).integers(0, 256, (8, 16)))
    aim = lambda drafter: step.evaluate(drafter, target, batch, config)  # noqa: E731
    (loss, _), gradients = jax.jit(jax.value_and_grad(aim, has_aux=True))(state.drafter)
    after, _ = jax.jit(step.step, static_argnums=(3, 4))(state, target, batch, schedule, config)
    axes = {
        "target": jax.typeof(target.blocks[0].down.weight[...]).sharding.spec,
        "gradient": jax.typeof(gradients.blocks[0].weight[...]).sharding.spec,
        "head": jax.typeof(after.drafter.lm_head[...]).sharding.spec,
        "optimizer": {str(jax.typeof(leaf).sharding.spec) for leaf in jax.tree.leaves(after.optimizer) if leaf.ndim == 2},
    }
    host = functools.partial(jax.tree.map, np.asarray)
    return float(loss), jax.tree.leaves(host(gradients)), jax.tree.leaves(host(after.drafter)), axes


@pytest.mark.parametrize(("mesh_shape", "spread"), [*((shape, False) for shape in MESHES), ((2, 4), True)], ids=str)
def test_every_mesh_gives_the_loss_the_gradients_and_the_update_of_one_device(folder, mesh_shape, spread):
    loss, gradients, after, _ = trained(folder, (1, 1))
    other = trained(folder, mesh_shape, spread)
    assert other[0] == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(other[1], gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for ours, theirs in zip(other[2], after, strict=True):
        apart = np.abs(ours - theirs)  # Adam's first step divides gradients by their own size, so those near 0 may swap their sign
        assert np.mean(apart > 1e-5) < 0.01 and apart.max() < 3e-3
    assert max(abs(gradient).max() for gradient in gradients) > 1e-2


def test_what_is_spread_is_split_over_both_axes_the_optimizers_state_too(folder):
    axes = trained(folder, (2, 4), True)[-1]
    assert axes["target"] == P("model", "data")
    assert axes["gradient"] == axes["head"] == P("data", "model")
    assert axes["optimizer"] == {str(P("data", "model"))}


@pytest.mark.parametrize("mesh_shape", [(1, 1), (1, 8), (2, 4)], ids=str)
def test_weights_are_read_once_in_parts_and_arrive_as_they_were(folder, mesh_shape, monkeypatch):
    read = []
    original = stored.Stored._read
    monkeypatch.setattr(stored.Stored, "_read", lambda *a: read.append(original(*a)) or read[-1])
    monkeypatch.setattr(stored, "CHUNK_BYTES", 4096)
    jax.set_mesh(make_mesh())
    expected = {path: np.asarray(leaf) for path, leaf in tensors.leaves(weights.load_target(folder))}
    once = sum(leaf.nbytes for leaf in expected.values())
    assert sum(part.nbytes for part in read) == once and max(part.nbytes for part in read) <= 4096
    read.clear()
    jax.set_mesh(make_mesh(*mesh_shape))
    loaded = weights.load_target(folder)
    copies = loaded.config.num_key_value_heads // CONFIG.num_key_value_heads
    for path, leaf in tensors.leaves(loaded):
        wanted = expected[path]
        if ".k." in path or ".v." in path:
            wanted = np.repeat(wanted.reshape(64, -1, 8), copies, axis=1).reshape(64, -1)
        np.testing.assert_array_equal(leaf, wanted)
    repeated = sum(block.k.weight[...].nbytes + block.v.weight[...].nbytes for block in loaded.blocks) * (copies - 1) // copies
    assert sum(part.nbytes for part in read) == once + repeated


def test_a_mesh_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="16 devices; 8 are visible"):
        make_mesh(4, 4)


def test_a_head_is_read_onto_a_mesh(tmp_path):
    jax.set_mesh(make_mesh())
    made = jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), full(256, 64), jnp.float32)
    weights.save_drafter(made, tmp_path)
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(made)]
    jax.set_mesh(make_mesh(2, 4))
    for ours, theirs in zip(jax.tree.leaves(weights.load_drafter(tmp_path)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
