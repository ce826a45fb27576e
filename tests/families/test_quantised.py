"""Quantised targets of families whose tensors are not those of a Llama, and adapters below the quantising."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from redrafter_jax.errors import BadInput
from redrafter_jax.files import peft, tensors, weights
from redrafter_jax.model.quantised import FORMATS, quantise, widen
from redrafter_jax.slices import roofline
from redrafter_jax.slices.roofline import Setting
from tests import compressed
from tests.families import flavours

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


def test_experts_stay_as_they_are_and_the_other_matrices_of_their_layers_are_quantised(tmp_path):
    _, folder = flavours.make("qwen3_moe")
    floats, target = (dict(tensors.leaves(weights.load_target(folder, weights=each))) for each in (None, "int8"))
    made = {path.rpartition(".")[0] for path in target.keys() - floats.keys()}
    assert made == floats.keys() - target.keys() == {path for path in floats if path.endswith(".weight")}
    for path in floats.keys() & target.keys():
        np.testing.assert_array_equal(floats[path], target[path])
    assert any(".experts.down" in path for path in target)
    folder, _ = compressed.compress(folder, tmp_path)
    with pytest.raises(BadInput, match=r"a quantised mixture of experts \(quantization_config\) is not read; take the float"):
        weights.load_target(folder)


def test_a_quantised_matrix_is_a_byte_a_number_in_the_floor_of_a_pass_and_experts_are_read_by_their_use():
    config = weights.load_target(flavours.make("qwen3_moe")[1]).config
    wide, narrow = (Setting(each, None, 1, 1, 1, 0, 2) for each in (config, dataclasses.replace(config, weight_format="int8")))
    dense = config.num_hidden_layers * sum(
        config.hidden_size * heads * config.head_dim for heads in (2 * config.num_attention_heads, 2 * config.num_key_value_heads)
    )
    for nodes in (1, 5):
        one, other = roofline.verify(wide, nodes), roofline.verify(narrow, nodes)
        assert one.flops == other.flops
        assert one.bytes - other.bytes == pytest.approx(dense)


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
