"""Qwen3, the dense ones: a Llama with an RMSNorm on each head's queries and keys."""

from typing import Any

from redrafter_jax.families import common
from redrafter_jax.families.fields import flag
from redrafter_jax.model.target import TargetConfig

TYPES = ("qwen3",)
NAMES, IGNORED = common.NAMES + common.QK_NORM_NAMES, common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Qwen3, as `llama.config` reads a Llama's."""
    windows = () if fields.get("use_sliding_window") else ("sliding_window",)  # which stands there unused
    common.refuse(fields, what, honoured=windows)
    bias = flag(fields, "attention_bias", False, what)
    given = {"head_dim": 128} | fields
    return TargetConfig(**common.shapes(given, what), attention_bias=bias, qk_norm="head", model_type="qwen3")


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    return common.fields_of(config, "Qwen3ForCausalLM", attention_bias=config.attention_bias, use_sliding_window=False)
