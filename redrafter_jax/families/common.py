"""What the families share: the fields of config.json that all of them have, the flags that most refuse, the names of tensors."""

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
QK_NORM_NAMES = [(r"\.blocks\[(\d+)\]\.([qk])_(?:width_)?norm", r"model.layers.\1.self_attn.\2_norm.weight", False)]
NORM_AFTER_NAMES = [
    (r"\.blocks\[(\d+)\]\.attention_norm", r"model.layers.\1.post_attention_layernorm.weight", False),
    (r"\.blocks\[(\d+)\]\.mlp_norm", r"model.layers.\1.post_feedforward_layernorm.weight", False),
]
IGNORED = re.compile(r"rotary_emb\.inv_freq$")  # old checkpoints store what follows from the config
REFUSED = ("sliding_window", "num_local_experts", "num_experts", "layer_types", "use_bidirectional_attention")
WINDOWS = ("sliding_window", "layer_types")  # what `windows` honours
FULL, SLIDING = "full_attention", "sliding_attention"  # of layer_types
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}  # ours -> what files call it


def shapes(fields: dict[str, Any], what: str, turns_in_part: bool = False) -> dict[str, Any]:
    """The arguments of `TargetConfig` that every family has, in the classic layout or that of transformers 5 (`rope_parameters`).
    ``turns_in_part``: whether `partial_rotary_factor` means something to the family.

    Raises:
      BadInput: a field is missing or out of range.
    """
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
    return {
        "vocab_size": whole(fields, "vocab_size", what, MAX_VOCABULARY_TOKENS),
        "hidden_size": width,
        "intermediate_size": whole(fields, "intermediate_size", what, MAX_FEATURES),
        "num_hidden_layers": whole(fields, "num_hidden_layers", what, MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": number({"rms_norm_eps": 1e-6} | fields, "rms_norm_eps", what, high=1.0),
        "rope": rope.read(fields, head_dim, context, what, turns_in_part),
        "tie_word_embeddings": flag(fields, "tie_word_embeddings", False, what),
        "max_position_embeddings": context,
    }


def refuse(fields: dict[str, Any], what: str, honoured: tuple[str, ...] = (), activation: str = "silu") -> None:
    """Refuses what would have to be approximated: another activation, and what is not ``honoured``.

    Raises:
      BadInput: the config asks for one of these.
    """
    for key in REFUSED:
        value = fields.get(key)
        is_full = key == "layer_types" and isinstance(value, list) and all(kind == FULL for kind in value)
        if value and key not in honoured and not is_full:
            raise BadInput(f"{what}: {key} = {shown(value)} is not supported")
    for key in ("hidden_act", "hidden_activation"):
        found = fields.get(key, ACTIVATIONS[activation])
        if found != ACTIVATIONS[activation]:
            raise BadInput(f"{what}: {key} {shown(found)} is not supported; only {ACTIVATIONS[activation]!r} is")


def windows(fields: dict[str, Any], what: str, layers: int, types: list[str]) -> tuple[int, ...]:
    """`TargetConfig.windows` by the config's ``layer_types``, or by these where it has none, and its ``sliding_window``.

    Raises:
      BadInput: a layer is of another type, or one that slides has no window.
    """
    types = types if fields.get("layer_types") is None else fields["layer_types"]
    if not isinstance(types, list) or len(types) != layers or any(kind not in (FULL, SLIDING) for kind in types):
        kinds = f"{layers} times {FULL!r} or {SLIDING!r}"
        raise BadInput(f"{what}: layer_types in config.json should be {kinds}, one for each layer, not {shown(types)}")
    if SLIDING not in types:
        return ()
    window = whole(fields, "sliding_window", what, MAX_CONTEXT_TOKENS)
    return tuple(window if kind == SLIDING else 0 for kind in types)


def one_window(fields: dict[str, Any], what: str, shapes: dict[str, Any]) -> tuple[int, ...]:
    """As `windows`, of a family whose ``sliding_window`` is that of all layers, or null. One in which the whole context fits is
    none."""
    if fields.get("sliding_window") is None:
        return ()
    window = whole(fields, "sliding_window", what, MAX_CONTEXT_TOKENS)
    return () if window >= shapes["max_position_embeddings"] else (window,) * shapes["num_hidden_layers"]


def optional_windows(fields: dict[str, Any], what: str, layers: int, types: list[str]) -> tuple[int, ...]:
    """As `windows`, of a family whose ``use_sliding_window`` says whether there are any."""
    if flag(fields, "use_sliding_window", False, what) and fields.get("sliding_window") is not None:
        return windows(fields, what, layers, types)
    if isinstance(fields.get("layer_types"), list) and SLIDING in fields["layer_types"]:
        no_window = "use_sliding_window and sliding_window say that there is no window"
        raise BadInput(f"{what}: layer_types in config.json has {SLIDING!r}, but {no_window}")
    return windows(fields, what, layers, [FULL] * layers)


def fields_of(config: TargetConfig, architecture: str, **others: Any) -> dict[str, Any]:
    """The inverse of `shapes`, in the classic layout; ``others`` are the family's own."""
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings",
    )  # fmt: skip
    kind = {"architectures": [architecture], "model_type": config.model_type, "hidden_act": ACTIVATIONS[config.activation]}
    return {name: getattr(config, name) for name in names} | kind | rope.fields_of(config.rope) | others


def fields_of_optional_windows(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `optional_windows`."""
    return {"use_sliding_window": bool(config.windows)} | fields_of_windows(config)


def fields_of_windows(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `windows`."""
    types = [SLIDING if config.window_of(layer) else FULL for layer in range(config.num_hidden_layers)]
    return {"layer_types": types, "sliding_window": max(config.windows, default=None)}
