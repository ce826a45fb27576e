"""A family reads what it writes, and what is of no family is refused."""

import json

import pytest
import transformers

from redrafter_jax import families
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
    if target.rope.kind == "default":  # whose original length is the context, which these do not say
        target = llama.config(llama.fields_of(target), name)
    assert llama.config(llama.fields_of(target), name) == target


def test_what_a_llama_config_leaves_out_has_the_default_of_transformers():
    sizes = {"vocab_size": 503, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    in_full = transformers.LlamaConfig(**sizes).to_dict()
    assert in_full.keys() >= {"rms_norm_eps", "num_key_value_heads", "max_position_embeddings"}
    assert llama.config({"model_type": "llama", **sizes}, "--target") == llama.config(in_full, "--target")


def test_every_family_is_found_by_its_types_and_others_are_refused():
    for family in families.FAMILIES:
        assert all(families.of(kind) is family for kind in family.TYPES)
    for kind in ("mamba", None, ["llama"]):
        with pytest.raises(BadInput, match=r"--target: model_type .* is not supported; these are: llama, qwen2, qwen3"):
            families.of(kind, "--target")


def test_a_rope_that_is_scaled_is_written_in_full():
    scaled = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 64)
    assert rope.read(rope.fields_of(scaled), 16, 512, "--target") == scaled
    assert "rope_scaling" not in rope.fields_of(Rope(3.0))
