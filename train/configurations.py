"""The configuration that a run is kept with, and the refusal to go on with it under another.

Not here: what the options are (`recipe.py`, `main.py`), the checkpoints themselves (`redrafter_jax.checkpoint`).
"""

import dataclasses
import importlib.util
import json
import pathlib
import typing

from etils import epath

from redrafter_jax import claims
from redrafter_jax.errors import BadInput
from train.recipe import OF_NO_CONSEQUENCE, Recipe

CONFIGURATION = "config.json"
DATA = ("conversations", "text", "token_ids")  # options of train.main that name the data
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
      BadInput: it is not a JSON object as train.main writes it.
    """
    file = epath.Path(checkpoints) / CONFIGURATION
    if not file.exists():
        return None
    found = claims.json_object(file)
    if found is None or not _names_files(found.get(NOT_COMPARED, {})):
        raise BadInput(f"{file} should be the JSON object that train.main wrote")
    return found


def _names_files(options: object) -> bool:
    """Whether the options of a saved configuration name their data by lists of texts."""
    if not isinstance(options, dict):
        return False
    names = [options.get(kind, []) for kind in DATA]
    return all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in names)


def _differences(before: dict, now: dict) -> list[str]:
    names = sorted({*before, *now} - {*OF_NO_CONSEQUENCE, NOT_COMPARED})
    return [f"{name} was {before.get(name)} and is {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _defaults(configuration: dict) -> dict:
    """What a run that was begun before an option existed has for it."""
    values = {**dataclasses.asdict(Recipe()), "dtype": "float32"}
    return {name: value for name, value in values.items() if name in configuration}


def check_place(place: str, option: str) -> None:
    """Raises BadInput unless files can be written into the place, as far as can be told; it may be in a bucket."""
    if "://" not in place:
        claims.check_folder(pathlib.Path(place), option)
    elif not place.startswith("gs://"):
        raise BadInput(f"{option}: {place} should be a folder or gs://BUCKET/FOLDER")
    elif importlib.util.find_spec("gcsfs") is None:
        raise BadInput(f"{option}: {place} needs a package that is not installed (pip install gcsfs)")


def recipe_of(configuration: dict, file: epath.PathLike) -> Recipe:
    """The recipe in a run's configuration.

    Raises:
      BadInput: it holds a value that train.main could not have written.
    """
    saved = {field.name: configuration[field.name] for field in dataclasses.fields(Recipe) if field.name in configuration}
    kinds = typing.get_type_hints(Recipe)
    for name, value in saved.items():
        choices = typing.get_args(kinds[name])
        if value not in choices if choices else not _is_a(value, kinds[name]):
            raise BadInput(f"{file}: {name} should be {_named(kinds[name])}, not {json.dumps(value)[:100]}")
    recipe = Recipe(**saved)
    try:
        recipe.check()
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    return recipe


def _is_a(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _named(kind: type) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kind) or " or ".join(map(str, typing.get_args(kind)))
