"""Granite 3 and later, the dense ones: a Llama with four multipliers."""

from typing import Any

from redrafter_jax.families import common
from redrafter_jax.families.fields import flag, number
from redrafter_jax.model.target import TargetConfig

TYPES = ("granite",)
NAMES, IGNORED = common.NAMES, common.IGNORED
MULTIPLIERS = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention_scale": "attention_multiplier",
    "logits_divisor": "logits_scaling",
}
BIASES = ("attention_bias", "mlp_bias")


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Granite, as `llama.config` reads a Llama's."""
    common.refuse(fields, what)
    multipliers = {ours: number({theirs: 1.0} | fields, theirs, what) for ours, theirs in MULTIPLIERS.items()}
    biases = {key: flag(fields, key, False, what) for key in BIASES}
    return TargetConfig(**common.shapes(fields, what), **multipliers, **biases, model_type="granite")


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    multipliers = {theirs: getattr(config, ours) for ours, theirs in MULTIPLIERS.items()}
    return common.fields_of(config, "GraniteForCausalLM", **multipliers, **{key: getattr(config, key) for key in BIASES})
