"""A folder that drafts, whichever way its config.json says: its shapes, its weights, and how it is written again."""

import pathlib

from redrafter_jax.devices import mesh
from redrafter_jax.files import config as configs
from redrafter_jax.files import medusa, weights
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.medusa import MedusaConfig, MedusaHeads
from redrafter_jax.model.target import Target

Head = Drafter | MedusaHeads
HeadConfig = DrafterConfig | MedusaConfig


def read_config(folder: pathlib.Path, what: str = "drafter") -> HeadConfig:
    """The shapes of a folder's head.

    Raises:
      BadInput: the folder has no head, or is broken.
    """
    fields = configs.read_json(folder, what)
    return medusa.read_config(folder, what) if medusa.is_medusa(fields) else configs.drafter_config(fields, what)


@mesh.current_or_single()
def load_head(folder: pathlib.Path | str, dtype: str = "float32", what: str = "drafter") -> Head:
    """A folder's head on the current mesh.

    Raises:
      BadInput: as for `weights.load_drafter` and `medusa.load_medusa`.
    """
    folder = pathlib.Path(folder)
    load = medusa.load_medusa if medusa.is_medusa(configs.read_json(folder, what)) else weights.load_drafter
    return load(folder, dtype, what)


def save_head(head: Head, folder: pathlib.Path | str, target: Target | None = None) -> None:
    """Writes a head as `weights.save_drafter` does, or Medusa's as v0.1.

    Args:
      target: the recurrent head is written so that Apple's code can read it.
    """
    if isinstance(head, MedusaHeads):
        medusa.save_medusa(head, folder)
    else:
        weights.save_drafter(head, folder, target)
