"""Phi-3, 3.5, 4 and 4-mini: a Llama whose files keep q, k and v in one tensor, and gate and up in another; perhaps only a part of
each head turns, and perhaps by longrope, for which a text that outgrows the original context is read again (`decode/reread.py`)."""

import dataclasses
from typing import Any

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families import common
from redrafter_jax.families.fields import flag
from redrafter_jax.families.names import FusedPart, Heights, Table
from redrafter_jax.families.rope import ORIGINAL
from redrafter_jax.model.target_config import TargetConfig

TYPES = ("phi3",)
EARLIER_NAMES = ("su", "yarn")  # of longrope, in the files of Phi-3
DEFAULTS = {"max_position_embeddings": 4096, ORIGINAL: 4096, "rms_norm_eps": 1e-5}  # transformers'


def _heads(config: TargetConfig) -> tuple[int, int, int]:
    keys = config.num_key_value_heads * config.head_dim
    return config.num_attention_heads * config.head_dim, keys, keys


def _gate_and_up(config: TargetConfig) -> tuple[int, int]:
    return config.intermediate_size, config.intermediate_size


def _parts(names: tuple[str, ...], tensor: str, heights: Heights) -> Table:
    """Leaves whose matrices lie below each other in one tensor."""
    return [(rf"\.blocks\[(\d+)\]\.{name}\.weight", tensor, True, FusedPart(heights, index)) for index, name in enumerate(names)]


NAMES = [
    *_parts(("q", "k", "v"), r"model.layers.\1.self_attn.qkv_proj.weight", _heads),
    *_parts(("gate", "up"), r"model.layers.\1.mlp.gate_up_proj.weight", _gate_and_up),
    *common.NAMES,
]
IGNORED = common.IGNORED


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Phi-3, as `llama.config` reads a Llama's.

    Raises:
      BadInput: as there; or it has a bias, or another rope than Phi's.
    """
    fields = DEFAULTS | {key: value for key, value in fields.items() if value is not None}
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(fields.get(key), dict):
            fields[key] = _renamed(fields[key])
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        if flag(fields, key, False, what):
            raise BadInput(f"{what}: {key} = true is not supported for model_type 'phi3', which has no biases")
    shapes = common.shapes(fields, what, turns_in_part=True)
    common.refuse(fields, what, honoured=("sliding_window",))
    windows = common.one_window(fields, what, shapes)
    kind = shapes["rope"].kind
    if kind not in ("default", "longrope"):
        raise BadInput(f"{what}: rope type {shown(kind)} is not supported for model_type 'phi3'; default and longrope are")
    rope = dataclasses.replace(shapes["rope"], rereads=kind == "longrope")
    return TargetConfig(**shapes | {"rope": rope}, windows=windows, model_type="phi3")


def _renamed(scaling: dict[str, Any]) -> dict[str, Any]:
    """With the rope's kind by its present name."""
    kinds = {key: "longrope" for key in ("rope_type", "type") if scaling.get(key) in EARLIER_NAMES}
    return scaling | kinds


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    others = {"sliding_window": max(config.windows, default=None), ORIGINAL: config.rope.original_length}
    others["pad_token_id"] = None  # else transformers takes 32000
    return common.fields_of(config, "Phi3ForCausalLM", **others)
