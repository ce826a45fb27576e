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

from types import ModuleType

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families import llama, phi3, qwen2, qwen3

FAMILIES = (llama, qwen2, qwen3, phi3)


def types() -> list[str]:
    """The model_types of all families."""
    return [name for family in FAMILIES for name in family.TYPES]


def of(model_type: object, what: str = "target") -> ModuleType:
    """The family of a config.json with this model_type; ``what`` names its folder in errors.

    Raises:
      BadInput: there is none.
    """
    if model_type not in types():
        raise BadInput(f"{what}: model_type {shown(model_type)} is not supported; these are: {', '.join(types())}")
    return next(family for family in FAMILIES if model_type in family.TYPES)
