"""OLMo 2: a Llama with its norms after attention and feed-forward, and a norm over all heads' queries and one over their keys."""

from typing import Any

from redrafter_jax.families import common
from redrafter_jax.families.fields import flag
from redrafter_jax.model.target import TargetConfig

TYPES = ("olmo2",)
NAMES, IGNORED = common.NORM_AFTER_NAMES + common.QK_NORM_NAMES + common.NAMES, common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of an OLMo 2, as `llama.config` reads a Llama's."""
    common.refuse(fields, what)
    bias = flag(fields, "attention_bias", False, what)
    shapes = common.shapes({"rms_norm_eps": 1e-5} | fields, what)
    return TargetConfig(**shapes, attention_bias=bias, norms="after", qk_norm="width", model_type="olmo2")


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    return common.fields_of(config, "Olmo2ForCausalLM", attention_bias=config.attention_bias)
