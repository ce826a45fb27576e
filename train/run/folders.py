"""The folders that a run of `train.main` writes to: that they are its own, and no other run's at the same time.

Not here: the configuration that a run has to go on with (`configurations.py`).
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from redrafter_jax.devices import processes, together
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, json_files, lock
from train.run import card, configuration
from train.run.configuration import CHECKPOINTS, CONFIGURATION, HEAD, LOG

DATASETS = "datasets"
OF_EVERY_RUN = {"steps", "batch", "rate"}  # options that the configuration of a run of any version holds


@contextlib.contextmanager
def claimed(folder: pathlib.Path, checkpoints: str | None = None) -> Iterator[None]:
    """While this is open no other run writes to the run's folder, nor to its checkpoints where they are on a disk. Of
    several processes the first takes care of that. A run that ends in an error leaves no empty folders of datasets.

    Raises:
      BadInput: a folder cannot be written, is in use, or holds what is not of a run of `train.main`.
    """
    check_run(folder, checkpoints)
    with contextlib.ExitStack() as stack:
        together.in_first(lambda: _lock(stack, folder, checkpoints))
        try:
            yield
        except BaseException:
            if processes.is_first():
                _remove_empty(folder / DATASETS)
            raise


def _lock(stack: contextlib.ExitStack, folder: pathlib.Path, checkpoints: str | None) -> None:
    stack.enter_context(lock.folder(folder, "--output"))
    if checkpoints is None or "://" not in checkpoints:
        what = "--checkpoints" if checkpoints else "--output"
        stack.enter_context(lock.folder(pathlib.Path(checkpoints or folder / CHECKPOINTS), what))


def check_run(folder: pathlib.Path, checkpoints: str | None = None) -> None:
    """Raises BadInput where the folders of a run cannot be written or hold what the run would write over: a model, a
    head that is not in its place, a configuration, a log or a head that is not of `train.main`, another run's checkpoints; or
    where ``checkpoints`` is the folder of a run."""
    claims.check_folder(folder, "--output")
    places: list[tuple[str, epath.PathLike]] = [("--output", folder)]
    if checkpoints:
        places.append(("--checkpoints", checkpoints))
        if "://" not in checkpoints:
            claims.check_folder(pathlib.Path(checkpoints), "--checkpoints")
    for what, place in places:
        claims.check_no_model(place, what)
        file = epath.Path(place) / CONFIGURATION
        if file.exists() and not _is_of_a_run(json_files.find_object(file)):
            raise BadInput(f"{what}: {file} is not of a run of train.main and is kept; name another folder")
    if checkpoints:
        _check_no_run(folder, checkpoints)
    if (folder / CONFIGURATION).exists() and configuration.has_checkpoints(epath.Path(folder)):
        raise BadInput(f"--output: {folder} is where a run has its checkpoints; name another folder")
    claims.check_head(folder / HEAD, "--output")
    for file in (folder / LOG, folder / HEAD / card.CARD):
        if file.exists() and not (folder / CONFIGURATION).exists():
            raise BadInput(f"--output: {file} is not of a run of train.main and is kept; name another folder")


def _check_no_run(folder: pathlib.Path, checkpoints: str) -> None:
    """Raises BadInput where a folder for checkpoints is a run's own: its configuration would be written over."""
    place = claims.located(checkpoints)
    if place == claims.located(folder):
        raise BadInput(f"--checkpoints: {checkpoints} is --output itself; leave it out, or name a folder for checkpoints alone")
    holds = [name for name in (LOG, HEAD, CHECKPOINTS) if (place / name).exists()]
    output = configuration.option_of(json_files.find_object(place / CONFIGURATION) or {}, "output")
    if output is not None and claims.located(output) == place:
        holds.append(CONFIGURATION)
    if holds:
        raise BadInput(
            f"--checkpoints: {checkpoints} is the --output of a run ({holds[0]}); name a folder for the checkpoints of this run"
        )


def _is_of_a_run(found: dict | None) -> bool:
    return found is not None and found.keys() >= OF_EVERY_RUN


def _remove_empty(folder: pathlib.Path) -> None:
    """Removes the folders in a folder, and itself, that hold no file."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(path)
