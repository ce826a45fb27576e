"""config.json -> TargetConfig or DrafterConfig. What this target does not do is refused by name, never approximated.

Also the ids that end a target's text. Not here: ranges of fields (`fields.py`), what tells folders apart (`fingerprint.py`).
"""

import pathlib
from typing import Any

from redrafter_jax.errors import BadInput
from redrafter_jax.fields import (
    MAX_CONTEXT_TOKENS,
    MAX_FEATURES,
    MAX_LAYERS,
    MAX_VOCABULARY_TOKENS,
    flag,
    number,
    shown,
    whole,
)
from redrafter_jax.files import json_files
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
    return json_files.read_object(path, what)


def stop_ids(folder: pathlib.Path, tokenizer, what: str = "--target") -> list[int]:
    """The ids that end a target's text: those that generation_config.json names, else config.json, else the tokenizer.

    Raises:
      BadInput: a file is not a JSON object, or names something else than ids of the vocabulary that config.json states.
    """
    model = json_files.read_object(folder / "config.json", what)
    generation = folder / "generation_config.json"
    found = {generation: json_files.read_object(generation, what)} if generation.is_file() else {}
    vocabulary = whole({"vocab_size": MAX_VOCABULARY_TOKENS} | model, "vocab_size", what, MAX_VOCABULARY_TOKENS)
    for path, config in (found | {folder / "config.json": model}).items():
        value = config.get("eos_token_id")
        if value is not None:
            return _ids_in(value if isinstance(value, list) else [value], vocabulary, f"{what}: eos_token_id in {path}")
    eos = getattr(tokenizer, "eos_token_id", None)
    return [] if eos is None else _ids_in([eos], vocabulary, f"{what}: eos_token_id of the tokenizer in {folder}")


def _ids_in(ids: list, vocabulary: int, where: str) -> list[int]:
    for token in ids:
        if type(token) is not int or not 0 <= token < vocabulary:
            span = f"from 0 to {vocabulary - 1}"
            raise BadInput(f"{where} should be a token id or a list of them, {span}, not {shown(token)}")
    return ids


def target_config(config: dict[str, Any], what: str = "target") -> TargetConfig:
    """A Llama-family config.json, in the classic layout or that of transformers 5 (`rope_parameters`).

    Raises:
      BadInput: it is not Llama-like, or asks for something that would have to be approximated.
    """
    _refuse_unlike_llama(config, what)
    heads = whole(config, "num_attention_heads", what, MAX_FEATURES)
    width = whole(config, "hidden_size", what, MAX_FEATURES)
    given = {key: value for key, value in config.items() if value is not None}
    kv_heads = whole({"num_key_value_heads": heads} | given, "num_key_value_heads", what, heads)
    if heads % kv_heads:
        raise BadInput(f"{what}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if "head_dim" not in given and width % heads:
        raise BadInput(f"{what}: hidden_size {width} is not a multiple of num_attention_heads {heads}, and there is no head_dim")
    head_dim = whole({"head_dim": width // heads} | given, "head_dim", what, MAX_FEATURES // heads)
    if head_dim % 2:
        raise BadInput(f"{what}: head_dim should be even, for rotary positions turn pairs, not {head_dim}")
    context = whole({"max_position_embeddings": 2048} | config, "max_position_embeddings", what, MAX_CONTEXT_TOKENS)
    return TargetConfig(
        vocab_size=whole(config, "vocab_size", what, MAX_VOCABULARY_TOKENS),
        hidden_size=width,
        intermediate_size=whole(config, "intermediate_size", what, MAX_FEATURES),
        num_hidden_layers=whole(config, "num_hidden_layers", what, MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=number({"rms_norm_eps": 1e-6} | config, "rms_norm_eps", what, high=1.0),
        rope=_rope(config, head_dim, context, what),
        tie_word_embeddings=flag(config, "tie_word_embeddings", False, what),
        attention_bias=flag(config, "attention_bias", False, what),
        mlp_bias=flag(config, "mlp_bias", False, what),
        max_position_embeddings=context,
    )


def _refuse_unlike_llama(config: dict[str, Any], what: str) -> None:
    kind = config.get("model_type")
    if kind == DRAFTER_TYPE:
        raise BadInput(f"{what}: this is a draft head (model_type {kind}); a target is a Llama-family model")
    if kind != "llama":
        only = "only Llama-family configs (model_type 'llama') are"
        raise BadInput(f"{what}: model_type {shown(kind)} is not supported; {only}")
    if config.get("quantization_config"):
        raise BadInput(f"{what}: quantised weights (quantization_config) are not supported; take the float checkpoint")
    for key in ("sliding_window", "num_local_experts", "num_experts", "layer_types"):
        value = config.get(key)
        if value and not (key == "layer_types" and isinstance(value, list) and all(kind == "full_attention" for kind in value)):
            raise BadInput(f"{what}: {key} = {shown(value)} is not supported")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise BadInput(f"{what}: hidden_act {shown(activation)} is not supported; only 'silu' is")


def _rope(config: dict[str, Any], head_dim: int, context: int, what: str) -> Rope:
    """From `rope_parameters`, or `rope_scaling` as older files call it; where there are both, they should agree."""
    given = [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key) is not None]
    for scaling in given:
        if not isinstance(scaling, dict):
            names = "rope_parameters or rope_scaling"
            raise BadInput(f"{what}: {names} in config.json should be an object, not {shown(scaling)}")
        nested = [key for key, value in scaling.items() if isinstance(value, dict)]
        if nested:  # transformers' own Llama has one for all layers, too
            per_type = f"are given per layer type ({nested[0]})"
            raise BadInput(f"{what}: rope_parameters in config.json {per_type}, which is not supported")
    rope, *others = [_scaled(scaling, config, head_dim, context, what) for scaling in given or [{}]]
    if any(other != rope for other in others):
        raise BadInput(f"{what}: rope_parameters and rope_scaling in config.json differ; there should be one of them")
    return rope


def _scaled(scaling: dict[str, Any], config: dict[str, Any], head_dim: int, context: int, what: str) -> Rope:
    theta = number({"rope_theta": 10000.0} | config | scaling, "rope_theta", what)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "dynamic", "llama3"):
        raise BadInput(f"{what}: rope type {shown(kind)} is not supported; default, linear, dynamic and llama3 are")
    if scaling.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1.0):
        raise BadInput(f"{what}: partial_rotary_factor is not supported")
    if kind == "default":
        return Rope(theta, original_length=context)
    factor = number(scaling, "factor", f"{what}: rope type {kind!r}")
    if kind == "dynamic" and head_dim == 2:
        raise BadInput(f"{what}: rope type 'dynamic' needs a head_dim of 4 or more, not 2")
    if kind != "llama3":  # transformers scales the base of `dynamic` by the context, whatever the original length says
        return Rope(theta, kind, factor, original_length=context)
    low, high = (number(scaling, key, f"{what}: rope type 'llama3'") for key in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise BadInput(f"{what}: low_freq_factor in config.json should be below high_freq_factor {high:g}, not {low:g}")
    key = "original_max_position_embeddings"
    if config.get(key) is not None:  # transformers prefers it to the one in `scaling`
        scaling = scaling | {key: config[key]}
    original = whole(scaling, key, f"{what}: rope type 'llama3'", MAX_CONTEXT_TOKENS)
    return Rope(theta, kind, factor, low, high, original)


def drafter_config(config: dict[str, Any], what: str = "drafter") -> DrafterConfig:
    """The config.json of a draft head in Apple's format.

    Raises:
      BadInput: it is another kind of model, or a number is missing.
    """
    kind = config.get("model_type")
    if kind != DRAFTER_TYPE:
        raise BadInput(f"{what}: model_type {shown(kind)} is not a draft head; one has model_type {DRAFTER_TYPE!r}")
    width = whole(config, "hidden_size", what, MAX_FEATURES)
    tied = flag(config, TIED_KEY, False, what)
    blocks = whole(config, "num_draft_layers", what, MAX_LAYERS, low=0)
    exit_size = whole(config, "exit_dim", what, MAX_FEATURES)
    if tied and exit_size != width:
        raise BadInput(f"{what}: a head with {TIED_KEY} exits at hidden_size {width}; exit_dim is {exit_size}")
    vocab, rnn = whole(config, "vocab_size", what, MAX_VOCABULARY_TOKENS), flag(config, "rnn", True, what)
    draft_vocab = whole(config, DRAFT_VOCAB_KEY, what, MAX_VOCABULARY_TOKENS) if DRAFT_VOCAB_KEY in config else 0
    if draft_vocab > vocab:
        raise BadInput(f"{what}: {DRAFT_VOCAB_KEY} in config.json should be at most vocab_size {vocab}, not {draft_vocab}")
    return DrafterConfig(
        vocab_size=vocab, hidden_size=width, exit_size=exit_size, num_blocks=blocks, rnn=rnn, tied=tied, draft_vocab=draft_vocab
    )


def check_pair(target: TargetConfig, drafter: DrafterConfig, what: str = "drafter") -> None:
    """Raises BadInput where a head was made for another target."""
    for name in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(target, name), getattr(drafter, name)
        if ours != theirs:
            raise BadInput(f"{what}: the head is for a target with {name} {theirs}, but this target has {name} {ours}")
