"""Families of targets, as data: what a config.json says, and what the tensors are called.

A family is a file of this folder, listed in FAMILIES:

    TYPES                    the model_types of its config.json
    config(fields, what)     the `TargetConfig`, from checked fields; what would have to be approximated is refused by name
    fields_of(config)        the inverse, for `save_target`
    NAMES                    leaf of `Target` (a regular expression) -> tensor in the file, whether the file holds it transposed,
                             and which part of it, or stack of several, the leaf is (`names.py`)
    IGNORED                  tensors that follow from the config (a regular expression)

What they have in common is read in `common.py`, which a family's file calls.

What its layers do differently is a flag of `TargetConfig` that `model/target.py` acts on, not a class of its own. So a family
is added by a file here and, if it does something new, by that flag and the lines it switches; nothing else names a family.
"""

import re
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families import (
    gemma2,
    gemma3,
    granite,
    llama,
    mistral,
    multimodal,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from redrafter_jax.model.target import TargetConfig

FAMILIES = (llama, mistral, qwen2, qwen3, gemma2, gemma3, olmo2, granite, smollm3, phi3, qwen3_moe)


def types() -> list[str]:
    """The model_types of all families, and of the models whose text model is of one."""
    return [name for family in FAMILIES for name in family.TYPES] + list(multimodal.TEXT_TYPES)


def read(fields: dict[str, Any], what: str = "target") -> tuple[ModuleType, TargetConfig]:
    """The family of a config.json, or of the text model inside, and what it says.

    Raises:
      BadInput: it is of no family, or asks for something that would have to be approximated.
    """
    kind = fields.get("model_type")
    if isinstance(kind, str) and kind in multimodal.TEXT_TYPES:
        what, fields = f"{what}: text_config", multimodal.text_fields(fields, what)
    family = of(fields.get("model_type"), what)
    return family, family.config(fields, what)


def stored_names(fields: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The names of a checkpoint's tensors by those that they have in `NAMES`: the same, but of a text model inside another."""
    if fields.get("model_type") not in multimodal.TEXT_TYPES:
        return {name: name for name in names}
    return {inner: name for name in names if (inner := multimodal.text_name(name))}


def ignored(fields: dict[str, Any], family: ModuleType) -> re.Pattern:
    """Which tensors of a checkpoint need no place."""
    patterns = [family.IGNORED] + [multimodal.IGNORED] * (fields.get("model_type") in multimodal.TEXT_TYPES)
    return re.compile("|".join(each.pattern for each in patterns))


def of(model_type: object, what: str = "target") -> ModuleType:
    """The family of a config.json with this model_type; ``what`` names its folder in errors.

    Raises:
      BadInput: there is none.
    """
    family = next((family for family in FAMILIES if model_type in family.TYPES), None)
    if family is None:
        raise BadInput(f"{what}: model_type {shown(model_type)} is not supported; these are: {', '.join(types())}")
    return family
