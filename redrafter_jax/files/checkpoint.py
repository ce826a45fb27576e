"""Orbax checkpoints of a training run: written in the background, complete or absent, restored onto any mesh.

Every process of a run writes and reads the shards of its own devices, in one folder that all of them see, which may be in a
bucket (gs://); how many processes and devices wrote a checkpoint does not matter to those that read it.

A checkpoint holds named artefacts (``head``: the weights that decoding needs; ``train``: what only training needs), each
a flat dictionary from the path of a leaf to its array, so that a file can be read without the classes that made it; and
the sums of their bits, by which damage is found (`damage.py`).
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
    """The checkpoints of one run's folder, the newest ``keep`` of them and, by the score named ``best``, the one where it
    is lowest; a context manager. One process (or one group of them) writes to a folder: what an interrupted save left is removed.
    Others may read meanwhile (`find_newest_sound`, `restore`)."""

    def __init__(self, folder: pathlib.Path | str, keep: int = 2, best: str | None = None):
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep)]
        if best is not None:
            score = lambda scores: -scores[best]  # noqa: E731  (the policy keeps the highest)
            kept.append(policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
        self.folder = resolve_folder(folder)
        logging.getLogger("absl").addFilter(_is_not_from_orbax)
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there."""
        return [found.step for found in self._checkpointer.checkpoints]

    def save(self, step: int, scores: dict[str, float] | None = None, **artefacts: Any) -> None:
        """Starts writing pytrees of arrays, once what was being written is; they may be donated at once."""
        flat = {name: _flatten(tree) for name, tree in artefacts.items()}
        flat[damage.SUMS] = damage.sum_bits(flat)
        with self._names_the_folder():  # in errors of the save before this one, too
            # without force a save is skipped while another is under way
            self._checkpointer.save_checkpointables_async(step, flat, force=True, metrics=scores)

    def restore(self, step: int | None = None, **like: Any) -> dict[str, Any]:
        """See `restore`; by default of the newest checkpoint."""
        return restore(self.folder, self.latest_step if step is None else step, **like)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Waits for what is being written, also where the run was interrupted."""
        try:
            with self._names_the_folder():
                self._checkpointer.close()
        except BadInput:
            if kind is None or not issubclass(kind, BadInput):  # else that one has said what is wrong already
                raise
        finally:
            logging.getLogger("absl").removeFilter(_is_not_from_orbax)

    @contextlib.contextmanager
    def _names_the_folder(self) -> Iterator[None]:
        """Errors of writing that are the machine's, which the threads that write hand on here, become one sentence."""
        try:
            yield
        except Exception as error:
            found = as_bad_input(error)
            if found is None:
                raise
            raise BadInput(f"a checkpoint in {self.folder} cannot be written: {found}") from error


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """A filter: Orbax logs what its threads raise, with a traceback for every thread on the way, and raises it too."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def restore(folder: pathlib.Path | str, step: int, **like: Any) -> dict[str, Any]:
    """The artefacts of these names of a checkpoint, each with the structure, dtypes and shardings of the tree given (arrays or
    the result of ``jax.eval_shape``); all processes call together.

    Raises:
      BadInput: it cannot be read.
    """
    folder = resolve_folder(folder)
    abstract = {name: jax.tree.map(_abstract, _flatten(tree)) for name, tree in like.items()}
    try:
        loaded = ocp.load_checkpointables(folder / str(step), abstract)
    except Exception as error:  # of Orbax, TensorStore or the file system
        reason = " ".join(str(error).split())[: damage.MAX_REASON_CHARACTERS]
        raise as_bad_input(error) or BadInput(_say_unreadable(folder, step, reason)) from error
    return {name: _unflatten(tree, loaded[name]) for name, tree in like.items()}


def set_aside_damaged(folder: pathlib.Path | str, **like: Any) -> list[str]:
    """Renames checkpoints that cannot be read to ``STEP.damaged``, from the newest down to the first that can, so that a
    `Checkpoints` opened next goes on from that one and may save those steps again. The first process looks and renames; all call
    together.

    Args:
      like: as for `Run.restore`.

    Returns:
      A sentence about each, and one about the step to go on from.

    Raises:
      BadInput: there are checkpoints and none can be read; then nothing is renamed. Or their arrays have other shapes.
    """
    folder = resolve_folder(folder)
    verdict = _set_aside(folder, like) if processes.is_first() else {}
    processes.wait(f"a checkpoint in {folder} that can be read")  # which may take the first process minutes
    verdict = json.loads(processes.broadcast_text(json.dumps(verdict)))
    if "error" in verdict:
        raise BadInput(verdict["error"])
    return verdict["renamed"]


def _set_aside(folder: epath.Path, like: dict[str, Any]) -> dict[str, Any]:
    """`set_aside_damaged` in the first process: its sentences, or that of an error, which all processes are to raise."""
    try:
        sound, damaged = find_newest_sound(folder, **like)
        if damaged and sound is None:
            return {"error": say_none_readable(folder, damaged)}
        for step in damage.list_steps(folder):  # an older one is not restored, but Orbax reads the scores of all
            damaged |= {} if step in damaged or step == sound else _check_scores(folder, step)
        renamed = [f"{_say_unreadable(folder, *found)}; it is {_rename(folder, found[0])} now" for found in damaged.items()]
    except Exception as error:
        found = as_bad_input(error)
        if found is None:
            raise
        return {"error": str(found)}
    return {"renamed": [*renamed, *[f"going on from step {sound}"] * bool(damaged)]}


def find_newest_sound(folder: pathlib.Path | str, among: list[int] | None = None, **like: Any) -> tuple[int | None, dict[int, str]]:
    """The newest step whose checkpoint can be read, None if there is none; and the steps that were looked at before it,
    with what is wrong with them. One process may call it alone.

    Args:
      among: steps to look at, in this order; by default all, the newest first.
      like: as for `Run.restore`.

    Raises:
      damage.Misfit: an array has another shape than ``like`` says.
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
    """The sentence for checkpoints of which none can be read."""
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
