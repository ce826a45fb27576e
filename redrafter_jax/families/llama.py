"""Llama: what its config.json says, what of that this project does not do, and the names of its tensors."""

import re
from typing import Any

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families import rope
from redrafter_jax.families.fields import (
    MAX_CONTEXT_TOKENS,
    MAX_FEATURES,
    MAX_LAYERS,
    MAX_VOCABULARY_TOKENS,
    flag,
    number,
    whole,
)
from redrafter_jax.model.target import TargetConfig

TYPES = ("llama",)
NAMES = [
    (r"\.embedding", "model.embed_tokens.weight", False),
    (r"\.embedding_transposed", "model.embed_tokens.weight", True),  # the output matrix, where it is tied and not stored
    (r"\.norm", "model.norm.weight", False),
    (r"\.lm_head", "lm_head.weight", True),
    (r"\.blocks\[(\d+)\]\.input_norm", r"model.layers.\1.input_layernorm.weight", False),
    (r"\.blocks\[(\d+)\]\.post_norm", r"model.layers.\1.post_attention_layernorm.weight", False),
    (r"\.blocks\[(\d+)\]\.([qkvo])\.weight", r"model.layers.\1.self_attn.\2_proj.weight", True),
    (r"\.blocks\[(\d+)\]\.([qkvo])\.bias", r"model.layers.\1.self_attn.\2_proj.bias", False),
    (r"\.blocks\[(\d+)\]\.(gate|up|down)\.weight", r"model.layers.\1.mlp.\2_proj.weight", True),
    (r"\.blocks\[(\d+)\]\.(gate|up|down)\.bias", r"model.layers.\1.mlp.\2_proj.bias", False),
]
IGNORED = re.compile(r"rotary_emb\.inv_freq$")  # old checkpoints store what follows from the config


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Llama, in the classic layout or that of transformers 5 (`rope_parameters`).

    Raises:
      BadInput: a field is missing or out of range, or asks for something that would have to be approximated.
    """
    _refuse_what_this_is_not(fields, what)
    heads = whole(fields, "num_attention_heads", what, MAX_FEATURES)
    width = whole(fields, "hidden_size", what, MAX_FEATURES)
    given = {key: value for key, value in fields.items() if value is not None}
    kv_heads = whole({"num_key_value_heads": heads} | given, "num_key_value_heads", what, heads)
    if heads % kv_heads:
        raise BadInput(f"{what}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if "head_dim" not in given and width % heads:
        raise BadInput(f"{what}: hidden_size {width} is not a multiple of num_attention_heads {heads}, and there is no head_dim")
    head_dim = whole({"head_dim": width // heads} | given, "head_dim", what, MAX_FEATURES // heads)
    if head_dim % 2:
        raise BadInput(f"{what}: head_dim should be even, for rotary positions turn pairs, not {head_dim}")
    context = whole({"max_position_embeddings": 2048} | fields, "max_position_embeddings", what, MAX_CONTEXT_TOKENS)
    return TargetConfig(
        vocab_size=whole(fields, "vocab_size", what, MAX_VOCABULARY_TOKENS),
        hidden_size=width,
        intermediate_size=whole(fields, "intermediate_size", what, MAX_FEATURES),
        num_hidden_layers=whole(fields, "num_hidden_layers", what, MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=number({"rms_norm_eps": 1e-6} | fields, "rms_norm_eps", what, high=1.0),
        rope=rope.read(fields, head_dim, context, what),
        tie_word_embeddings=flag(fields, "tie_word_embeddings", False, what),
        attention_bias=flag(fields, "attention_bias", False, what),
        mlp_bias=flag(fields, "mlp_bias", False, what),
        max_position_embeddings=context,
    )


def _refuse_what_this_is_not(fields: dict[str, Any], what: str) -> None:
    for key in ("sliding_window", "num_local_experts", "num_experts", "layer_types"):
        value = fields.get(key)
        if value and not (key == "layer_types" and isinstance(value, list) and all(kind == "full_attention" for kind in value)):
            raise BadInput(f"{what}: {key} = {shown(value)} is not supported")
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        raise BadInput(f"{what}: hidden_act {shown(activation)} is not supported; only 'silu' is")


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`: the config.json of such a target, in the classic layout."""
    shapes = {name: getattr(config, name) for name in config.__dataclass_fields__ if name not in ("rope", "weight_format")}
    names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    return shapes | names | rope.fields_of(config.rope)
