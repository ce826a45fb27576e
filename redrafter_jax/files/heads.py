"""A folder that drafts, whichever way its config.json says: a recurrent head, Medusa's heads, or a small model. Its shapes, its
weights, and how it is written again."""

import pathlib

from redrafter_jax import families
from redrafter_jax.devices import mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config as configs
from redrafter_jax.files import medusa, weights
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.medusa import MedusaConfig, MedusaHeads
from redrafter_jax.model.target import Target, TargetConfig

Head = Drafter | MedusaHeads
HeadConfig = DrafterConfig | MedusaConfig
Drafts = Head | Target
DraftsConfig = HeadConfig | TargetConfig


def read_config(folder: pathlib.Path, what: str = "drafter") -> DraftsConfig:
    """The shapes of what drafts in a folder.

    Raises:
      BadInput: the folder has nothing that drafts, or is broken.
    """
    fields = configs.read_json(folder, what)
    if medusa.is_medusa(fields):
        return medusa.read_config(folder, what)
    return configs.target_config(fields, what) if is_model(fields) else configs.drafter_config(fields, what)


def read_head_config(folder: pathlib.Path, what: str = "drafter") -> HeadConfig:
    """The shapes of a folder's head, for what needs one.

    Raises:
      BadInput: as `read_config`, or a small model drafts there.
    """
    config = read_config(folder, what)
    if isinstance(config, TargetConfig):
        raise BadInput(f"{what}: {folder} is a model, not a head that reads the target's hidden states")
    return config


def is_model(fields: dict) -> bool:
    """Whether a config.json is of a model that could be a target."""
    return fields.get("model_type") in families.types()


@mesh.current_or_single()
def load_head(folder: pathlib.Path | str, dtype: str = "float32", what: str = "drafter") -> Drafts:
    """What drafts in a folder, on the current mesh.

    Raises:
      BadInput: as for `weights.load_drafter`, `medusa.load_medusa` and `weights.load_target`.
    """
    folder = pathlib.Path(folder)
    fields = configs.read_json(folder, what)
    if medusa.is_medusa(fields):
        return medusa.load_medusa(folder, dtype, what)
    return (weights.load_target if is_model(fields) else weights.load_drafter)(folder, dtype, what)


def save_head(head: Head, folder: pathlib.Path | str, target: Target | None = None, trained_for: dict | None = None) -> None:
    """Writes a head as `weights.save_drafter` does, or Medusa's as v0.1.

    Args:
      target: the recurrent head is written so that Apple's code can read it.
      trained_for: the target that it was trained for (`provenance.describe`).
    """
    if isinstance(head, MedusaHeads):
        medusa.save_medusa(head, folder, trained_for=trained_for)
    else:
        weights.save_drafter(head, folder, target, trained_for)
