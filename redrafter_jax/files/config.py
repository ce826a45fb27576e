"""config.json -> TargetConfig or DrafterConfig; also the ids that end a target's text.

Not here: what the fields of a target's family mean (`redrafter_jax/families`), what tells folders apart (`fingerprint.py`).
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from redrafter_jax import families
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families.fields import MAX_FEATURES, MAX_LAYERS, MAX_VOCABULARY_TOKENS, flag, whole
from redrafter_jax.files import json_files, quantisation
from redrafter_jax.model import candidates
from redrafter_jax.model.confidence import Confidence
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.target_config import TargetConfig, wrong_draft_model

DRAFTER_TYPE = "recurrent_drafting_drafter"
TIED_KEY = "tied_lm_head"  # ours: a slim head, whose LM head is the target's and is not stored
TRAINED_FOR_KEY = "redrafter_jax_target"  # ours: which target the head was trained for (`provenance.py`)
DRAFT_VOCAB_KEY = "draft_vocab_size"  # ours: U, tokens that the head can draft; the tensor draft_ids says which
CONFIDENCE_KEY = "confidence"  # ours: (slope, bias) of each depth, for greedy and for sampled rows (`model/confidence.py`)
CANDIDATES_KEY, RANK_KEY = "candidates", "candidate_rank"  # ours: C and R of a candidate head (`model/candidates.py`)
BIGRAM_KEY, GATED_KEY, DEPTHS_KEY = "bigram_rank", "gated_state", "target_depths"  # ours: parts beyond the paper's head


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


def stop_ids(folder: pathlib.Path, tokenizer, what: str) -> list[int]:
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


def target_config(config: dict[str, Any], what: str = "target", weight_format: str | None = None) -> TargetConfig:
    """The config.json of a target, as its family reads it.

    Args:
      weight_format: the format that its matrices are wanted in, of `quantised.FORMATS`; None: as they are stored.

    Raises:
      BadInput: it is of no family that there is, or asks for something that would have to be approximated, or its matrices cannot
        be had in that format.
    """
    kind = config.get("model_type")
    if kind == DRAFTER_TYPE:
        raise BadInput(f"{what}: this is a draft head (model_type {kind}); a target is a language model")
    _, read = families.read(config, what)
    fields = families.text_fields(config, what)
    found = quantisation.weight_format(fields, weight_format, what)
    if read.num_experts and fields.get(quantisation.KEY):
        instead = "take the float checkpoint, and quantise it as it is loaded (weights int8)"
        raise BadInput(f"{what}: a quantised mixture of experts ({quantisation.KEY}) is not read; {instead}")
    return dataclasses.replace(read, weight_format=found)


def drafter_config(config: dict[str, Any], what: str = "drafter") -> DrafterConfig:
    """The config.json of a draft head in Apple's format.

    Raises:
      BadInput: it is another kind of model, or a number is missing.
    """
    kind = config.get("model_type")
    if kind != DRAFTER_TYPE:
        others = f"Medusa's heads have their keys, and a small model is one of {', '.join(families.types())}"
        raise BadInput(f"{what}: model_type {shown(kind)} is not a draft head; one has model_type {DRAFTER_TYPE!r}, {others}")
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
    bigram = whole(config, BIGRAM_KEY, what, min(vocab, MAX_FEATURES)) if BIGRAM_KEY in config else 0
    gated = flag(config, GATED_KEY, False, what)
    if gated and not rnn:
        raise BadInput(f"{what}: {GATED_KEY} in config.json is of a recurrent state, and rnn is false")
    depths = _depths(config, what)
    shapes = {"exit_size": exit_size, "num_blocks": blocks, "rnn": rnn, "tied": tied, "draft_vocab": draft_vocab}
    found = DrafterConfig(
        vocab_size=vocab,
        hidden_size=width,
        bigram=bigram,
        gated=gated,
        depths=depths,
        confidence=_confidence(config, what),
        **shapes,
    )
    if CANDIDATES_KEY not in config and RANK_KEY not in config:
        return found
    count, rank = (whole(config, key, what, MAX_VOCABULARY_TOKENS) for key in (CANDIDATES_KEY, RANK_KEY))
    wrong = candidates.wrong_numbers(found, count, rank)
    if wrong:
        key = {"candidates": CANDIDATES_KEY, "rank": RANK_KEY}[wrong[0]]
        raise BadInput(f"{what}: {key} in config.json {wrong[1]}")
    return dataclasses.replace(found, candidates=count, candidate_rank=rank)


def _depths(config: dict[str, Any], what: str) -> tuple[int, ...]:
    """The layers of the target whose outputs a head reads; none where its config.json does not name any."""
    found = config.get(DEPTHS_KEY, [])
    is_right = isinstance(found, list) and all(type(layer) is int and 0 <= layer < MAX_LAYERS for layer in found)
    if not is_right or found != sorted(set(found)) or (DEPTHS_KEY in config and not found):
        raise BadInput(f"{what}: {DEPTHS_KEY} in config.json should be layers from 0 on, ascending, not {shown(found)}")
    return tuple(found)


def _confidence(config: dict[str, Any], what: str) -> Confidence | None:
    """What a head's scores say of acceptance; None where it was not fitted."""
    if CONFIDENCE_KEY not in config:
        return None
    try:
        given = config[CONFIDENCE_KEY]
        return Confidence(*(tuple((float(slope), float(bias)) for slope, bias in given[name]) for name in ("greedy", "sampled")))
    except (KeyError, TypeError, ValueError) as error:
        right = "lists of a slope and a bias for each depth, greedy and sampled"
        raise BadInput(f"{what}: {CONFIDENCE_KEY} in config.json should be {right} ({error})") from None


def fields_of_parts(config: DrafterConfig) -> dict[str, int | bool | list | dict | None]:
    """What a head has beyond the paper's, as its config.json names it."""
    fitted = config.confidence and dataclasses.asdict(config.confidence)
    few = {CANDIDATES_KEY: config.candidates, RANK_KEY: config.candidate_rank}
    return {BIGRAM_KEY: config.bigram, GATED_KEY: config.gated, DEPTHS_KEY: list(config.depths), CONFIDENCE_KEY: fitted} | few


def check_pair(target: TargetConfig, drafter: DrafterConfig | TargetConfig, what: str = "drafter") -> None:
    """Raises BadInput where a head was made for another target, or a model cannot draft for it."""
    if isinstance(drafter, TargetConfig):
        wrong = wrong_draft_model(target, drafter)
        if wrong:
            raise BadInput(f"{what}: a draft model {wrong}")
        return
    for name in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(target, name), getattr(drafter, name)
        if ours != theirs:
            raise BadInput(f"{what}: the head is for a target with {name} {theirs}, but this target has {name} {ours}")
    if drafter.depths and drafter.depths[-1] >= target.num_hidden_layers:
        has = f"this target has {target.num_hidden_layers} layers"
        raise BadInput(f"{what}: the head reads what layer {drafter.depths[-1]} of its target puts out, counted from 0, but {has}")


def check_ids(ids: np.ndarray, vocab_size: int, name: str, folder: pathlib.Path, what: str) -> None:
    """Raises BadInput where the tensor ``name`` is no table of a draft vocabulary."""
    if ids[0] < 0 or ids[-1] >= vocab_size or np.any(np.diff(ids) <= 0):
        raise BadInput(f"{what}: {name} in {folder} should be ascending ids from 0 to {vocab_size - 1}, each once")
