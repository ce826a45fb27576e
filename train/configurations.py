"""The folders of a run: whether they are its own, and the configuration that it is kept with and has to go on with.

Not here: what the options are (`recipe.py`, `main.py`), the checkpoints themselves (`redrafter_jax.checkpoint`).
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from redrafter_jax import claims, lock, processes
from redrafter_jax.errors import BadInput
from train.recipe import OF_NO_CONSEQUENCE, Recipe

CONFIGURATION = "config.json"
DATASETS, HEAD, LOG = "datasets", "head", "log.jsonl"  # what else a run's folder holds
OF_EVERY_RUN = {"steps", "batch", "rate"}  # options that the configuration of a run of any version holds
NOT_COMPARED = "not_compared"  # what a saved configuration holds beside that which a resumed run has to have again


@contextlib.contextmanager
def claimed(folder: pathlib.Path, checkpoints: str | None = None) -> Iterator[None]:
    """While this is open no other run writes to the run's folder, nor to its checkpoints where they are on a disk; of several
    processes the first takes care of that. A run that ends in an error leaves no empty folders of datasets behind.

    Raises:
      BadInput: a folder cannot be written, is another run's at the moment, or holds what is not of a run of `train.main`.
    """
    check_run(folder, checkpoints)
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            stack.enter_context(lock.folder(folder, "--output"))
            if checkpoints is None or "://" not in checkpoints:
                saved, what = pathlib.Path(checkpoints or folder / "checkpoints"), "--checkpoints" if checkpoints else "--output"
                stack.enter_context(lock.folder(saved, what))
        try:
            yield
        except BaseException:
            if processes.is_first():
                _remove_empty(folder / DATASETS)
            raise


def check_run(folder: pathlib.Path, checkpoints: str | None = None) -> None:
    """Raises BadInput where the folders of a run cannot be written or hold anything that the run would write over: a model, a
    head that is not in its place, a configuration or a log that is not of `train.main`."""
    claims.check_folder(folder, "--output")
    places: list[tuple[str, epath.PathLike]] = [("--output", folder)]
    places += [("--checkpoints", checkpoints)] if checkpoints else []
    for what, place in places:
        claims.check_no_model(place, what)
        file = epath.Path(place) / CONFIGURATION
        if file.exists() and not _is_of_a_run(claims.json_object(file)):
            raise BadInput(f"{what}: {file} is not of a run of train.main, so it is not written over; name another folder")
    if (folder / LOG).exists() and not (folder / CONFIGURATION).exists():
        raise BadInput(
            f"--output: {folder / LOG} is not of a run of train.main, for {CONFIGURATION} is not there; name another folder"
        )
    claims.check_head(folder / HEAD, "--output")


def _is_of_a_run(found: dict | None) -> bool:
    return found is not None and found.keys() >= OF_EVERY_RUN


def _remove_empty(folder: pathlib.Path) -> None:
    """Removes the folders in a folder, and itself, that hold no file."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(path)


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
