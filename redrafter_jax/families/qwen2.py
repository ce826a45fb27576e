"""Qwen2 and Qwen2.5: a Llama with a bias on queries, keys and values, and on nothing else."""

from typing import Any

from redrafter_jax.families import common
from redrafter_jax.model.target import TargetConfig

TYPES = ("qwen2",)
NAMES, IGNORED = common.NAMES, common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Qwen2, as `llama.config` reads a Llama's."""
    windows = () if fields.get("use_sliding_window") else ("sliding_window",)  # which stands there unused
    common.refuse(fields, what, honoured=windows)
    return TargetConfig(**common.shapes(fields, what), qkv_bias=True, model_type="qwen2")


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    return common.fields_of(config, "Qwen2ForCausalLM", use_sliding_window=False)
