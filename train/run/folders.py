"""Checks that the folders of a `train.main` run are its own, and locks them against other runs.

Not here: the configuration under which a run resumes (`configuration.py`).
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, json_files, lock
from train.run import card, configuration
from train.run.configuration import CHECKPOINTS_FOLDER, CONFIGURATION_FILE, HEAD_FOLDER, LOG_FILE

DATASETS_FOLDER = "datasets"
REQUIRED_OPTIONS = {"steps", "batch", "rate"}  # in the configuration of a run of any version


@contextlib.contextmanager
def claim(folder: pathlib.Path, checkpoints: str | None = None) -> Iterator[None]:
    """Locks the run's folder, and its checkpoints where they are on a disk, while this context is open; the first
    process does it. A run that ends in an error leaves no empty folders of datasets.

    Raises:
      BadInput: a folder cannot be written, is in use, or has files that are not of a `train.main` run.
    """
    check_run(folder, checkpoints)
    with contextlib.ExitStack() as stack:
        processes.run_in_first(lambda: _lock(stack, folder, checkpoints))
        try:
            yield
        except BaseException:
            if processes.is_first():
                _remove_empty(folder / DATASETS_FOLDER)
            raise


def _lock(stack: contextlib.ExitStack, folder: pathlib.Path, checkpoints: str | None) -> None:
    stack.enter_context(lock.folder(folder, "--output"))
    if checkpoints is None or "://" not in checkpoints:
        what = "--checkpoints" if checkpoints else "--output"
        stack.enter_context(lock.folder(pathlib.Path(checkpoints or folder / CHECKPOINTS_FOLDER), what))


def check_run(folder: pathlib.Path, checkpoints: str | None = None) -> None:
    """Raises BadInput where the folders of a run cannot be written, where the run would overwrite what is there (a
    model, a misplaced head, a configuration, log or head that is not of `train.main`, another run's checkpoints), or
    where ``checkpoints`` is the folder of a run."""
    claims.check_folder(folder, "--output")
    places: list[tuple[str, epath.PathLike]] = [("--output", folder)]
    if checkpoints:
        places.append(("--checkpoints", checkpoints))
        if "://" not in checkpoints:
            claims.check_folder(pathlib.Path(checkpoints), "--checkpoints")
    for what, place in places:
        claims.check_no_model(place, what)
        file = epath.Path(place) / CONFIGURATION_FILE
        if file.exists() and not _is_run_configuration(json_files.find_object(file)):
            raise BadInput(f"{what}: {file} is not of a run of train.main and is kept; name another folder")
    if checkpoints:
        _check_no_run(folder, checkpoints)
    if (folder / CONFIGURATION_FILE).exists() and configuration.has_checkpoints(epath.Path(folder)):
        raise BadInput(f"--output: {folder} is where a run has its checkpoints; name another folder")
    claims.check_head(folder / HEAD_FOLDER, "--output")
    for file in (folder / LOG_FILE, folder / HEAD_FOLDER / card.CARD_FILE):
        if file.exists() and not (folder / CONFIGURATION_FILE).exists():
            raise BadInput(f"--output: {file} is not of a run of train.main and is kept; name another folder")


def _check_no_run(folder: pathlib.Path, checkpoints: str) -> None:
    """Raises BadInput where a folder for checkpoints is a run's folder, since its configuration would be
    overwritten."""
    place = claims.resolve_folder(checkpoints)
    if place == claims.resolve_folder(folder):
        raise BadInput(f"--checkpoints: {checkpoints} is --output itself; leave it out, or name a folder for checkpoints alone")
    holds = [name for name in (LOG_FILE, HEAD_FOLDER, CHECKPOINTS_FOLDER) if (place / name).exists()]
    output = configuration.read_option(json_files.find_object(place / CONFIGURATION_FILE) or {}, "output")
    if output is not None and claims.resolve_folder(output) == place:
        holds.append(CONFIGURATION_FILE)
    if holds:
        raise BadInput(
            f"--checkpoints: {checkpoints} is the --output of a run ({holds[0]}); name a folder for the checkpoints of this run"
        )


def _is_run_configuration(found: dict | None) -> bool:
    return found is not None and found.keys() >= REQUIRED_OPTIONS


def _remove_empty(folder: pathlib.Path) -> None:
    """Removes a folder and the folders in it, where they contain no file."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(path)
