"""Qwen2 and Qwen2.5: a Llama with a bias on queries, keys and values, and on nothing else."""

from typing import Any

from redrafter_jax.families import common
from redrafter_jax.families.fields import MAX_LAYERS, whole
from redrafter_jax.model.target import TargetConfig

TYPES = ("qwen2",)
NAMES, IGNORED = common.NAMES, common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Qwen2, as `llama.config` reads a Llama's."""
    common.refuse(fields, what, honoured=common.WINDOWS)
    shapes = common.shapes(fields, what)
    return TargetConfig(**shapes, qkv_bias=True, windows=windows(fields, what, shapes["num_hidden_layers"]), model_type="qwen2")


def windows(fields: dict[str, Any], what: str, layers: int) -> tuple[int, ...]:
    """The window of each layer, of Qwen2 and Qwen3: none, or one in the layers from ``max_window_layers`` on."""
    fields = {"sliding_window": 4096, "max_window_layers": 28} | fields
    first = whole(fields, "max_window_layers", what, MAX_LAYERS, low=0)
    types = [common.SLIDING if layer >= first else common.FULL for layer in range(layers)]
    return common.optional_windows(fields, what, layers, types)


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    return common.fields_of(config, "Qwen2ForCausalLM", **common.fields_of_optional_windows(config))
