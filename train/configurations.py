"""The configuration that a run is kept with, and the refusal to go on with it under another.

Not here: what the options are (`recipe.py`, `main.py`), the checkpoints themselves (`redrafter_jax.checkpoint`).
"""

import dataclasses
import json
import pathlib

from etils import epath

from redrafter_jax import claims
from redrafter_jax.errors import BadInput
from train.recipe import OF_NO_CONSEQUENCE, Recipe

CONFIGURATION = "config.json"
NOT_COMPARED = "not_compared"  # what a saved configuration holds beside that which a resumed run has to have again


def keep(folder: pathlib.Path, configuration: dict, resumes: str, checkpoints: str | None = None) -> None:
    """Writes the run's configuration into its folder and beside its checkpoints. Where there are checkpoints already, compares
    it with theirs before that.

    Raises:
      BadInput: the checkpoints are of another configuration of what decides the weights, or of none that is known, or should
        not be gone on from.
    """
    saved = epath.Path(checkpoints or folder / "checkpoints")
    what, other = ("--checkpoints", "--checkpoints and --output folders") if checkpoints else ("--output", "folder")
    place = checkpoints or folder
    if _has_checkpoints(saved):
        if resumes == "never":
            raise BadInput(f"{what}: {place} holds a run already; give another {other}, or --resume auto to go on with it")
        before = read(saved)
        if before is None:
            raise BadInput(
                f"{what}: {place} holds checkpoints without the {CONFIGURATION} of their run;"
                f" copy it from that run's --output to {saved}, or give another {other}"
            )
        differences = _differences(_defaults(configuration) | before, configuration)
        if differences:
            raise BadInput(f"{what}: {place} holds a run of another configuration: {'; '.join(differences)}; give another {other}")
    for parent in (saved, epath.Path(folder)):
        parent.mkdir(parents=True, exist_ok=True)
        draft = parent / "config.tmp"
        draft.write_text(json.dumps(configuration, indent=1) + "\n")
        draft.replace(parent / CONFIGURATION)


def _has_checkpoints(saved: epath.Path) -> bool:
    return saved.is_dir() and any(path.name.isdigit() for path in saved.iterdir())


def read(checkpoints: epath.PathLike) -> dict | None:
    """The configuration of the run whose checkpoints these are, which lies beside them; None if there is none.

    Raises:
      BadInput: it is not a JSON object.
    """
    file = epath.Path(checkpoints) / CONFIGURATION
    if not file.exists():
        return None
    found = claims.json_object(file)
    if found is None:
        raise BadInput(f"{file} should be the JSON object that train.main wrote")
    return found


def _differences(before: dict, now: dict) -> list[str]:
    names = sorted({*before, *now} - {*OF_NO_CONSEQUENCE, NOT_COMPARED})
    return [f"{name} was {before.get(name)} and is {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _defaults(configuration: dict) -> dict:
    """What a run that was begun before an option existed has for it."""
    values = {**dataclasses.asdict(Recipe()), "dtype": "float32"}
    return {name: value for name, value in values.items() if name in configuration}
