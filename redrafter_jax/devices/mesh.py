"""The device mesh: two explicit axes, from one device to a pod.

``data`` splits the rows of a batch, ``model`` splits heads, feed-forward width and vocabulary. Every module of the
package writes literal ``PartitionSpec``s over these two names, so the code that runs on one CPU device is the code
that runs on a slice. Not here: which mesh suits a model (`placement.py`), starting several processes (`processes.py`).
"""

import contextlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import PartitionSpec as P

AXES = ("data", "model")


def make_mesh(data: int = 1, model: int = 1) -> jax.sharding.Mesh:
    """A ``(data, model)`` mesh over the first ``data * model`` devices, with explicit axes: of this process's devices where they
    are enough, else of all processes'.

    Raises:
      ValueError: there are fewer devices than ``data * model``.
    """
    own = jax.local_devices()
    devices = own if data * model <= len(own) else jax.devices()
    if data * model > len(devices):
        raise ValueError(f"a mesh of {data} x {model} needs {data * model} devices; {len(devices)} are visible")
    return of_devices(devices[: data * model], data, model)


@contextlib.contextmanager
def current_or_single() -> Iterator[None]:
    """Inside, a mesh of AXES is set: the one that is set in this thread already or, where there is none or one of other axes, a
    mesh of one device."""
    if jax.sharding.get_mesh().axis_names == AXES:
        yield
        return
    with jax.set_mesh(make_mesh()):
        yield


def of_devices(devices: Sequence[jax.Device], data: int, model: int) -> jax.sharding.Mesh:
    """The mesh of exactly these devices; on a TPU such that neighbours of the mesh are neighbours in the slice, where the
    devices fill a box."""
    try:
        placed = mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError):  # whatever of its checks finds that they do not
        placed = np.asarray(devices).reshape(data, model)
    return jax.sharding.Mesh(placed, AXES, axis_types=(jax.sharding.AxisType.Explicit,) * 2)


@contextlib.contextmanager
def on_paper(data: int, model: int) -> Iterator[None]:
    """A mesh of no devices, as a context: shapes and shardings follow from it, but nothing can be compiled for it."""
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    none = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))  # a mesh gives way to none, but to no other size
    with none, jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((data, model), AXES, axis_types=explicit)):
        yield


def is_spread(module) -> bool:
    """Whether a module's matrices are split over ``data`` too."""
    return any("data" in jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(module))


def spread(module, over_data: bool = True):
    """The module with its matrices split over ``data`` too, along the axis that is whole, where that divides it. They are
    gathered as they are used (`layers.gather_weight`), so a device holds one layer's at a time."""
    if not over_data:
        return module
    shards = jax.sharding.get_abstract_mesh().shape["data"]

    def split(leaf: jax.Array) -> jax.Array:
        axes = list(jax.typeof(leaf).sharding.spec)
        if leaf.ndim < 2 or None not in axes or leaf.shape[axes.index(None)] % shards:
            return leaf
        axes[axes.index(None)] = "data"
        return jax.sharding.reshard(leaf, P(*axes))

    return jax.tree.map(split, module)
