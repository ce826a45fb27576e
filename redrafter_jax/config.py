"""config.json -> TargetConfig or DrafterConfig. What this target does not do is refused by name, never approximated.

Also the ids that end a target's text.
"""

import json
import math
import pathlib
from typing import Any

from redrafter_jax.errors import BadInput
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.layers import Rope
from redrafter_jax.model.target import TargetConfig

DRAFTER_TYPE = "recurrent_drafting_drafter"
TIED_KEY = "tied_lm_head"  # ours: a slim head, whose LM head is the target's and is not stored
DRAFT_VOCAB_KEY = "draft_vocab_size"  # ours: U, tokens that the head can draft; the tensor draft_ids says which


def read_json(folder: pathlib.Path, what: str) -> dict[str, Any]:
    """The config.json of a folder; ``what`` names the folder in errors.

    Raises:
      BadInput: there is none, or it is not a JSON object.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise BadInput(f"{what}: there is no folder {folder}")
    if not path.is_file():
        raise BadInput(f"{what}: {folder} has no config.json, so it is not a model folder")
    return _object(path, what)


def stop_ids(folder: pathlib.Path, tokenizer, what: str = "--target") -> list[int]:
    """The ids that end a target's text: those that generation_config.json names, else config.json, else the tokenizer.

    Raises:
      BadInput: a file is not a JSON object, or names something else than ids.
    """
    for path in (folder / "generation_config.json", folder / "config.json"):
        found = _object(path, what).get("eos_token_id") if path.is_file() else None
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(token) is int for token in ids):
            raise BadInput(f"{what}: eos_token_id in {path} should be a token id or a list of them, not {found!r}")
        return ids
    eos = getattr(tokenizer, "eos_token_id", None)
    return [] if eos is None else [eos]


def _object(path: pathlib.Path, what: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{what}: {path} cannot be read as JSON ({error})") from None
    if not isinstance(config, dict):
        raise BadInput(f"{what}: {path} should hold a JSON object, not a {type(config).__name__}")
    return config


def target_config(config: dict[str, Any], what: str = "target") -> TargetConfig:
    """A Llama-family config.json, in the classic layout or that of transformers 5 (`rope_parameters`).

    Raises:
      BadInput: it is not Llama-like, or asks for something that would have to be approximated.
    """
    _refuse_unlike_llama(config, what)
    heads = _positive(config, "num_attention_heads", what)
    width = _positive(config, "hidden_size", what)
    kv_heads = heads if config.get("num_key_value_heads") is None else _positive(config, "num_key_value_heads", what)
    if heads % kv_heads:
        raise BadInput(f"{what}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if not config.get("head_dim") and width % heads:
        raise BadInput(f"{what}: hidden_size {width} is not a multiple of num_attention_heads {heads}, and there is no head_dim")
    head_dim = width // heads if config.get("head_dim") is None else _positive(config, "head_dim", what)
    if head_dim % 2:
        raise BadInput(f"{what}: head_dim should be even, for rotary positions turn pairs, not {head_dim}")
    longest = _positive({"max_position_embeddings": 2048} | config, "max_position_embeddings", what)
    return TargetConfig(
        vocab_size=_positive(config, "vocab_size", what),
        hidden_size=width,
        intermediate_size=_positive(config, "intermediate_size", what),
        num_hidden_layers=_positive(config, "num_hidden_layers", what),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6, what),
        rope=_rope(config, longest, what),
        tie_word_embeddings=_flag(config, "tie_word_embeddings", False, what),
        attention_bias=_flag(config, "attention_bias", False, what),
        mlp_bias=_flag(config, "mlp_bias", False, what),
        max_position_embeddings=longest,
    )


def _refuse_unlike_llama(config: dict[str, Any], what: str) -> None:
    kind = config.get("model_type")
    if kind == DRAFTER_TYPE:
        raise BadInput(f"{what}: this is a draft head (model_type {kind}); a target is a Llama-family model")
    if kind != "llama":
        raise BadInput(f"{what}: model_type {kind!r} is not supported; only Llama-family configs (model_type 'llama') are")
    if config.get("quantization_config"):
        raise BadInput(f"{what}: quantised weights (quantization_config) are not supported; take the float checkpoint")
    for key in ("sliding_window", "num_local_experts", "num_experts", "layer_types"):
        value = config.get(key)
        if value and not (key == "layer_types" and isinstance(value, list) and all(kind == "full_attention" for kind in value)):
            raise BadInput(f"{what}: {key} = {value!r} is not supported")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise BadInput(f"{what}: hidden_act {activation!r} is not supported; only 'silu' is")


def _rope(config: dict[str, Any], longest: int, what: str) -> Rope:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise BadInput(f"{what}: rope_parameters or rope_scaling in config.json should be an object, not {scaling!r}")
    theta = _number({"rope_theta": config.get("rope_theta", 10000.0)} | scaling, "rope_theta", 10000.0, what)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "dynamic", "llama3"):
        raise BadInput(f"{what}: rope type {kind!r} is not supported; default, linear, dynamic and llama3 are")
    if scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise BadInput(f"{what}: partial_rotary_factor is not supported")
    needed = {"default": (), "linear": ("factor",), "dynamic": ("factor",),
              "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}  # fmt: skip
    for key in needed[kind]:
        if not isinstance(scaling.get(key), int | float):
            raise BadInput(f"{what}: rope type {kind!r} needs a number for {key!r}")
    # transformers scales the base of `dynamic` by max_position_embeddings, whatever the original length says
    original = longest if kind == "dynamic" else scaling.get("original_max_position_embeddings", longest)
    return Rope(
        theta, kind, float(scaling.get("factor", 1.0)), float(scaling.get("low_freq_factor", 1.0)),
        float(scaling.get("high_freq_factor", 4.0)), int(original),
    )  # fmt: skip


def drafter_config(config: dict[str, Any], what: str = "drafter") -> DrafterConfig:
    """The config.json of a draft head in Apple's format.

    Raises:
      BadInput: it is another kind of model, or a number is missing.
    """
    kind = config.get("model_type")
    if kind != DRAFTER_TYPE:
        raise BadInput(f"{what}: model_type {kind!r} is not a draft head; one has model_type {DRAFTER_TYPE!r}")
    width = _positive(config, "hidden_size", what)
    tied = _flag(config, TIED_KEY, False, what)
    blocks = config.get("num_draft_layers")
    if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 0:
        raise BadInput(f"{what}: num_draft_layers in config.json should be a whole number from 0 up, not {blocks!r}")
    exit_size = _positive(config, "exit_dim", what)
    if tied and exit_size != width:
        raise BadInput(f"{what}: a head with {TIED_KEY} exits at hidden_size {width}; exit_dim is {exit_size}")
    vocab, rnn = _positive(config, "vocab_size", what), _flag(config, "rnn", True, what)
    draft_vocab = _positive(config, DRAFT_VOCAB_KEY, what) if DRAFT_VOCAB_KEY in config else 0
    if draft_vocab > vocab:
        raise BadInput(f"{what}: {DRAFT_VOCAB_KEY} in config.json should be at most vocab_size {vocab}, not {draft_vocab}")
    return DrafterConfig(vocab, width, exit_size, blocks, rnn, tied, draft_vocab)


def check_pair(target: TargetConfig, drafter: DrafterConfig, what: str = "drafter") -> None:
    """Raises BadInput where a head was made for another target."""
    for name in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(target, name), getattr(drafter, name)
        if ours != theirs:
            raise BadInput(f"{what}: the head is for a target with {name} {theirs}, but this target has {name} {ours}")


def _positive(config: dict[str, Any], key: str, what: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{what}: {key} in config.json should be a positive whole number, not {value!r}")
    return value


def _number(config: dict[str, Any], key: str, default: float, what: str) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise BadInput(f"{what}: {key} in config.json should be a number above 0, not {value!r}")
    return float(value)


def _flag(config: dict[str, Any], key: str, default: bool, what: str) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise BadInput(f"{what}: {key} in config.json should be true or false, not {value!r}")
    return value
