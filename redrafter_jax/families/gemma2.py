"""Gemma 2: norms before and after that multiply by 1 + weight, soft caps, a scaled embedding, every other layer with a window."""

from typing import Any

from redrafter_jax.families import common
from redrafter_jax.families.fields import MAX_FEATURES, flag, number, whole
from redrafter_jax.model.target import TargetConfig

TYPES = ("gemma2",)
NAMES = [
    (r"\.blocks\[(\d+)\]\.post_norm", r"model.layers.\1.pre_feedforward_layernorm.weight", False),
    *common.NORM_AFTER_NAMES,
    *common.NAMES,
]
IGNORED = common.IGNORED
DEFAULTS = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
CAPS = {"attention_cap": "attn_logit_softcapping", "logits_cap": "final_logit_softcapping"}


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Gemma 2, as `llama.config` reads a Llama's."""
    common.refuse(fields, what, honoured=common.WINDOWS, activation="gelu_tanh")
    fields = DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} | fields
    shapes = common.shapes(fields, what)
    layers = shapes["num_hidden_layers"]
    windows = common.windows(fields, what, layers, [common.FULL if i % 2 else common.SLIDING for i in range(layers)])
    return TargetConfig(**shapes, **flags(fields, what), windows=windows, model_type="gemma2")


def flags(fields: dict[str, Any], what: str) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common beyond their shapes, as arguments of `TargetConfig`."""
    caps = {ours: None if fields.get(key) is None else number(fields, key, what) for ours, key in CAPS.items()}
    return caps | {
        "attention_bias": flag(fields, "attention_bias", False, what),
        "norms": "both",
        "norm_adds_one": True,
        "activation": "gelu_tanh",
        "embedding_scale": fields["hidden_size"] ** 0.5,
        "attention_scale": whole(fields, "query_pre_attn_scalar", what, MAX_FEATURES) ** -0.5,
    }


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    return common.fields_of(config, "Gemma2ForCausalLM", **fields_of_flags(config))


def fields_of_flags(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `flags`, with the windows."""
    return common.fields_of_windows(config) | {
        "hidden_activation": common.ACTIVATIONS[config.activation],
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        **{theirs: getattr(config, ours) for ours, theirs in CAPS.items()},
    }
