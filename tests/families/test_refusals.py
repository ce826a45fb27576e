"""What a family's config.json lacks, or asks for that is not honoured, is one sentence that names the field."""

import functools
import json

import pytest

from redrafter_jax import families
from redrafter_jax.errors import BadInput
from redrafter_jax.families import common, multimodal
from redrafter_jax.files import config
from tests.families import flavours

NAN, INF = float("nan"), float("inf")
LINEAR = {"rope_type": "linear", "factor": 9.0}
ONE_OF_EACH = {
    "qwen2": "qwen2 with windows",
    "qwen3": "qwen3",
    "mistral": "mistral with a window",
    "olmo2": "olmo2",
    "granite": "granite",
    "smollm3": "smollm3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3 with longrope",
    "qwen3_moe": "qwen3_moe",
}


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@functools.cache
def written(name: str) -> str:
    return json.dumps(flavours.config_of(name).to_dict())


def fields_of(name: str) -> dict:
    return json.loads(written(name))


def refusal(fields: dict) -> str:
    with pytest.raises(BadInput) as caught:
        config.target_config(fields, "--target")
    said = str(caught.value)
    assert said.startswith("--target: ") and "\n" not in said and len(said) < 400
    return said


def test_each_family_has_a_config_here():
    assert {"llama", *ONE_OF_EACH} == {name for family in families.FAMILIES for name in family.TYPES}
    for kind, name in ONE_OF_EACH.items():
        assert config.target_config(fields_of(name), "--target").model_type == kind


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_size_that_is_missing_or_negative_is_named(kind):
    for key in SIZES:
        fields = fields_of(ONE_OF_EACH[kind])
        for value in (0, -1, "8", 1.5, True, None):
            assert f"{key} in config.json should be a whole number from 1 to" in refusal(fields | {key: value})
        if key not in getattr(families.of(kind), "DEFAULTS", {}):
            del fields[key]
            assert f"{key} in config.json should be a whole number from 1 to" in refusal(fields)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        *((kind, {"num_key_value_heads": -1}, "num_key_value_heads in config.json should be") for kind in ONE_OF_EACH),
        *((kind, {"rms_norm_eps": NAN}, "rms_norm_eps in config.json should be") for kind in ONE_OF_EACH),
        *((kind, {"tie_word_embeddings": "no"}, "tie_word_embeddings in config.json should be true or") for kind in ONE_OF_EACH),
        *((kind, {"quantization_config": {"bits": 4}}, "quantised weights (quantization_config)") for kind in ONE_OF_EACH),
        *((kind, {"num_experts": 8}, "num_experts = 8 is not supported") for kind in ONE_OF_EACH if kind != "qwen3_moe"),
        *((kind, {"use_bidirectional_attention": True}, "use_bidirectional_attention = True") for kind in ONE_OF_EACH),
        *((kind, {"hidden_act": "relu"}, "hidden_act 'relu' is not supported") for kind in ONE_OF_EACH),
        *((kind, {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported") for kind in ONE_OF_EACH),
        *((kind, {"layer_types": ["chunked_attention"] * 3}, "layer_types") for kind in ONE_OF_EACH),
        *((kind, {"layer_types": 5}, "layer_types") for kind in ONE_OF_EACH),
        *((kind, {"sliding_window": 4}, "sliding_window = 4 is not supported") for kind in ("olmo2", "granite")),
        *((kind, {"sliding_window": value}, "sliding_window in config.json should be a whole number from 1")
          for kind in ("qwen2", "mistral", "gemma2", "gemma3_text", "phi3") for value in (0, -4, "4", 1.5)),
        *((kind, {"sliding_window": None}, "sliding_window in config.json should be a whole number from 1")
          for kind in ("gemma2", "gemma3_text")),
        *((kind, {"layer_types": [common.FULL] * 2}, "layer_types in config.json should be 3") for kind in ("qwen2", "gemma2")),
        ("qwen3", {"layer_types": [common.SLIDING] * 3}, "but use_sliding_window and sliding_window say that there is no window"),
        ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window in config.json should be true or false"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers in config.json should be a whole number from 0"),
        *(("granite", {key: value}, f"{key} in config.json should be a number above 0")
          for key in flavours.MULTIPLIERS for value in (0, -1.0, INF, None, "2")),
        ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers in config.json should be 3 times 0 or 1"),
        ("smollm3", {"no_rope_layers": [1, 2, 0]}, "no_rope_layers in config.json should be 3 times 0 or 1"),
        ("smollm3", {"no_rope_layers": "all"}, "no_rope_layers in config.json should be 3 times 0 or 1"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval in config.json should be"),
        *(("gemma2", {key: value}, f"{key} in config.json should be a number above 0")
          for key in ("attn_logit_softcapping", "final_logit_softcapping") for value in (0, -30.0, NAN, "30")),
        *((kind, {"query_pre_attn_scalar": value}, "query_pre_attn_scalar in config.json should be a whole number from 1")
          for kind in ("gemma2", "gemma3_text") for value in (0, -256, None)),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported in a Gemma 3"),
        ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern in config.json should be"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters in config.json should be given for"),
        ("gemma3_text", {"rope_parameters": 5}, "rope_parameters in config.json should be given for"),
        ("gemma3_text", {"rope_parameters": {common.FULL: 5}}, "rope_scaling in config.json should be an object"),
        ("gemma3_text", {"rope_parameters": {common.SLIDING: LINEAR}}, "rope type 'linear' of layers with a window"),
        ("gemma3_text", {"rope_local_base_freq": -1}, "rope_local_base_freq in config.json should be a number above 0"),
        ("gemma3_text", {"rope_scaling": LINEAR}, "rope_parameters and rope_scaling in config.json differ"),
        *(("phi3", {key: True}, f"{key} = true is not supported for model_type 'phi3'")
          for key in ("attention_bias", "mlp_bias", "lm_head_bias")),
        ("phi3", {"rope_parameters": LINEAR}, "rope type 'linear' is not supported for model_type 'phi3'"),
        ("phi3", {"rope_parameters": {"rope_type": "su", "short_factor": [1] * 4}}, "long_factor in config.json should be a list"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.3}}, "partial_rotary_factor in config.json should turn an even"),
        ("phi3", {"original_max_position_embeddings": "4k"}, "original_max_position_embeddings in config.json should be a whole"),
        *(("qwen3_moe", {key: value}, f"{key} in config.json should be a whole number from 1")
          for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
          for value in (0, -1, "3")),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok in config.json should be a whole number from 1 to 8, not 9"),
        ("qwen3_moe", {"norm_topk_prob": 1}, "norm_topk_prob in config.json should be true or false"),
        *(("qwen3_moe", {"mlp_only_layers": value}, "mlp_only_layers in config.json should be a list of layers")
          for value in ([-1], "1", [0.5], {"0": 1})),
        ("qwen3", {"rope_parameters": {"rope_type": "spiral"}}, "rope type 'spiral' is not supported"),
        ("qwen3", {"head_dim": 13}, "head_dim should be even"),
    ],
    ids=lambda each: str(each)[:60],
)  # fmt: skip
def test_a_field_that_cannot_be_honoured_is_named(kind, changes, words):
    assert words in refusal(fields_of(ONE_OF_EACH[kind]) | changes)


@pytest.mark.parametrize("name", flavours.MULTIMODAL)
def test_a_text_model_inside_another_is_found_or_refused_by_name(name):
    fields = fields_of(name)
    inside = config.target_config(fields["text_config"] | {"tie_word_embeddings": fields["tie_word_embeddings"]})
    assert config.target_config(fields) == inside
    del fields["text_config"]["model_type"]
    assert config.target_config(fields) == inside  # older files do not say
    for outer in (True, False):  # what the outer one says of both goes before
        assert config.target_config(fields | {"tie_word_embeddings": outer}).tie_word_embeddings is outer
    assert "quantised weights" in refusal(fields | {"quantization_config": {"bits": 4}})
    assert "text_config in config.json should be an object" in refusal(fields | {"text_config": None})
    other = fields | {"text_config": fields["text_config"] | {"model_type": "ministral3"}}
    assert "text_config: model_type 'ministral3' is not supported; these are: llama, " in refusal(other)
    assert "text_config: hidden_size in config.json" in refusal(
        fields | {"text_config": fields["text_config"] | {"hidden_size": 0}}
    )


def test_what_a_multimodal_model_has_beside_its_text_model_is_known_by_name():
    names = {
        "language_model.model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "language_model.lm_head.weight": "lm_head.weight",
        "model.language_model.norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    assert {stored: multimodal.text_name(stored) for stored in names} == names
    for other in (
        "vision_tower.a.weight",
        "model.vision_tower.a.weight",
        "multi_modal_projector.b",
        "model.multi_modal_projector.b",
    ):
        assert multimodal.text_name(other) is None and multimodal.IGNORED.match(other)
    assert not multimodal.IGNORED.match("model.audio_tower.a.weight")  # so it is an extra tensor, which is refused


CLASSIC = {
    "rope_theta": 1e5,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    "rope_local_base_freq": 100.0,
    "sliding_window_pattern": 2,
}


def test_both_layouts_of_a_gemma_3_say_the_same():
    new = fields_of("gemma3")
    classic = {key: value for key, value in new.items() if key not in ("rope_parameters", "layer_types")} | CLASSIC
    found = config.target_config(classic)
    assert found == config.target_config(new)
    assert found.windows == (3, 0, 3) and found.rope.kind == "linear" and found.window_rope.theta == 100.0


@pytest.mark.parametrize("name", ["qwen2 with windows", "smollm3 with windows", "gemma2", "mistral with a window"])
def test_the_classic_layout_says_which_layers_have_windows_without_a_list(name):
    new = fields_of(name)
    rope = new.pop("rope_parameters")
    assert new.pop("layer_types", None) or name.startswith("mistral")
    found = config.target_config(new | {"rope_theta": rope["rope_theta"], "rope_scaling": None})
    assert found == config.target_config(fields_of(name))
    assert found.windows == {"qwen2": (0, 3, 3), "smollm3": (0, 3, 3), "gemma2": (3, 0, 3), "mistral": (3, 3, 3)}[found.model_type]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_what_a_config_leaves_out_has_the_default_of_transformers(kind):
    family = families.of(kind)
    sizes = {key: flavours.SIZES[key] for key in (*SIZES, "num_key_value_heads")}
    model = type(flavours.config_of(ONE_OF_EACH[kind]))
    in_full = json.loads(json.dumps(model(**sizes).to_dict()))
    assert family.config({"model_type": kind, **sizes}, "--target") == family.config(in_full, "--target")
