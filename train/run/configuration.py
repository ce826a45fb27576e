"""A run's saved configuration: a run resumes under the same configuration only.

Not here: what the options are (`recipe.py`, `options.py`), the checkpoints themselves (`redrafter_jax.files.checkpoint`).
"""

import dataclasses
import importlib.util
import json
import pathlib
import typing

from etils import epath

from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, fingerprint, json_files
from redrafter_jax.files.atomic import replacing
from train.run.recipe import DOES_NOT_CHANGE_WEIGHTS, Recipe

CONFIGURATION_FILE = "config.json"
CHECKPOINTS_FOLDER, HEAD_FOLDER, LOG_FILE = "checkpoints", "head", "log.jsonl"  # in a run's folder
DATA_OPTIONS = ("conversations", "text", "token_ids")  # options of train.main that name the data
TRAINED_FOR = "trained_for"  # under it, beside these options: the target
NOT_COMPARED = "not_compared"  # the key of a saved configuration for options that a resumed run may change


def save(folder: pathlib.Path, configuration: dict, resumes: str, checkpoints: str | None = None) -> None:
    """Writes the run's configuration into its folder and beside its checkpoints. First compares it with the
    configuration of the run that left checkpoints, a log or a head there.

    Raises:
      BadInput: what decides the weights differs, or is unknown; there are checkpoints and ``resumes`` is never; or the
        run in the folder has its checkpoints elsewhere.
    """
    saved = epath.Path(checkpoints or folder / CHECKPOINTS_FOLDER)
    _check_folder(folder, configuration, saved)
    what, other = ("--checkpoints", "--checkpoints and --output folders") if checkpoints else ("--output", "folder")
    place = checkpoints or folder
    if has_checkpoints(saved):
        if resumes == "never":
            raise BadInput(f"{what}: {place} holds a run already; give another {other}, or --resume auto to resume it")
        before = read(saved)
        if before is None:
            raise BadInput(
                f"{what}: {place} holds checkpoints without the {CONFIGURATION_FILE} of their run;"
                f" copy it from that run's --output to {saved}, or give another {other}"
            )
        _compare(before, configuration, f"{what}: {place}", f"give another {other}")
    for parent in (saved, epath.Path(folder)):
        parent.mkdir(parents=True, exist_ok=True)
        with replacing(parent / CONFIGURATION_FILE) as new:
            new.write_text(json.dumps(configuration, indent=1) + "\n")


def _check_folder(folder: pathlib.Path, configuration: dict, saved: epath.Path) -> None:
    """Raises BadInput where the folder has a log, a head or the place of checkpoints of another run, or of this run
    with its checkpoints not in ``saved``, which has none."""
    before = json_files.find_object(folder / CONFIGURATION_FILE)
    if before is None:
        return
    place = claims.resolve_folder(read_option(before, "checkpoints") or folder / CHECKPOINTS_FOLDER)
    is_elsewhere = place != claims.resolve_folder(saved)
    has_left = (folder / LOG_FILE).exists() or (folder / HEAD_FOLDER).exists()
    if not has_left and not (is_elsewhere and ("://" in str(place) or has_checkpoints(place))):
        return
    _compare(before, configuration, f"--output: {folder}", "give another folder")
    if is_elsewhere and not has_checkpoints(saved):
        raise BadInput(
            f"--output: {folder} holds a run whose checkpoints are in {place};"
            " name that folder with --checkpoints to resume it, or give another --output"
        )


def read_option(configuration: dict, name: str) -> str | None:
    """An option of a saved configuration that is not compared; None: it was not given, or not saved."""
    options = configuration.get(NOT_COMPARED)
    value = options.get(name) if isinstance(options, dict) else None
    return value if isinstance(value, str) else None


def read_trained_for(configuration: dict) -> dict | None:
    """The target of a saved configuration's run (`provenance.describe`); None: an earlier version did not save it."""
    found = configuration.get(NOT_COMPARED, {}).get(TRAINED_FOR)
    return found if isinstance(found, dict) else None


def _compare(before: dict, now: dict, place: str, instead: str) -> None:
    """Raises BadInput where a run began with another setting of what decides the weights."""
    if "target" in now and not fingerprint.is_current(before.get("target")):
        raise BadInput(
            f"{place} holds a run that was made by an earlier version, which did not record all of the target's bytes, so it"
            f" cannot be resumed; export its head with train.export, or {instead}"
        )
    differences = _differences(_defaults(now) | before, now)
    if differences:
        words = f"{'; '.join(differences)}; give what it began with to resume it, or {instead}"
        raise BadInput(f"{place} holds a run of another configuration: {words}")


def has_checkpoints(saved: epath.Path) -> bool:
    return saved.is_dir() and any(path.name.isdigit() for path in saved.iterdir())


def read(checkpoints: epath.PathLike) -> dict | None:
    """The configuration of a run, from the folder of its checkpoints; None: there is none.

    Raises:
      BadInput: it is not a JSON object as train.main writes it.
    """
    file = epath.Path(checkpoints) / CONFIGURATION_FILE
    if not file.exists():
        return None
    found = json_files.find_object(file)
    if found is None or not _names_files(found.get(NOT_COMPARED, {})):
        raise BadInput(f"{file} should be the JSON object that train.main wrote")
    return found


def _names_files(options: object) -> bool:
    """Whether the options of a saved configuration name their data as lists of texts."""
    if not isinstance(options, dict):
        return False
    names = [options.get(kind, []) for kind in DATA_OPTIONS]
    return all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in names)


def _differences(before: dict, now: dict) -> list[str]:
    names = sorted({*before, *now} - {*DOES_NOT_CHANGE_WEIGHTS, NOT_COMPARED})
    return [f"{name} was {before.get(name)} and is {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _defaults(configuration: dict) -> dict:
    """The values of options for a run that began before they existed."""
    values = {**dataclasses.asdict(Recipe()), "dtype": "float32"}
    return {name: value for name, value in values.items() if name in configuration}


def check_place(place: str, option: str) -> None:
    """Raises BadInput where files cannot be written into a place, which may be in a bucket; a bucket's access is not
    tried."""
    if "://" not in place:
        claims.check_folder(pathlib.Path(place), option)
    elif not place.startswith("gs://"):
        raise BadInput(f"{option}: {place} should be a folder or gs://BUCKET/FOLDER")
    elif importlib.util.find_spec("gcsfs") is None:
        raise BadInput(f"{option}: {place} needs a package that is not installed (pip install gcsfs)")


def read_recipe(configuration: dict, file: epath.PathLike) -> Recipe:
    """The recipe in a run's configuration.

    Raises:
      BadInput: it has a value that train.main does not write.
    """
    saved = {field.name: configuration[field.name] for field in dataclasses.fields(Recipe) if field.name in configuration}
    kinds = typing.get_type_hints(Recipe)
    for name, value in saved.items():
        choices = typing.get_args(kinds[name])
        if value not in choices if choices else not _is_a(value, kinds[name]):
            raise BadInput(f"{file}: {name} should be {_describe_kind(kinds[name])}, not {json.dumps(value)[:100]}")
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


def _describe_kind(kind: type) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kind) or " or ".join(map(str, typing.get_args(kind)))
