"""The device mesh: two explicit axes, from one device to a pod; which meshes a model fits, and which one suits it.

``data`` splits the rows of a batch, ``model`` splits heads, feed-forward width and vocabulary. Every module of the
package writes literal ``PartitionSpec``s over these two names, so the code that runs on one CPU device is the code
that runs on a slice. Not here: starting several processes.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import PartitionSpec as P

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.target import TargetConfig

AXES = ("data", "model")
SHARDED = ("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size", "vocab_size")
ROOM = 0.7  # share of a device's memory that weights and cache may take; the rest is for what is computed
WORTH = 1 << 30  # bytes; an estimate: a shard of fewer is read in less time than one more split's collectives take


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
    return over(devices[: data * model], data, model)


@contextlib.contextmanager
def current_or_single() -> Iterator[None]:
    """Inside, a mesh of AXES is set: the one that is set in this thread already or, where there is none or one of other axes, a
    mesh of one device."""
    if jax.sharding.get_mesh().axis_names == AXES:
        yield
        return
    with jax.set_mesh(make_mesh()):
        yield


def over(devices: Sequence[jax.Device], data: int, model: int) -> jax.sharding.Mesh:
    """The mesh of exactly these devices; on a TPU laid such that neighbours of the mesh are neighbours in the slice, where the
    devices fill a box."""
    try:
        laid = mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError):  # whatever of its checks finds that they do not
        laid = np.asarray(devices).reshape(data, model)
    return jax.sharding.Mesh(laid, AXES, axis_types=(jax.sharding.AxisType.Explicit,) * 2)


@dataclasses.dataclass(frozen=True)
class Load:
    """What a mesh has to carry: a target, perhaps a head, and rows.

    ``option``: the name of what decides the rows; ``size``: bytes of weights and what goes with them (`bytes_of_target`,
    `bytes_of_head`), split over ``model``, or over both axes if ``spread``; ``cache``: bytes of keys and values
    (`bytes_of_cache`), split over ``data``, and over ``model`` as far as there are key-value heads.
    """

    target: TargetConfig
    head: DrafterConfig | None = None
    rows: int = 1
    option: str = "--batch-size"
    size: float = 0.0
    spread: bool = False
    cache: float = 0.0

    def held(self, data: int, model: int) -> float:
        """Bytes that a device of such a mesh holds."""
        weights = self.size / (data * model if self.spread else model)
        return weights + self.cache / (data * min(model, self.target.num_key_value_heads))

    def unfit(self, data: int, model: int) -> str | None:
        """What a mesh does not divide, in words; None where it fits."""
        if self.rows % data:
            return f"{self.option} {self.rows} should be a multiple of the {data} data shards"
        for name in SHARDED:
            size = getattr(self.target, name)
            repeats = name == "num_key_value_heads" and model % size == 0
            if size % model and not repeats:
                return f"{model} does not divide the target's {name} {size}"
        if self.head is not None and self.head.exit_size % model:
            return f"{model} does not divide the head's exit_size {self.head.exit_size}"
        if self.head is not None and self.head.draft_vocab % model:
            return f"{model} does not divide the head's draft vocabulary of {self.head.draft_vocab} tokens"
        return None

    def meshes(self, devices: int, whole: bool = False) -> list[tuple[int, int]]:
        """All that fit, those with the most devices first, and among them those with the most rows at a time; ``whole``: those
        that leave out no device. Each has a number of devices that divides them all: five chips of eight are no slice."""
        splits = [(data, model) for data in range(1, devices + 1) for model in range(1, devices // data + 1)]
        splits = [(data, model) for data, model in splits if data * model == devices or not (whole or devices % (data * model))]
        return sorted((mesh for mesh in splits if not self.unfit(*mesh)), key=lambda mesh: (-mesh[0] * mesh[1], -mesh[0]))

    def holding(self, meshes: list[tuple[int, int]], memory: int) -> list[tuple[int, int]]:
        """Those of the meshes whose devices, of ``memory`` bytes each, have room for their part."""
        return [mesh for mesh in meshes if self.held(*mesh) <= ROOM * memory]


def check(load: Load, mesh: tuple[int, int], devices: int, whole: bool = False) -> None:
    """Raises BadInput for a mesh of too many devices, or one that does not divide what it carries; says which would do, if need
    be of those that leave out no device."""
    data, model = mesh
    if min(mesh) < 1:
        raise BadInput(f"--mesh should be two whole numbers from 1 up, not {data} {model}")
    wrong = load.unfit(data, model)
    if data * model > devices:
        wrong = f"it needs {data * model} devices, and {devices} {'is' if devices == 1 else 'are'} visible"
    if wrong:
        raise BadInput(f"--mesh {data} {model}: {wrong}; {named(load.meshes(devices, whole))} would do")


def named(meshes: list[tuple[int, int]], most: int = 6) -> str:
    """The first of these meshes, as options of ``--mesh`` in a sentence."""
    shown = [f"{data} {model}" for data, model in meshes[:most]] or ["fewer devices"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else f"only {shown[0]}"


def choose(
    load: Load, devices: int, memory: int | None, whole: bool = False, prefer: Literal["data", "model"] = "data"
) -> tuple[tuple[int, int], str]:
    """A mesh for these devices of ``memory`` bytes each (None: unknown, as of CPUs), and why.

    Preferring ``data``, as training does: the fewest shards of ``model`` that hold the load leave the most for rows. Devices
    that no row needs then join ``model``, as long as that leaves each of them enough to read; or, with ``whole``, because none is
    to be left out. Preferring ``model``, as decoding does, where every step waits for the weights to be read: as many
    shards of them as leave each device enough to read, and the rest for rows.

    Raises:
      BadInput: no mesh of all devices fits, and it should be ``whole``.
    """
    fitting, need = load.meshes(devices, whole), f"{(load.size + load.cache) / 1e9:.3g} GB to hold"
    if not fitting:
        raise BadInput(
            f"no mesh uses all {devices} devices of the processes: {load.unfit(devices, 1)}, and {load.unfit(1, devices)}"
        )
    if memory is None and whole:
        return min(fitting, key=lambda mesh: mesh[1]), f"the processes work on all their {devices} devices together"
    if memory is None:
        return (1, 1), f"the {devices} devices share one host's cores and memory" if devices > 1 else "there is one device"
    holding, each = load.holding(fitting, memory), f"{memory / 1e9:.3g} GB"
    if not holding:
        mesh = min(fitting, key=lambda mesh: load.held(*mesh))
        return mesh, f"{need} are {load.held(*mesh) / 1e9:.3g} GB for each device, too much for {each}; no split leaves less"
    fewest = min(model for _, model in holding)
    if prefer == "model":
        data, model = max((mesh for mesh in holding if mesh[1] == fewest or load.held(*mesh) >= WORTH), key=lambda m: (m[1], m[0]))
        reason = f"{need}: each step reads it, and with the model {f'split into {model}' if model > 1 else 'whole'} a device reads"
        reason += f" {load.held(data, model) / 1e9:.3g} GB of its {each}"
        return (data, model), reason + (f"; {load.option} {load.rows} splits into {data}" if data > 1 else "")
    rows = max(data for data, model in holding if model == fewest)
    models = [model for data, model in holding if data == rows]
    mesh = rows, max(model for model in models if model == fewest or load.held(rows, model) >= WORTH)
    parts = rows * fewest if load.spread else fewest
    split = f"split into {parts}" if parts > 1 else "whole"
    reason = f"{need}: the model {split} takes {load.held(rows, fewest) / 1e9:.3g} GB of each device's {each}"
    reason += f", and {load.option} {load.rows} splits into {rows}"
    return mesh, reason + (f"; model takes more of the {devices} devices, to be faster" if mesh[1] > fewest else "")


def settle(load: Load, mesh: tuple[int, int] | None, together: bool) -> tuple[tuple[int, int], str | None]:
    """The mesh that was asked for, checked; or one for the devices that are there, and a line that says why, if there is more
    than one device.

    Args:
      together: all processes work on one mesh, as in training; otherwise each may work on one of its own devices, and does
        unless they are too few to hold the load.

    Raises:
      BadInput: see `check` and `choose`; or the mesh leaves some of the processes out, or this host has not joined the others.
    """
    processes.check_joined("--distributed")
    own, every, group = jax.local_devices(), len(jax.devices()), jax.process_count() > 1
    if mesh is not None:
        whole = group and (together or mesh[0] * mesh[1] > len(own))
        if whole and mesh[0] * mesh[1] != every:
            wrong = f"--mesh {mesh[0]} {mesh[1]} should use all {every} devices of the {jax.process_count()} processes"
            wrong += "" if together else f", or at most the {len(own)} of one"
            raise BadInput(f"{wrong}; {named(load.meshes(every, whole))} would do")
        check(load, mesh, every if whole else len(own), whole)
        return mesh, None
    memory = (own[0].memory_stats() or {}).get("bytes_limit")
    whole = group and (together or (memory is not None and not load.holding(load.meshes(len(own)), memory)))
    chosen, reason = choose(load, every if whole else len(own), memory, whole, "data" if together else "model")
    return chosen, f"mesh {chosen[0]} {chosen[1]}: {reason}" if every > 1 else None


def bytes_of_target(config: TargetConfig, itemsize: int) -> int:
    """Of all matrices; the norms are nothing beside them."""
    D, C = config.hidden_size, config.head_dim
    attention = 2 * D * C * (config.num_attention_heads + config.num_key_value_heads)
    return itemsize * (2 * D * config.vocab_size + config.num_hidden_layers * (attention + 3 * D * config.intermediate_size))


def bytes_of_head(config: DrafterConfig, itemsize: int) -> int:
    """Of a head's matrices, likewise."""
    D, E = config.hidden_size, config.exit_size
    dense = 2 * D * D * config.rnn + 2 * D * E * config.projects + config.num_blocks * E * E
    return itemsize * (dense + (0 if config.tied else E * (config.draft_vocab or config.vocab_size)))


def bytes_of_cache(config: TargetConfig, rows: int, slots: int, itemsize: int) -> int:
    return 2 * config.num_hidden_layers * rows * slots * config.num_key_value_heads * config.head_dim * itemsize


def fit(config: TargetConfig, model: int) -> TargetConfig:
    """The config that ``model`` shards compute with: where there are fewer key-value heads than shards, each is repeated, so
    that every shard has the one that its query heads read. The repeats cost cache and weights ``model / K`` times as large
    in all, and no more per device than one head's."""
    K = config.num_key_value_heads
    return config if model <= K else dataclasses.replace(config, num_key_value_heads=model)


def is_spread(module) -> bool:
    """Whether a module's matrices are split over ``data`` too."""
    return any("data" in jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(module))


def spread(module, over_data: bool = True):
    """The module with its matrices split over ``data`` too, along the axis that is whole, where that divides it. They are
    gathered as they are used (`layers.laid`), so a device holds one layer's at a time."""
    if not over_data:
        return module
    shards = jax.sharding.get_abstract_mesh().shape["data"]

    def split(leaf: jax.Array) -> jax.Array:
        axes = list(jax.typeof(leaf).sharding.spec)
        if leaf.ndim != 2 or None not in axes or leaf.shape[axes.index(None)] % shards:
            return leaf
        axes[axes.index(None)] = "data"
        return jax.sharding.reshard(leaf, P(*axes))

    return jax.tree.map(split, module)
