"""Several processes as one program: how they find each other, who writes, how they wait, and what a lost one does to the rest.

Every process runs the same command. JAX is imported only where a process joins others, so that a wrong option is reported
at once. Not here: which devices a mesh takes (`mesh.py`), shards of checkpoints (`checkpoint.py`).
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

from redrafter_jax.errors import BadInput, as_bad_input

LOST = 3  # the exit code where another process was lost
LOSS = (
    "error: a process of this run was lost, so this one ended; the same command, started again for every process, goes on from"
    " what is saved"
)
MAX_WAIT_SECONDS = 24 * 3600  # seconds that processes wait for each other; one that died ends the wait long before
GRACE = 30  # seconds that a process with an error waits for others with the same
SIGNS_OF_LOSS = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED", "Gloo", "heartbeat")


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Group:
    """How the processes of a run find each other; without any of these options there is one process."""

    distributed: bool = False
    """Join the processes that the environment names: the hosts of a TPU slice, or those of Slurm, Open MPI or Kubernetes."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where processes are started by hand; --num-processes and --process-id go with it."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, counted from 0."""
    lost_after: int = 100
    """Seconds without a sign of life after which a process counts as lost and the others end."""

    @property
    def is_single(self) -> bool:
        return not self.distributed and self.coordinator is None

    def check(self) -> None:
        """Raises BadInput for numbers out of range, and where one of the three options is missing."""
        by_hand = {"--coordinator": self.coordinator, "--num-processes": self.num_processes, "--process-id": self.process_id}
        missing = [name for name, value in by_hand.items() if value is None]
        if 0 < len(missing) < 3:
            given = next(name for name, value in by_hand.items() if value is not None)
            raise BadInput(f"{given} goes with {' and '.join(missing)}: give all three in every process")
        if self.lost_after < 5:
            raise BadInput(f"--lost-after should be 5 seconds or more, not {self.lost_after}")
        if missing:
            return
        if self.distributed:
            raise BadInput("--distributed takes from the environment what --coordinator says; give one of them")
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise BadInput(f"--coordinator should be HOST:PORT of process 0, not {self.coordinator}")
        if self.num_processes < 1:
            raise BadInput(f"--num-processes should be 1 or more, not {self.num_processes}")
        if not 0 <= self.process_id < self.num_processes:
            last = self.num_processes - 1
            raise BadInput(f"--process-id should be from 0 to {last} (--num-processes less one), not {self.process_id}")


def run(group: Group, body: Callable[[], int | None], saves: bool = False) -> int:
    """The exit code of ``body`` (None: 0), called once this process has joined its group; ``saves``: it asks `is_asked_to_stop`,
    so that SIGTERM may be left to it.

    In a group, a process that fails ends without waiting for the others, since they may be waiting for it. One that has lost
    another says so in one sentence and ends with the code LOST, or with SIGABRT where it is JAX that ends it.
    """
    if group.is_single:
        return body() or 0
    witness = _Witness()
    try:
        join(group, saves)
        code = body() or 0
        _leave_together()
        witness.dismiss()
        return code
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # of any library: what a lost process does to the others has many faces
        found = None if _is_loss(error) else as_bad_input(error)
        if found is not None:
            print(f"error: {' '.join(str(found).split())}", file=sys.stderr)
            code = 2
            _linger()
        else:
            code = LOST if _is_loss(error) else 1
            print(_short(error) if code == LOST else traceback.format_exc(), file=sys.stderr)
    if code != LOST:
        witness.dismiss()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def join(group: Group, saves: bool = False) -> None:
    """Joins the other processes; has to come before anything that starts JAX's devices. ``saves``: see `run`; otherwise SIGTERM
    ends a process as ever.

    Raises:
      BadInput: the environment names no group, or the others do not come.
    """
    import jax

    by_hand = group.coordinator is not None
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # else two programs' collectives meet on one connection of CPUs
    jax.config.update("jax_enable_preemption_service", saves)
    try:
        jax.distributed.initialize(
            group.coordinator,
            group.num_processes,
            group.process_id,
            cluster_detection_method="deactivate" if by_hand else None,
            heartbeat_timeout_seconds=group.lost_after,
        )
    except (ValueError, RuntimeError) as error:
        reason = _short(error)
        if by_hand:
            raise BadInput(f"--coordinator {group.coordinator}: the processes did not find each other ({reason})") from None
        raise BadInput(f"--distributed: the environment names no group of processes ({reason}); give --coordinator,"
                       " --num-processes and --process-id") from None  # fmt: skip


def check_joined() -> None:
    """Raises BadInput on a host of a slice that has not joined the others."""
    import jax

    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        count = jax.process_count()
        raise BadInput(f"this is host {jax.process_index()} of a slice of {count} hosts: give --distributed on each of them")


def is_first() -> bool:
    """Whether this process is the one that prints and writes the small files."""
    return index() == 0


def index() -> int:
    return _joined().process_index() if _joined() else 0


def count() -> int:
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
    """Returns once every process has come to this place; raises an error of JAX's where one does not."""
    if count() == 1:
        return
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=place, timeout_ms=seconds * 1000)


def fetch(tree: Any) -> Any:
    """Arrays on the host, whole, in every process; all processes call it together."""
    import jax

    def whole(leaf: jax.Array) -> jax.Array:
        is_here = leaf.is_fully_addressable or leaf.is_fully_replicated
        return leaf if is_here else jax.sharding.reshard(leaf, jax.sharding.PartitionSpec())

    return jax.device_get(jax.tree.map(whole, tree))


def gather(array) -> Any:
    """Host arrays of one shape, of all processes, as one with an axis more, in every process; all call it together."""
    if count() == 1:
        return array[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array)


def broadcast_text(text: str) -> str:
    """The first process's text, in every process; all call it together."""
    import numpy as np

    own = np.frombuffer(text.encode(), np.uint8)
    room = np.zeros(int(gather(np.int32(len(own)))[0]), np.uint8)
    if is_first():
        room[:] = own
    return gather(room)[0].tobytes().decode()


def check_same(text: str, wrong: str) -> None:
    """Raises BadInput, ``wrong``, unless all processes bring the same text; all call it together."""
    import hashlib

    import numpy as np

    brought = gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32))
    if (brought != brought[0]).any():
        raise BadInput(wrong)


def put(array, *spec) -> Any:
    """A host array that every process has whole, on the current mesh."""
    import jax

    sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec(*spec))
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])


def is_asked_to_stop(step: int) -> bool:
    """Whether some process of the group was asked to end (SIGTERM, as pre-emption does) and this is the step after which all
    should; every process asks at every step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def _leave_together() -> None:
    import jax

    jax.distributed.shutdown()


def _linger() -> None:
    """Gives the others time to find the same error for themselves, before process 0 takes what they meet at with it."""
    with contextlib.suppress(Exception):
        wait("the end", GRACE)


def _is_loss(error: BaseException) -> bool:
    import jax

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, jax.errors.JaxRuntimeError) and any(sign in str(link) for sign in SIGNS_OF_LOSS):
            return True
        link = link.__cause__ or link.__context__
    return False


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]


class _Witness:
    """Says last that a process was lost, once this one is gone. It cannot do so itself: JAX aborts one that cannot reach
    process 0 any more, or is told of a lost one, from a thread of its own and without asking Python. It is a shell that waits
    for a line."""

    def __init__(self):
        script = 'read -r line || printf "%s\\n" "$1" >&2'
        self.shell = subprocess.Popen(["/bin/sh", "-c", script, "sh", LOSS], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def dismiss(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.shell.communicate(b"all is said\n")
