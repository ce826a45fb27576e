"""Several processes as one program: they join, exchange small data, wait for each other, and act through the first.

Every process runs the same command. JAX is imported only where a process joins others, so that a wrong option is
reported at once. Not here: which devices a mesh takes (`mesh.py`), shards of checkpoints (`files/checkpoint.py`).
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from redrafter_jax.errors import BadInput, as_bad_input

MAX_WAIT_SECONDS = 24 * 3600  # for the slowest process; the death of one ends the wait long before


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def join(coordinator: str | None, count: int | None, index: int | None, lost_after: int, saves: bool = False) -> None:
    """Joins the other processes; call it before anything that starts JAX's devices.

    Args:
      coordinator: HOST:PORT of process 0; None: the environment names it, and how many processes there are.
      count, index: how many processes there are, and which of them this is, from 0; with ``coordinator``.
      lost_after: seconds without a sign of life after which a process counts as lost.
      saves: the program asks `is_asked_to_stop`, so JAX may take SIGTERM; otherwise SIGTERM ends the process.

    Raises:
      BadInput: the environment names no group, or the others do not come.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)  # else collectives of two programs meet on one CPU connection
    jax.config.update("jax_enable_preemption_service", saves)
    detection = None if coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(
            coordinator, count, index, cluster_detection_method=detection, heartbeat_timeout_seconds=lost_after
        )
    except (ValueError, RuntimeError) as error:
        what = "the environment names no group of processes" if coordinator is None else "the processes did not find each other"
        raise BadInput(f"{what} ({' '.join(str(error).split())[:200]})") from None


def check_joined(option: str) -> None:
    """Raises BadInput on a host of a slice that has not joined the others; ``option``: what joins them."""
    import jax

    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        count = jax.process_count()
        raise BadInput(f"this is host {jax.process_index()} of a slice of {count} hosts: give {option} on each of them")


def is_first() -> bool:
    """Whether this process is the one that prints and writes the small files."""
    return index() == 0


def index() -> int:
    """Which process this is, from 0."""
    return _joined().process_index() if _joined() else 0


def count() -> int:
    """How many processes there are."""
    return _joined().process_count() if _joined() else 1


def _joined():
    """The module jax in a process of a group, else None."""
    jax = sys.modules.get("jax")
    return jax if jax is not None and jax.distributed.is_initialized() else None


def say(text: object, file=None) -> None:
    """Prints, in the first process alone."""
    if is_first():
        print(text, file=file or sys.stdout, flush=True)


def wait(place: str, seconds: int = MAX_WAIT_SECONDS) -> None:
    """Returns once every process has come to this place; raises JAX's error where one does not."""
    if count() == 1:
        return
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=place, timeout_ms=seconds * 1000)


def run_in_first(act: Callable[[], object]) -> None:
    """Calls ``act`` in the first process, while the others wait; all processes call it together.

    Raises:
      BadInput: what ``act`` raised, in every process, so that none waits in vain for one that has ended.
    """
    if count() == 1:
        act()
        return
    refusal = ""
    if is_first():
        try:
            act()
        except Exception as error:
            found = as_bad_input(error)
            if found is None:
                raise
            refusal = str(found)
    refusal = json.loads(broadcast_text(json.dumps(refusal)))  # as JSON, since an empty text cannot be gathered
    if refusal:
        raise BadInput(refusal)


def fetch(tree: Any) -> Any:
    """The full arrays on the host, in every process; all processes call it together."""
    import jax

    def replicate(leaf: jax.Array) -> jax.Array:
        is_here = leaf.is_fully_addressable or leaf.is_fully_replicated
        return leaf if is_here else jax.sharding.reshard(leaf, jax.sharding.PartitionSpec())

    return jax.device_get(jax.tree.map(replicate, tree))


def gather(array) -> Any:
    """``[processes, ...]`` in every process: a host array of each, all of one shape; all processes call it together."""
    if count() == 1:
        return array[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array)


def broadcast(array) -> Any:
    """The first process's host array, in every process, whose own has the same shape and type; all processes call it together."""
    if count() == 1:
        return array
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(array)


def broadcast_text(text: str) -> str:
    """The first process's text, in every process; all processes call it together."""
    import numpy as np

    own = np.frombuffer(text.encode(), np.uint8)
    buffer = np.zeros(int(gather(np.int32(len(own)))[0]), np.uint8)
    if is_first():
        buffer[:] = own
    return gather(buffer)[0].tobytes().decode()


def check_same(text: str, wrong: str) -> None:
    """Raises BadInput, with the sentence ``wrong``, unless all processes bring the same text; all call it together."""
    import hashlib

    import numpy as np

    digests = gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32))
    if (digests != digests[0]).any():
        raise BadInput(wrong)


def put(array, *spec) -> Any:
    """Shards a host array, of which every process has a full copy, over the current mesh."""
    import jax

    sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec(*spec))
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def is_asked_to_stop(step: int) -> bool:
    """Whether some process was asked to end (SIGTERM, as pre-emption does) and all should end after this step; every
    process asks at every step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
