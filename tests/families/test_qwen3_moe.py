"""Experts: against a loop over them, on meshes, in every layout of their tensors; and what their number does to plans."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from redrafter_jax.devices import placement
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from redrafter_jax.model import experts, lora
from redrafter_jax.model.shapes import SHAPES
from redrafter_jax.model.target import Target, TargetConfig
from redrafter_jax.slices import roofline
from tests import training
from tests.families import flavours
from tests.support import put
from train.run import log

CONFIG = TargetConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
    head_dim=4, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=10,
)  # fmt: skip


def layer(mesh: tuple[int, int] = (1, 1), **flags) -> experts.Experts:
    """The same weights on any mesh, which is set."""
    jax.set_mesh(make_mesh(*mesh))
    make = jax.jit(experts.Experts, static_argnums=(1, 2))
    return make(jax.random.key(0), dataclasses.replace(CONFIG, **flags), jnp.float32)


def inputs(rows: int = 4, count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, count, 16)).astype(np.float32)


call = jax.jit(lambda layer, x: layer(x))


def one_by_one(layer: experts.Experts, x: np.ndarray, normalises: bool) -> np.ndarray:
    """Each token through each of its experts."""
    router, gate, up, down = (np.asarray(each[...], np.float64) for each in (layer.router, layer.gate, layer.up, layer.down))
    found = np.zeros_like(x, np.float64)
    for place in np.ndindex(*x.shape[:2]):
        token = x[place].astype(np.float64)
        shares = np.exp(token @ router)
        shares /= shares.sum()
        chosen = np.argsort(-shares)[:3]
        for expert in chosen:
            gated = token @ gate[expert]
            made = (gated / (1 + np.exp(-gated)) * (token @ up[expert])) @ down[expert]
            found[place] += made * shares[expert] / (shares[chosen].sum() if normalises else 1)
    return found


@pytest.mark.parametrize("normalises", [False, True])
def test_a_token_gets_what_its_experts_make_one_by_one(normalises):
    ours = layer(norm_topk_prob=normalises)
    np.testing.assert_allclose(call(ours, put(inputs())), one_by_one(ours, inputs(), normalises), atol=1e-5)


@pytest.mark.parametrize("mesh", [(2, 4), (1, 8)], ids=str)
def test_a_mesh_gives_what_one_device_gives(mesh):
    expected = np.asarray(call(layer(), put(inputs())))
    split = layer(mesh)
    assert split.gate[...].sharding.shard_shape(split.gate.shape) == (8 // mesh[1], 16, 10)
    np.testing.assert_allclose(call(split, put(inputs())), expected, atol=1e-5)


def test_what_a_token_gets_does_not_depend_on_the_others_even_if_all_want_the_same_experts():
    ours, x = layer(), inputs()
    found = np.asarray(call(ours, put(x)))
    alone = np.asarray(call(ours, put(x[1:2, 2:3])))
    np.testing.assert_allclose(alone[0, 0], found[1, 2], atol=1e-6)
    crowd = np.broadcast_to(x[1, 2], (4, 5, 16))
    np.testing.assert_allclose(call(ours, put(crowd)), np.broadcast_to(found[1, 2], crowd.shape), atol=1e-6)


def test_a_token_that_is_not_finite_spoils_no_other():
    x = inputs()
    x[0, 0] = np.nan
    found = np.asarray(call(layer(), put(x)))
    assert np.isfinite(found.reshape(-1, 16)[1:]).all() and not np.isfinite(found[0, 0]).any()


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_gradients_flow_through_the_chosen_experts(mesh):
    def aim(x_BND, layer):
        return jnp.sum(jnp.sin(layer(x_BND)))

    split = layer(mesh)
    of_x = np.asarray(jax.jit(jax.grad(aim))(put(inputs()), split))
    ours, step = layer(), 1e-2
    for place in ((0, 0, 0), (3, 4, 7)):
        moved = [inputs() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        high, low = (np.sin(one_by_one(ours, each, False)).sum() for each in moved)
        np.testing.assert_allclose(of_x[place], (high - low) / (2 * step), rtol=2e-2, atol=1e-3)


NAME = "qwen3_moe in the layers that are not named"


def test_tensors_of_each_expert_and_stacked_tensors_are_the_same_target(tmp_path):
    theirs, folder = flavours.make(NAME)
    assert "model.layers.0.mlp.experts.7.down_proj.weight" in load_file(folder / "model.safetensors")
    theirs.save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    one, other = weights.load_target(folder), weights.load_target(tmp_path)
    assert one.config == other.config
    assert [block.experts is not None for block in one.blocks] == [True, False, True]
    for ours, stacked in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, stacked)


@pytest.mark.parametrize("spread", [False, True])
def test_every_device_reads_its_own_experts(tmp_path, spread):
    theirs, folder = flavours.make(NAME)
    theirs.save_pretrained(tmp_path, save_original_format=False)
    expected = weights.load_target(folder)
    jax.set_mesh(make_mesh(2, 4))
    for path in (folder, tmp_path):
        split = weights.load_target(path, spread=spread)
        matrix = split.blocks[0].experts.gate[...]
        assert matrix.sharding.shard_shape(matrix.shape) == (2, 20 if spread else 40, 20)
        np.testing.assert_array_equal(matrix, expected.blocks[0].experts.gate[...])
        np.testing.assert_array_equal(split.blocks[2].experts.down[...], expected.blocks[2].experts.down[...])


def test_experts_whose_tensors_are_missing_or_misshapen_are_named(tmp_path):
    _, folder = flavours.make(NAME)
    tensors = load_file(folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())

    def said(change: dict, drop: tuple[str, ...] = ()) -> str:
        save_file({name: tensor for name, tensor in tensors.items() if name not in drop}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(fields | change))
        with pytest.raises(BadInput) as caught:
            weights.load_target(tmp_path)
        return str(caught.value)

    gone = "model.layers.2.mlp.experts.5.up_proj.weight"
    assert f"lacks the tensor {gone} (1 missing in all)" in said({}, (gone,))
    wide = said({"moe_intermediate_size": 23})
    assert "experts.0.down_proj.weight in" in wide and "has shape [40, 20]; its config.json asks for [40, 23]" in wide
    assert "has the tensor model.layers.0.mlp.experts.7" in said({"num_experts": 7, "num_local_experts": 7})


def test_a_mesh_that_does_not_divide_the_experts_is_refused_by_name():
    config = dataclasses.replace(CONFIG, num_experts=6)
    why = placement.Footprint(config).why_not(1, 4)
    assert why == "4 does not divide the target's num_experts 6"
    assert placement.Footprint(CONFIG).why_not(1, 4) is None


def test_plans_count_all_experts_as_bytes_and_the_chosen_ones_as_operations():
    mixed = dataclasses.replace(CONFIG, num_hidden_layers=4, decoder_sparse_step=2)
    of_all = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: Target(jax.random.key(0), mixed))))
    assert placement.bytes_of_target(mixed, "float32") == 4 * of_all
    dense = dataclasses.replace(CONFIG, num_experts=0, num_hidden_layers=2)
    assert placement.bytes_of_adapter(mixed, 2) > placement.bytes_of_adapter(dense, 2)

    setting = roofline.Setting(SHAPES["qwen3-30b-a3b"], None, 1, 1, 1, 0, 2)
    one, many = roofline.verify(setting, 1), roofline.verify(setting, 10_000)
    active = 3.35e9 - 151936 * 2048  # published: 3.3B of a token, with the embedding
    assert one.bytes == pytest.approx(2 * active, rel=0.01) and one.flops == pytest.approx(2 * active, rel=0.02)
    assert many.bytes == pytest.approx(2 * (30_532_122_624 - 151936 * 2048), rel=0.01)
    assert log.experts.weights_per_token(jax.eval_shape(lambda: Target(jax.random.key(0), CONFIG)).blocks, CONFIG) == pytest.approx(
        of_block(CONFIG)
    )


def of_block(config: TargetConfig) -> int:
    """Weights that a token meets in the only layer."""
    attention = 4 * config.hidden_size**2 + 2 * config.hidden_size
    return attention + 3 * (3 * config.hidden_size * config.moe_intermediate_size) + config.hidden_size * config.num_experts


def test_an_adapter_is_of_everything_but_the_experts():
    target = weights.load_target(flavours.make(NAME)[1])
    adapter = lora.Adapter(jax.random.key(0), target.config, lora.LoraConfig(2, 4.0))
    assert not hasattr(adapter.blocks[0], "gate") and hasattr(adapter.blocks[1], "gate")
    merged = lora.merge(target, jax.tree.map(lambda leaf: leaf + 0.01, adapter))
    training.same(merged.blocks[0].experts, target.blocks[0].experts)
    assert np.abs(np.asarray(merged.blocks[0].q.weight[...] - target.blocks[0].q.weight[...])).max() > 1e-4
