"""Gemma 3, the text models: Gemma 2 with an RMSNorm of each head in place of the caps, and other rotary positions in windows."""

from typing import Any

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families import common, gemma2, rope
from redrafter_jax.families.fields import MAX_LAYERS, number, whole
from redrafter_jax.model.target import TargetConfig

TYPES = ("gemma3_text",)
NAMES, IGNORED = gemma2.NAMES + common.QK_NORM_NAMES, common.IGNORED
DEFAULTS = gemma2.DEFAULTS | {  # published files of the larger models leave out most of this
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a Gemma 3 text model, as `llama.config` reads a Llama's."""
    common.refuse(fields, what, honoured=common.WINDOWS, activation="gelu_tanh")
    if fields.get("attn_logit_softcapping") is not None:  # transformers does not do it either
        raise BadInput(f"{what}: attn_logit_softcapping = {shown(fields['attn_logit_softcapping'])} is not supported in a Gemma 3")
    whole_model, windowed = _by_layer_type(DEFAULTS | fields, what)
    shapes = common.shapes(whole_model, what)
    local = rope.read(windowed, shapes["head_dim"], shapes["max_position_embeddings"], what)
    if local.kind != "default":
        raise BadInput(f"{what}: rope type {local.kind!r} of layers with a window is not supported; only 'default' is")
    layers = shapes["num_hidden_layers"]
    period = whole(whole_model, "sliding_window_pattern", what, MAX_LAYERS)
    types = [common.SLIDING if (layer + 1) % period else common.FULL for layer in range(layers)]
    return TargetConfig(
        **shapes,
        **gemma2.flags(whole_model, what),
        qk_norm="head",
        windows=common.windows(whole_model, what, layers, types),
        window_rope=local,
        model_type="gemma3_text",
    )


def _by_layer_type(fields: dict[str, Any], what: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that tell the rotary positions of layers without a window, and of those with one."""
    parameters = fields.get("rope_parameters") or {}
    by_type = {kind: parameters.get(kind) or {} for kind in (common.FULL, common.SLIDING)} if isinstance(parameters, dict) else {}
    if not isinstance(parameters, dict) or parameters.keys() - by_type.keys():
        kinds = f"{common.FULL!r} and {common.SLIDING!r}"
        raise BadInput(f"{what}: rope_parameters in config.json should be given for {kinds}, not as {shown(parameters)}")
    windowed = {"rope_theta": number(fields, "rope_local_base_freq", what), "rope_parameters": by_type[common.SLIDING]}
    return fields | {"rope_parameters": by_type[common.FULL] or None}, windowed


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    others = gemma2.fields_of_flags(config) | {"rope_local_base_freq": config.window_rope.theta}
    return common.fields_of(config, "Gemma3ForCausalLM", **others)
