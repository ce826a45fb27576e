"""A family reads what it writes, and what is of no family is refused."""

import json

import jax
import pytest
import transformers

from redrafter_jax import families
from redrafter_jax.devices import placement
from redrafter_jax.errors import BadInput
from redrafter_jax.families import llama, rope
from redrafter_jax.files import config
from redrafter_jax.model.rope import Rope
from redrafter_jax.model.shapes import SHAPES
from tests.support import MODELS

GOLDEN = ("target_gqa", "target_mha", "target_tied")


@pytest.mark.parametrize("name", GOLDEN)
def test_what_a_family_writes_it_reads_as_the_same_target(name):
    target = config.target_config(config.read_json(MODELS / name, "--target"), "--target")
    assert llama.config(json.loads(json.dumps(llama.fields_of(target))), "--target") == target


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_of_well_known_targets_are_of_a_family(name):
    target = SHAPES[name]
    family = families.of(target.model_type)
    if target.rope.kind == "default":  # whose original length is the context, which these do not say
        target = family.config(family.fields_of(target), name)
    assert family.config(family.fields_of(target), name) == target


PARAMETERS = {  # as published, embeddings counted once where they are tied
    "demo": 7_295_040, "llama-13b": 13_015_864_320, "llama-33b": 32_528_943_616, "smollm-360m": 361_821_120,
    "llama-7b": 6_738_415_616, "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496, "smollm-135m": 134_515_008,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264, "qwen3-30b-a3b": 30_532_122_624, "gemma-3-1b": 999_885_952, "gemma-3-4b": 3_880_263_168,
    "gemma-3-27b": 27_009_346_304, "mistral-7b": 7_248_023_552, "phi-4-mini": 3_836_021_760,
    "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_well_known_targets_have_their_published_number_of_parameters(name):
    target = SHAPES[name]
    one = placement.abstract_target(target)
    outer = [one.embedding, one.norm] + [one.lm_head] * (not target.tie_word_embeddings)
    layers = [(count, blocks) for count, blocks in placement.abstract_layers(target)]
    count = sum(each * sum(leaf.size for leaf in jax.tree.leaves(blocks)) for each, blocks in [*layers, (1, outer)])
    assert count == PARAMETERS[name]


def test_what_a_llama_config_leaves_out_has_the_default_of_transformers():
    sizes = {"vocab_size": 503, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    in_full = transformers.LlamaConfig(**sizes).to_dict()
    assert in_full.keys() >= {"rms_norm_eps", "num_key_value_heads", "max_position_embeddings"}
    assert llama.config({"model_type": "llama", **sizes}, "--target") == llama.config(in_full, "--target")


def test_every_family_is_found_by_its_types_and_others_are_refused():
    for family in families.FAMILIES:
        assert all(families.of(kind) is family for kind in family.TYPES)
    for kind in ("mamba", None, ["llama"]):
        with pytest.raises(BadInput, match=r"--target: model_type .* is not supported; these are: llama, mistral, qwen2, "):
            families.of(kind, "--target")


def test_a_rope_that_is_scaled_is_written_in_full():
    scaled = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 64)
    assert rope.read(rope.fields_of(scaled), 16, 512, "--target") == scaled
    assert "rope_scaling" not in rope.fields_of(Rope(3.0))
