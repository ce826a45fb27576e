"""Whether there is memory for what is known to be needed, before it is asked for: a refused allocation names no option, and
a machine without enough memory may kill the process instead."""

import os

import jax

from redrafter_jax.errors import BadInput
from redrafter_jax.mesh import Load
from redrafter_jax.model.drafter import DrafterConfig
from train.recipe import Recipe


def of_device() -> tuple[int, int]:
    """Bytes of memory of one of this process's devices, and how many of them share it."""
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit, 1
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), len(devices)  # CPU devices are the host's


def check(need: float, what: str, devices: int = 1) -> None:
    """Raises BadInput if each of ``devices`` devices of this process needs more bytes than there are; ``what``: the options
    that decide it."""
    room, share = of_device()
    shared = min(devices, share)
    if need * shared > room:
        each = "each device" if devices > 1 and share == 1 else "this machine"
        raise BadInput(f"{what} need at least {need * shared / 1e9:.3g} GB, and {each} has {room / 1e9:.3g} GB of memory")


def check_training(load: Load, recipe: Recipe, head: DrafterConfig, mesh: tuple[int, int]) -> None:
    """Raises BadInput unless a device of the mesh has room for what an update certainly holds at one time: the weights,
    the head's gradients and moments, and its exits ``[K, B, T, E]`` in float32 for the backward pass."""
    exits = 4 * recipe.positions * load.rows * recipe.row_length * head.exit_size / mesh[0]
    what = f"--batch {recipe.batch} and --accumulate {recipe.accumulate} with --row-length {recipe.row_length} and this target"
    check(load.held(*mesh) + exits, what, mesh[0] * mesh[1])
