"""Qwen3, the dense ones: a Llama with an RMSNorm on each head's queries and keys."""

from typing import Any

from redrafter_jax.families import common, qwen2
from redrafter_jax.families.fields import flag
from redrafter_jax.model.target import TargetConfig

TYPES = ("qwen3",)
NAMES, IGNORED = common.NAMES + common.QK_NORM_NAMES, common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Qwen3, as `llama.config` reads a Llama's."""
    common.refuse(fields, what, honoured=common.WINDOWS)
    shapes = common.shapes({"head_dim": 128} | fields, what)
    windows = qwen2.windows(fields, what, shapes["num_hidden_layers"])
    bias = flag(fields, "attention_bias", False, what)
    return TargetConfig(**shapes, attention_bias=bias, qk_norm="head", windows=windows, model_type="qwen3")


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    windows = common.fields_of_optional_windows(config)
    return common.fields_of(config, "Qwen3ForCausalLM", attention_bias=config.attention_bias, **windows)
