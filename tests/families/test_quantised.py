"""Quantised targets of families whose tensors are not those of a Llama, and adapters below the quantising."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import peft, tensors, weights
from redrafter_jax.model import attention, experts
from redrafter_jax.model.quantised import FORMATS, quantise, widen
from redrafter_jax.model.target import Target
from redrafter_jax.slices import roofline
from redrafter_jax.slices.roofline import Setting
from tests import compressed
from tests.families import flavours
from tests.support import put

MOE = "qwen3_moe in the layers that are not named"  # whose others have a feed-forward
PARTS = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.mark.parametrize(("kind", "packed"), [("int8", False), ("int8", True), ("fp8", False)])
@pytest.mark.parametrize("name", ["phi3", "mistral in a multimodal model"])
def test_a_quantised_checkpoint_of_a_family_is_the_float_one_that_it_stands_for(name, kind, packed, tmp_path):
    folder, floats = compressed.compress(flavours.make(name)[1], tmp_path, kind, packed)
    target, expected = weights.load_target(folder), weights.load_target(floats)
    assert target.config.weight_format == kind
    for block, wide in zip(target.blocks, expected.blocks, strict=True):
        for part in PARTS:
            np.testing.assert_array_equal(widen(getattr(block, part).weight), getattr(wide, part).weight[...])


def test_experts_are_quantised_each_by_itself_and_their_routers_stay():
    folder = flavours.make(MOE)[1]
    floats, target = weights.load_target(folder), weights.load_target(folder, weights="int8")
    wide, found = (dict(tensors.leaves(each)) for each in (floats, target))
    made = wide.keys() - found.keys()
    assert {path for path in made if ".experts." in path} == {path for path in wide if ".experts." in path and "router" not in path}
    assert made >= {path for path in wide if path.endswith(".weight")}
    for path in wide.keys() & found.keys():
        np.testing.assert_array_equal(wide[path], found[path])
    for block, like in zip(target.blocks, floats.blocks, strict=True):
        for part in ("gate", "up", "down") if block.experts else ():
            matrix, original = getattr(block.experts, part), getattr(like.experts, part)
            for expert in range(len(original[...])):
                alone = quantise(original[...][expert], "int8")
                np.testing.assert_array_equal(matrix.values[...][expert], alone.values[...])
                np.testing.assert_array_equal(matrix.scale[...][expert], alone.scale[...])
            setattr(like.experts, part, nnx.Param(widen(matrix)))
        for part in PARTS:
            if hasattr(block, part):
                getattr(like, part).weight = nnx.Param(widen(getattr(block, part).weight))
    expected = hidden(floats)
    np.testing.assert_allclose(hidden(target), expected, atol=1e-4)
    assert np.abs(hidden(weights.load_target(folder)) - expected).max() > 1e-2
    with jax.set_mesh(make_mesh(2, 4)):
        split = weights.load_target(folder, weights="int8")
        matrix = split.blocks[0].experts.gate
        assert {part[...].sharding.shard_shape(part[...].shape)[0] for part in (matrix.values, matrix.scale)} == {2}
        np.testing.assert_allclose(hidden(split), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_a_group_that_is_multiplied_in_parts_is_what_the_whole_is(rows, monkeypatch):
    """Groups of no row, of fewer than a part has, of as many, and of more; the last part of all would reach behind the end."""
    monkeypatch.setattr(experts, "PART_ROWS", rows)
    rng, sizes = np.random.default_rng(3), np.array([0, 4, 1, 0, 7, 3], np.int32)
    x = rng.normal(size=(17, 5)).astype(np.float32)  # two rows of no group
    matrices = quantise(jax.numpy.asarray(rng.normal(size=(6, 5, 8)).astype(np.float32)), "int8")
    scales = jax.numpy.asarray(matrices.scale[...])

    def of_shard(*given):
        return experts._ragged(given[0], given[1:3], given[3])

    specs = (jax.P(), experts.SPLIT, experts.SPLIT_SCALES, jax.P("model"))
    with jax.set_mesh(make_mesh(1, 1)):
        found = jax.jit(jax.shard_map(of_shard, in_specs=specs, out_specs=jax.P(("data", "model"))))(
            *(put_as(each, spec) for each, spec in zip((x, matrices.values[...], scales, sizes), specs, strict=True))
        )
    wide = np.asarray(widen(matrices))
    expected = np.concatenate([part @ wide[e] for e, part in enumerate(np.split(x[:15], np.cumsum(sizes)[:-1]))])
    np.testing.assert_allclose(np.asarray(found)[:15], expected, atol=1e-5)


def put_as(array, spec: jax.P) -> jax.Array:
    return jax.device_put(array, jax.NamedSharding(jax.sharding.get_mesh(), spec))


def hidden(target) -> np.ndarray:
    """Of two texts."""
    ids = np.random.default_rng(0).integers(3, flavours.VOCAB, (2, 9)).astype(np.int32)
    positions = put(np.broadcast_to(np.arange(9), (2, 9)), np.int32)
    return np.asarray(compiled(target, put(ids, np.int32), positions, attention.causal(positions >= 0)).hidden)


compiled = jax.jit(lambda target, *given: target(*given))


def test_a_quantised_checkpoint_with_experts_is_refused(tmp_path):
    folder, _ = compressed.compress(flavours.make("qwen3_moe")[1], tmp_path)
    with pytest.raises(BadInput, match=r"a quantised mixture of experts \(quantization_config\) is not read; take the float"):
        weights.load_target(folder)


def test_a_quantised_matrix_is_a_byte_a_number_in_the_floor_of_a_pass_and_experts_are_read_by_their_use():
    config = weights.load_target(flavours.make("qwen3_moe")[1]).config
    configs = config, dataclasses.replace(config, weight_format="int8")
    wide, narrow = (Setting(each, None, 1, 1, 1, 0, 2) for each in configs)
    made = (jax.eval_shape(lambda each=each: Target(jax.random.key(0), each)).blocks for each in configs)
    met = [experts.weights_per_token(blocks, config) for blocks in made]
    assert met[0] == met[1] > 0
    of_experts = config.num_hidden_layers * config.num_experts * 3 * config.hidden_size * config.moe_intermediate_size
    dense = config.num_hidden_layers * sum(
        config.hidden_size * heads * config.head_dim for heads in (2 * config.num_attention_heads, 2 * config.num_key_value_heads)
    )
    for nodes in (1, 5):
        one, other = roofline.verify(wide, nodes), roofline.verify(narrow, nodes)
        assert one.flops == other.flops
        some = 1 - (1 - config.num_experts_per_tok / config.num_experts) ** nodes
        assert one.bytes - other.bytes == pytest.approx(dense + some * of_experts)


def adapter_of(folder, to):
    """A low-rank adapter of one matrix of a target."""
    config = json.loads((folder / "config.json").read_text())
    height, width = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    rng, module = np.random.default_rng(5), "base_model.model.model.layers.1.self_attn.o_proj"
    factors = {"lora_A": rng.normal(size=(3, width)), "lora_B": rng.normal(size=(height, 3))}
    to.mkdir()
    compressed.save_file(
        {f"{module}.{name}.weight": each.astype(np.float32) for name, each in factors.items()}, to / peft.WEIGHT_FILE
    )
    (to / peft.CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none"}))
    return peft.read(to, "--lora")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_merged_before_the_matrix_is_quantised(dtype, tmp_path):
    _, folder = flavours.make("qwen3")
    adapter = adapter_of(folder, tmp_path / "adapter")
    merged = weights.load_target(folder, adapter=adapter)
    ours = weights.load_target(folder, dtype, adapter=adapter, weights="int8")
    for number, (block, wide) in enumerate(zip(ours.blocks, merged.blocks, strict=True)):
        expected, found = quantise(wide.o.weight[...], "int8"), block.o.weight
        np.testing.assert_array_equal(found.values[...], expected.values[...])
        np.testing.assert_array_equal(found.scale[...], expected.scale[...])
        same = quantise(weights.load_target(folder).blocks[number].o.weight[...], "int8").values[...]
        assert bool(jax.numpy.array_equal(same, found.values[...])) == (number != 1)
    assert FORMATS["int8"].dtype == ours.blocks[1].o.weight.values.dtype


@pytest.mark.parametrize("packed", [False, True])
def test_an_adapter_is_not_merged_into_a_checkpoint_that_is_quantised(packed, tmp_path):
    _, folder = flavours.make("qwen3")
    folder, _ = compressed.compress(folder, tmp_path / "checkpoint", packed=packed)
    adapter = adapter_of(folder, tmp_path / "adapter")
    with pytest.raises(BadInput, match="^--lora: the target in .* is stored in int8; an adapter is merged into float weights"):
        weights.load_target(folder, adapter=adapter)
