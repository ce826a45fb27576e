"""Llama 1, 2 and 3, and what is made like them: Vicuna, SmolLM, TinyLlama."""

from typing import Any

from redrafter_jax.families import common
from redrafter_jax.families.fields import flag
from redrafter_jax.model.target import TargetConfig

TYPES = ("llama",)
NAMES, IGNORED = common.NAMES, common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Llama.

    Raises:
      BadInput: a field is missing or out of range, or asks for something that would have to be approximated.
    """
    common.refuse(fields, what)
    biases = {key: flag(fields, key, False, what) for key in ("attention_bias", "mlp_bias")}
    return TargetConfig(**common.shapes(fields, what), **biases)


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return common.fields_of(config, "LlamaForCausalLM", **biases)
