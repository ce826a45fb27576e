"""Which mesh suits a model: the one that was asked for, checked, or one for the devices and their memory, with the reason.

Not here: what a mesh has to hold (`placement.py`), how much memory there is (`memory.py`), making the mesh (`mesh.py`).
"""

from typing import Literal

import jax

from redrafter_jax.devices import memory, processes
from redrafter_jax.devices.placement import Footprint
from redrafter_jax.errors import BadInput

MIN_SHARD_BYTES = 1 << 30  # bytes; an estimate: a shard of fewer is read in less time than one more split's collectives take


def check(load: Footprint, mesh: tuple[int, int], devices: int, all_devices: bool = False, what: str = "mesh") -> None:
    """Raises BadInput for a mesh of too many devices, or one that does not divide its load; the message names meshes that
    would do, with ``all_devices`` only those that use every device. ``what`` names the mesh."""
    data, model = mesh
    if min(mesh) < 1:
        raise BadInput(f"{what} should be two whole numbers from 1 up, not {data} {model}")
    wrong = load.why_not(data, model)
    if data * model > devices:
        wrong = f"it needs {data * model} devices, and {devices} {'is' if devices == 1 else 'are'} visible"
    if wrong:
        raise BadInput(f"{what} {data} {model}: {wrong}; {named(load.meshes(devices, all_devices))} would do")


def named(meshes: list[tuple[int, int]], most: int = 6) -> str:
    """The first of these meshes, in a sentence."""
    shown = [f"{data} {model}" for data, model in meshes[:most]] or ["fewer devices"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else f"only {shown[0]}"


def recommend(
    load: Footprint, devices: int, device_bytes: int | None, all_devices: bool = False, prefer: Literal["data", "model"] = "data"
) -> tuple[tuple[int, int], str]:
    """A mesh for these devices of ``device_bytes`` each (None: unknown, as of CPUs), and why.

    Training prefers ``data``: it takes the fewest shards of ``model`` that hold the load, and the other devices take rows.
    Devices that no row needs join ``model`` while each still has `MIN_SHARD_BYTES` to read, or, with ``all_devices``, in
    any case. Decoding prefers ``model``, because every step waits for the weights to be read: it takes as many shards as
    leave each device `MIN_SHARD_BYTES` to read, and the other devices take rows.

    Raises:
      BadInput: no mesh of all devices fits, and ``all_devices`` asks for one.
    """
    fitting, need = load.meshes(devices, all_devices), f"{(load.size + load.cache) / 1e9:.3g} GB to hold"
    if not fitting:
        reasons = f"{load.why_not(devices, 1)}, and {load.why_not(1, devices)}"
        raise BadInput(f"no mesh uses all {devices} devices of the processes: {reasons}")
    if device_bytes is None and all_devices:
        return min(fitting, key=lambda mesh: mesh[1]), f"the processes work on all their {devices} devices together"
    if device_bytes is None:
        return (1, 1), f"the {devices} devices share one host's cores and memory" if devices > 1 else "there is one device"
    holding, each = load.holding(fitting, device_bytes), f"{device_bytes / 1e9:.3g} GB"
    if not holding:
        mesh = min(fitting, key=lambda mesh: load.bytes_per_device(*mesh))
        least = f"{load.bytes_per_device(*mesh) / 1e9:.3g} GB"
        return mesh, f"{need} are {least} for each device, too much for {each}; no split leaves less"
    fewest = min(model for _, model in holding)
    if prefer == "model":
        mesh = _most_of_model(load, holding, fewest)
        reason = (
            f"{need}: each step reads it, and with the model {f'split into {mesh[1]}' if mesh[1] > 1 else 'whole'} a device reads"
        )
        reason += f" {load.bytes_per_device(*mesh) / 1e9:.3g} GB of its {each}"
        return mesh, reason + (f"; {load.option} {load.rows} splits into {mesh[0]}" if mesh[0] > 1 else "")
    mesh = _most_of_data(load, holding, fewest)
    parts = mesh[0] * fewest if load.spread else fewest
    split = f"split into {parts}" if parts > 1 else "whole"
    reason = f"{need}: the model {split} takes {load.bytes_per_device(mesh[0], fewest) / 1e9:.3g} GB of each device's {each}"
    reason += f", and {load.option} {load.rows} splits into {mesh[0]}"
    return mesh, reason + (f"; model takes more of the {devices} devices, to be faster" if mesh[1] > fewest else "")


def _most_of_model(load: Footprint, meshes: list[tuple[int, int]], fewest: int) -> tuple[int, int]:
    """The mesh with the most shards of the model, of those that leave each device enough to read or split it least."""
    worth = [mesh for mesh in meshes if mesh[1] == fewest or load.bytes_per_device(*mesh) >= MIN_SHARD_BYTES]
    return max(worth, key=lambda mesh: (mesh[1], mesh[0]))


def _most_of_data(load: Footprint, meshes: list[tuple[int, int]], fewest: int) -> tuple[int, int]:
    """The mesh with the most shards of rows; devices that no row needs join ``model``, while they have enough to read."""
    rows = max(data for data, model in meshes if model == fewest)
    models = [model for data, model in meshes if data == rows]
    return rows, max(model for model in models if model == fewest or load.bytes_per_device(rows, model) >= MIN_SHARD_BYTES)


def resolve(
    load: Footprint,
    mesh: tuple[int, int] | None,
    together: bool,
    what: str = "mesh",
    joins: str = "jax.distributed.initialize",
    prefer: str | None = None,
) -> tuple[tuple[int, int], str | None]:
    """The given mesh, checked; or a recommended one and, where there is more than one device, a line that gives the reason.

    Args:
      together: all processes work on one mesh, as in training. Otherwise each process works on a mesh of its own devices,
        unless these are too few to hold the load. what: the name of the mesh; joins: the call by which a host joins the
        others; prefer: the axis that gets the devices where both would do, None for ``data`` if they work together, else ``model``.

    Raises:
      BadInput: see `check` and `recommend`; or the mesh leaves some of the processes out, or this host has not joined the others.
    """
    processes.check_joined(joins)
    own, every, group = jax.local_devices(), len(jax.devices()), jax.process_count() > 1
    if mesh is not None:
        all_devices = group and (together or mesh[0] * mesh[1] > len(own))
        if all_devices and mesh[0] * mesh[1] != every:
            wrong = f"{what} {mesh[0]} {mesh[1]} should use all {every} devices of the {jax.process_count()} processes"
            wrong += "" if together else f", or at most the {len(own)} of one"
            raise BadInput(f"{wrong}; {named(load.meshes(every, all_devices))} would do")
        check(load, mesh, every if all_devices else len(own), all_devices, what)
        return mesh, None
    each = memory.of_device(own[0])
    all_devices = group and (together or (each is not None and not load.holding(load.meshes(len(own)), each)))
    chosen, reason = recommend(
        load, every if all_devices else len(own), each, all_devices, prefer or ("data" if together else "model")
    )
    return chosen, f"mesh {chosen[0]} {chosen[1]}: {reason}" if every > 1 else None
