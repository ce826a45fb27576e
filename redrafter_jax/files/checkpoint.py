"""Orbax checkpoints of a training run: written in the background, complete or absent, restored onto any mesh.

Every process writes and reads the shards of its own devices, in one folder that all processes see; it may be in a
bucket (gs://). A checkpoint can be read by any number of processes and devices.

A checkpoint has named artefacts (``head``: the weights that decoding needs; ``train``: what only training needs). Each
is a flat dictionary from the path of a leaf to its array, so that it can be read without the classes that made it.
Beside them are the sums of their bits, which show damage (`damage.py`).
"""

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput, as_bad_input
from redrafter_jax.files import damage
from redrafter_jax.files.claims import resolve_folder


class Checkpoints:
    """The checkpoints in one run's folder; a context manager. It keeps the newest ``keep`` and the one with the lowest
    score ``best``. One process, or one group of processes, writes to a folder; others may read meanwhile
    (`find_newest_sound`, `restore`). The remains of an interrupted save are removed.
    """

    def __init__(self, folder: pathlib.Path | str, keep: int = 2, best: str | None = None):
        policies = ocp.training.preservation_policies
        preserved = [policies.LatestN(keep)]
        if best is not None:

            def negate_score(scores: dict[str, float]) -> float:
                return -scores[best]  # the policy keeps the highest

            preserved.append(policies.BestN(get_metric_fn=negate_score, n=1, keep_checkpoints_without_metrics=False))
        self.folder = resolve_folder(folder)
        logging.getLogger("absl").addFilter(_is_not_from_orbax)
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(preserved),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints in the folder."""
        return [found.step for found in self._checkpointer.checkpoints]

    def save(self, step: int, scores: dict[str, float] | None = None, **artefacts: Any) -> None:
        """Starts to write pytrees of arrays, after the save before this one has ended; they may be donated at once."""
        flat = {name: _flatten(tree) for name, tree in artefacts.items()}
        flat[damage.SUMS] = damage.sum_bits(flat)
        with self._name_folder_in_errors():  # errors of the save before this one arrive here too
            # without force Orbax skips a save while another is under way
            self._checkpointer.save_checkpointables_async(step, flat, force=True, metrics=scores)

    def restore(self, step: int | None = None, **like: Any) -> dict[str, Any]:
        """See `restore`; by default the newest checkpoint."""
        return restore(self.folder, self.latest_step if step is None else step, **like)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Waits for the save under way, also where the run was interrupted."""
        try:
            with self._name_folder_in_errors():
                self._checkpointer.close()
        except BadInput:
            if kind is None or not issubclass(kind, BadInput):  # that error says already what is wrong
                raise
        finally:
            logging.getLogger("absl").removeFilter(_is_not_from_orbax)

    @contextlib.contextmanager
    def _name_folder_in_errors(self) -> Iterator[None]:
        """Turns an error of the machine, which Orbax's threads raise here, into one sentence."""
        try:
            yield
        except Exception as error:
            found = as_bad_input(error)
            if found is None:
                raise
            raise BadInput(f"a checkpoint in {self.folder} cannot be written: {found}") from error


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """A log filter: Orbax logs a traceback for every thread that an error passes through, and raises the error too."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def restore(folder: pathlib.Path | str, step: int, **like: Any) -> dict[str, Any]:
    """Reads artefacts of a checkpoint; all processes call it together.

    Args:
      like: for each artefact, by its name, a tree of its structure, dtypes and shardings: arrays, or the result of
        ``jax.eval_shape``.

    Raises:
      BadInput: the checkpoint cannot be read.
    """
    folder = resolve_folder(folder)
    abstract = {name: jax.tree.map(_abstract, _flatten(tree)) for name, tree in like.items()}
    try:
        loaded = ocp.load_checkpointables(folder / str(step), abstract)
    except Exception as error:  # Orbax, TensorStore and the file system have their own
        reason = " ".join(str(error).split())[: damage.MAX_REASON_CHARACTERS]
        raise as_bad_input(error) or BadInput(_say_unreadable(folder, step, reason)) from error
    return {name: _unflatten(tree, loaded[name]) for name, tree in like.items()}


def set_aside_damaged(folder: pathlib.Path | str, **like: Any) -> list[str]:
    """Renames unreadable checkpoints to ``STEP.damaged``, from the newest down to the first readable one. The
    `Checkpoints` that are opened next resume from that one, and may save the renamed steps again. The first process
    reads and renames; all processes call it together.

    Args:
      like: as for `restore`.

    Returns:
      A sentence about each renamed checkpoint, and one about the step to resume from.

    Raises:
      BadInput: no checkpoint can be read (then nothing is renamed), or an array has another shape.
    """
    folder = resolve_folder(folder)
    verdict = _set_aside(folder, like) if processes.is_first() else {}
    processes.wait(f"a checkpoint in {folder} that can be read")  # the first process may take minutes
    verdict = json.loads(processes.broadcast_text(json.dumps(verdict)))
    if "error" in verdict:
        raise BadInput(verdict["error"])
    return verdict["renamed"]


def _set_aside(folder: epath.Path, like: dict[str, Any]) -> dict[str, Any]:
    """`set_aside_damaged` in the first process: its sentences, or the sentence that all processes should raise."""
    try:
        sound, damaged = find_newest_sound(folder, **like)
        if damaged and sound is None:
            return {"error": say_none_readable(folder, damaged)}
        for step in damage.list_steps(folder):  # Orbax reads the scores of all, also of those that are not restored
            damaged |= {} if step in damaged or step == sound else _check_scores(folder, step)
        renamed = [f"{_say_unreadable(folder, *found)}; it is {_rename(folder, found[0])} now" for found in damaged.items()]
    except Exception as error:
        found = as_bad_input(error)
        if found is None:
            raise
        return {"error": str(found)}
    return {"renamed": [*renamed, *[f"going on from step {sound}"] * bool(damaged)]}


def find_newest_sound(folder: pathlib.Path | str, among: list[int] | None = None, **like: Any) -> tuple[int | None, dict[int, str]]:
    """The newest step with a readable checkpoint (None: there is none), and what is wrong with each step that was read
    before it. One process may call it alone.

    Args:
      among: steps to read, in this order; by default all, the newest first.
      like: as for `restore`.

    Raises:
      damage.ShapeMismatch: an array has another shape than ``like`` says.
    """
    folder, damaged = resolve_folder(folder), {}
    flat = {name: _flatten(tree) for name, tree in like.items()}
    for step in reversed(damage.list_steps(folder)) if among is None else among:
        reason = damage.find_damage(folder / str(step), flat)
        if reason is None:
            return step, damaged
        damaged[step] = reason
    return None, damaged


def _say_unreadable(folder: epath.Path, step: int, reason: str) -> str:
    return f"checkpoint {step} in {folder} cannot be read ({reason})"


def say_none_readable(folder: pathlib.Path | str, damaged: dict[int, str]) -> str:
    """The sentence for a folder in which no checkpoint can be read."""
    reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
    return f"no checkpoint in {folder} can be read ({reasons}); put back a copy, or begin anew in another folder"


def _check_scores(folder: epath.Path, step: int) -> dict[int, str]:
    try:
        damage.read_scores(folder / str(step))
    except ValueError as error:
        return {step: " ".join(str(error).split())[: damage.MAX_REASON_CHARACTERS]}
    return {}


def _rename(folder: epath.Path, step: int) -> str:
    name, count = f"{step}.damaged", 1
    while (folder / name).exists():
        count += 1
        name = f"{step}.damaged-{count}"
    (folder / str(step)).rename(folder / name)
    return name


def _flatten(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _unflatten(like: Any, flat: dict[str, Any]) -> Any:
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in names])


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding
    if not isinstance(sharding, jax.sharding.NamedSharding) or isinstance(sharding.mesh, jax.sharding.AbstractMesh):
        sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.typeof(leaf).sharding.spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
