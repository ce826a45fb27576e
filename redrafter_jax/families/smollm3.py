"""SmolLM3: a Llama of whose layers every fourth has no rotary positions."""

from typing import Any

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families import common
from redrafter_jax.families.fields import MAX_LAYERS, flag, whole
from redrafter_jax.model.target import TargetConfig

TYPES = ("smollm3",)
NAMES, IGNORED = common.NAMES, common.IGNORED
DEFAULTS = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "rope_theta": 2000000.0,
}
BIASES = ("attention_bias", "mlp_bias")


def config(fields: dict[str, Any], what: str) -> TargetConfig:
    """The config.json of a SmolLM3, as `llama.config` reads a Llama's."""
    common.refuse(fields, what, honoured=common.WINDOWS)
    shapes = common.shapes(DEFAULTS | fields, what)
    layers = shapes["num_hidden_layers"]
    unrotated = _unrotated(fields, what, layers)
    types = [common.SLIDING if layer in unrotated else common.FULL for layer in range(layers)]
    windows = common.optional_windows(fields, what, layers, types)
    biases = {key: flag(fields, key, False, what) for key in BIASES}
    return TargetConfig(**shapes, **biases, unrotated=unrotated, windows=windows, model_type="smollm3")


def _unrotated(fields: dict[str, Any], what: str, layers: int) -> tuple[int, ...]:
    turns = fields.get("no_rope_layers")  # whose entries are 1 for a layer that has rotary positions
    if turns is None:
        interval = whole({"no_rope_layer_interval": 4} | fields, "no_rope_layer_interval", what, MAX_LAYERS)
        turns = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(turns, list) or len(turns) != layers or any(type(each) is not int or each not in (0, 1) for each in turns):
        raise BadInput(f"{what}: no_rope_layers in config.json should be {layers} times 0 or 1, not {shown(turns)}")
    return tuple(layer for layer, each in enumerate(turns) if not each)


def fields_of(config: TargetConfig) -> dict[str, Any]:
    """The inverse of `config`."""
    turns = [int(layer not in config.unrotated) for layer in range(config.num_hidden_layers)]
    windows = common.fields_of_optional_windows(config)
    biases = {key: getattr(config, key) for key in BIASES}
    return common.fields_of(config, "SmolLM3ForCausalLM", no_rope_layers=turns, **windows, **biases)
