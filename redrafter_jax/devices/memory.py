"""How much memory there is for what a mesh has to carry. Not here: which mesh suits it (`mesh_choice.py`)."""

import pathlib

import jax

from redrafter_jax.devices.placement import Footprint
from redrafter_jax.errors import BadInput

MEMINFO, STATM = pathlib.Path("/proc/meminfo"), pathlib.Path("/proc/self/statm")
CGROUP, OWN_GROUPS = pathlib.Path("/sys/fs/cgroup"), pathlib.Path("/proc/self/cgroup")
# Of control groups, version 2 and then 1: the folder below CGROUP; the files of the limit, of what is used, and of more; in which
# the line of what can be dropped.
VERSIONS = (
    ("", "memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
)


def of_device(device: jax.Device) -> int | None:
    """Bytes that an accelerator lets a process have; None for a CPU."""
    return (device.memory_stats() or {}).get("bytes_limit")


def of_host() -> int | None:
    """Bytes that this process may still take of its host's memory: the least of what is free or can be freed, what its control
    group leaves, and what the limit of its address space leaves. Swap is not counted. None where nothing says."""
    known = [found for found in (_free(), _of_group(), _of_address_space()) if found is not None]
    return min(known, default=None)


def check(load: Footprint, mesh: tuple[int, int], what: str, ways: dict[str, Footprint], otherwise: str) -> None:
    """Refuses what certainly does not fit on the devices of a mesh, before any of it is made.

    Args:
      what: the option that names the model, and what of it is counted; the subject of the sentence.
      ways: options that need less, and what has to be carried with them; those that fit are recommended.
      otherwise: what else would do.

    Raises:
      BadInput: ``load`` needs more bytes than a device has, or than the host has where all devices share it.
    """
    found = shortage(load, mesh)
    if found is not None:
        instead = [*(option for option, less in ways.items() if shortage(less, mesh) is None), otherwise]
        raise BadInput(f"{what} needs {_in_words(found)}; {', '.join(instead)} would do")


def check_bytes(need: float, what: str, devices: int = 1) -> None:
    """Raises BadInput if each of so many devices needs more bytes than there are; ``what``: the options that decide it."""
    found = _too_few(need, devices)
    if found is not None:
        raise BadInput(f"{what} need at least {_in_words(found)}")


def shortage(load: Footprint, mesh: tuple[int, int]) -> tuple[float, float] | None:
    """The bytes that are needed and those that are there, where they are too few: of each device, or of the host for all of its
    devices in the mesh."""
    return _too_few(load.bytes_per_device(*mesh), mesh[0] * mesh[1])


def _too_few(need: float, count: int) -> tuple[float, float] | None:
    devices = jax.local_devices()
    there = of_device(devices[0])
    if there is None:
        need, there = need * min(count, len(devices)), of_host()
    return None if there is None or need <= there else (need, there)


def _in_words(found: tuple[float, float]) -> str:
    need, there = (f"{number / 1e9:.3g} GB" for number in found)
    where = "of memory" if of_device(jax.local_devices()[0]) is None else "on each device"
    return f"{need} {where}, and {there} are there"


def _free() -> int | None:
    return next((kib * 1024 for name, kib in _numbers(MEMINFO) if name == "MemAvailable:"), None)


def _of_group() -> int | None:
    """The least that this process's control group and those it lies in leave; pages of files that they can drop count as left."""
    left = []
    for controller, limit, used, more, droppable in VERSIONS:
        root = CGROUP / controller
        own = root / _own_group(controller)
        for group in (own, *(parent for parent in own.parents if parent.is_relative_to(root))):
            numbers = [_number(group / name) for name in (limit, used)]
            if None not in numbers:
                dropped = next((bytes_ for name, bytes_ in _numbers(group / more) if name == droppable), 0)
                left.append(max(0, numbers[0] - max(0, numbers[1] - dropped)))
    return min(left, default=None)


def _own_group(controller: str) -> str:
    """Where this process's group lies below the folder of a controller (version 2 has one for all, without a name): the lines are
    `number:controllers:/path`. A path that leads out of what a container sees is none."""
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return ""
    paths = [line[2].strip("/") for line in lines if len(line) == 3 and controller in line[1].split(",")]
    return next((path for path in paths if ".." not in path.split("/")), "")


def _of_address_space() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or not STATM.exists():
        return None
    return max(0, limit - int(STATM.read_text().split()[0]) * resource.getpagesize())


def _numbers(file: pathlib.Path) -> list[tuple[str, int]]:
    """The lines of a file that are a name and a number."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return []
    return [(words[0], int(words[1])) for words in lines if len(words) > 1 and words[1].isdigit()]


def _number(file: pathlib.Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
