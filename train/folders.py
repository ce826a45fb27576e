"""The folders that a run of `train.main` writes to: that they are its own, and no other run's at the same time.

Not here: the configuration that a run has to go on with (`configurations.py`).
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from redrafter_jax import claims, lock, processes
from redrafter_jax.errors import BadInput
from train.configurations import CONFIGURATION

DATASETS, HEAD, LOG = "datasets", "head", "log.jsonl"  # what a run's folder holds beside its configuration
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
        if processes.is_first():
            stack.enter_context(lock.folder(folder, "--output"))
            if checkpoints is None or "://" not in checkpoints:
                what = "--checkpoints" if checkpoints else "--output"
                stack.enter_context(lock.folder(pathlib.Path(checkpoints or folder / "checkpoints"), what))
        try:
            yield
        except BaseException:
            if processes.is_first():
                _remove_empty(folder / DATASETS)
            raise


def check_run(folder: pathlib.Path, checkpoints: str | None = None) -> None:
    """Raises BadInput where the folders of a run cannot be written or hold what the run would write over: a model, a
    head that is not in its place, a configuration or a log that is not of `train.main`."""
    claims.check_folder(folder, "--output")
    places: list[tuple[str, epath.PathLike]] = [("--output", folder)]
    if checkpoints:
        places.append(("--checkpoints", checkpoints))
        if "://" not in checkpoints:
            claims.check_folder(pathlib.Path(checkpoints), "--checkpoints")
    for what, place in places:
        claims.check_no_model(place, what)
        file = epath.Path(place) / CONFIGURATION
        if file.exists() and not _is_of_a_run(claims.json_object(file)):
            raise BadInput(f"{what}: {file} is not of a run of train.main and is kept; name another folder")
    if (folder / LOG).exists() and not (folder / CONFIGURATION).exists():
        raise BadInput(f"--output: {folder / LOG} is not of a run of train.main and is kept; name another folder")
    claims.check_head(folder / HEAD, "--output")


def _is_of_a_run(found: dict | None) -> bool:
    return found is not None and found.keys() >= OF_EVERY_RUN


def _remove_empty(folder: pathlib.Path) -> None:
    """Removes the folders in a folder, and itself, that hold no file."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(path)
