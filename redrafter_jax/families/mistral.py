"""Mistral: a Llama whose layers all see a window, or none does (v0.2 and later, Nemo, Small)."""

from typing import Any

from redrafter_jax.families import common
from redrafter_jax.model.target import TargetConfig

TYPES = ("mistral",)
NAMES, IGNORED = common.NAMES, common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Mistral, as `llama.config` reads a Llama's."""
    common.refuse(fields, what, honoured=("sliding_window",))
    given = {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072} | fields
    shapes = common.shapes(given, what)
    layers, kind = shapes["num_hidden_layers"], common.FULL if given["sliding_window"] is None else common.SLIDING
    windows = common.windows(given | {"layer_types": [kind] * layers}, what, layers, [])
    return TargetConfig(**shapes, windows=windows, model_type="mistral")


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    return common.fields_of(config, "MistralForCausalLM", sliding_window=max(config.windows, default=None))
