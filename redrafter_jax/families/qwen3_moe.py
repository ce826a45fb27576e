"""Qwen3's mixtures of experts, such as 30B-A3B: a Qwen3 whose layers, or some of them, have experts instead of a feed-forward."""

from typing import Any

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families import common, qwen3
from redrafter_jax.families.fields import MAX_FEATURES, MAX_LAYERS, flag, whole
from redrafter_jax.families.names import FusedPart, Stack
from redrafter_jax.model.target_config import TargetConfig

TYPES = ("qwen3_moe",)
MAX_EXPERTS = 10**4
DEFAULTS = {  # transformers'
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
}
_EXPERTS, _LAYER = r"\.blocks\[(\d+)\]\.experts\.", r"model.layers.\1.mlp."


def _gate_and_up(config: TargetConfig) -> tuple[int, int]:
    return config.moe_intermediate_size, config.moe_intermediate_size


# Each expert's matrices by themselves, as published, or all of a layer in two tensors, as transformers has them in memory.
NAMES = [
    *qwen3.NAMES,
    (_EXPERTS + "router", _LAYER + "gate.weight", True),
    (_EXPERTS + "(gate|up|down)", _LAYER + r"experts.{}.\2_proj.weight", True, Stack(lambda config: config.num_experts)),
    (_EXPERTS + "gate", _LAYER + "experts.gate_up_proj", True, FusedPart(_gate_and_up, 0)),
    (_EXPERTS + "up", _LAYER + "experts.gate_up_proj", True, FusedPart(_gate_and_up, 1)),
    (_EXPERTS + "down", _LAYER + "experts.down_proj", True),
]
IGNORED = common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Qwen3 with experts, as `qwen3.config` reads a dense one's.

    Raises:
      BadInput: as there; or a number of the experts is missing or out of range.
    """
    fields = DEFAULTS | fields
    key = "num_local_experts" if "num_local_experts" in fields and "num_experts" not in fields else "num_experts"
    experts = whole({"num_experts": 128} | fields, key, what, MAX_EXPERTS)
    sizes = {
        "num_experts": experts,
        "num_experts_per_tok": whole(fields, "num_experts_per_tok", what, experts),
        "moe_intermediate_size": whole(fields, "moe_intermediate_size", what, MAX_FEATURES),
        "norm_topk_prob": flag(fields, "norm_topk_prob", False, what),
        "decoder_sparse_step": whole(fields, "decoder_sparse_step", what, MAX_LAYERS),
        "mlp_only_layers": _layers(fields.get("mlp_only_layers") or [], what),
    }
    common.refuse(fields, what, honoured=("sliding_window", "num_experts", "num_local_experts"))
    shapes = common.shapes(fields, what)
    slides = flag(fields, "use_sliding_window", False, what)
    windows = common.one_window({"sliding_window": 4096} | fields, what, shapes) if slides else ()
    bias = flag(fields, "attention_bias", False, what)
    return TargetConfig(**shapes, **sizes, attention_bias=bias, qk_norm="head", windows=windows, model_type="qwen3_moe")


def _layers(found: object, what: str) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(layer) is int and 0 <= layer < MAX_LAYERS for layer in found):
        raise BadInput(f"{what}: mlp_only_layers in config.json should be a list of layers, counted from 0, not {shown(found)}")
    return tuple(found)


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step")
    others = {name: getattr(config, name) for name in names} | {"mlp_only_layers": list(config.mlp_only_layers)}
    windows = {"use_sliding_window": bool(config.windows), "sliding_window": max(config.windows, default=None)}
    return common.fields_of(config, "Qwen3MoeForCausalLM", attention_bias=config.attention_bias, **windows, **others)
