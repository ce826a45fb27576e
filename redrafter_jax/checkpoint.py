"""Orbax checkpoints of a training run: written in the background, complete or absent, restored onto any mesh.

Every process of a run writes and reads the shards of its own devices, in one folder that all of them see, which may be in a
bucket (gs://); how many processes and devices wrote a checkpoint does not matter to those that read it.

A checkpoint holds named artefacts (``head``: the weights that decoding needs; ``train``: what only training needs), each
a flat dictionary from the path of a leaf to its array, so that a file can be read without the classes that made it.
"""

import pathlib
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp


class Run:
    """The checkpoints of one run's folder, the newest ``keep`` of them and, by the score named ``best``, the one where it
    is lowest; a context manager. One process (or one group of them) writes to a folder: what an interrupted save left is removed.
    Others may read meanwhile (``writes`` False)."""

    def __init__(self, folder: pathlib.Path | str, keep: int = 2, best: str | None = None, writes: bool = True):
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep)]
        if best is not None:
            score = lambda scores: -scores[best]  # noqa: E731  (the policy keeps the highest)
            kept.append(policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
        self.folder = epath.Path(folder).resolve()
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=writes,  # a reader's would take away what the writer is writing
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
        self._checkpointer.save_checkpointables_async(step, flat, force=True, metrics=scores)  # else skipped while busy

    def restore(self, step: int | None = None, **like: Any) -> dict[str, Any]:
        """The artefacts of these names, of the newest checkpoint or that of ``step``, each with the structure, dtypes and
        shardings of the tree given (arrays or the result of ``jax.eval_shape``)."""
        abstract = {name: jax.tree.map(_abstract, _flatten(tree)) for name, tree in like.items()}
        loaded = self._checkpointer.load_checkpointables(self.latest_step if step is None else step, abstract)
        return {name: _unflatten(tree, loaded[name]) for name, tree in like.items()}

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for what is being written, also where the run was interrupted."""
        self._checkpointer.close()


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
