"""A command as one process of several: the options that say which one it is, and its end when another process fails or is lost.

JAX is imported only where a process joins others. Not here: what processes do together
(`redrafter_jax.devices.processes`).
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import traceback
from collections.abc import Callable

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput, as_bad_input

LOST_EXIT_CODE = 3
LOST_SENTENCE = (
    "error: a process of this run was lost, so this one ended; the same command, started again for every process, goes on from"
    " what is saved"
)
LOST_PHRASES = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED", "Gloo", "heartbeat")  # in JAX's errors
SHUTDOWN_SECONDS = 30  # that a process with an error waits for others with the same error


@dataclasses.dataclass(frozen=True)
class Group:
    """How the processes of a run find each other; without any of these options there is one process."""

    distributed: bool = False
    """Join the processes that the environment names: the hosts of a TPU slice, or those of Slurm, Open MPI or
    Kubernetes."""
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
    """Joins the group, calls ``body``, and returns its exit code (None: 0).

    In a group, a process that fails ends without waiting for the others, since they may wait for it. One that has lost
    another prints one sentence and ends with LOST_EXIT_CODE, or with SIGABRT where JAX ends it.

    Args:
      saves: ``body`` polls `processes.is_asked_to_stop`, so it handles SIGTERM itself.
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
    except Exception as error:  # any exception of any library: a lost process shows in many ways
        code = _report(error)
    if code != LOST_EXIT_CODE:
        witness.dismiss()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def join(group: Group, saves: bool = False) -> None:
    """Joins the other processes (`processes.join`); errors name the option.

    Raises:
      BadInput: the environment names no group, or the others do not come.
    """
    try:
        processes.join(group.coordinator, group.num_processes, group.process_id, group.lost_after, saves)
    except BadInput as error:
        if group.coordinator is not None:
            raise BadInput(f"--coordinator {group.coordinator}: {error}") from None
        raise BadInput(f"--distributed: {error}; give --coordinator, --num-processes and --process-id") from None


def _report(error: Exception) -> int:
    """Prints an error that ends this process of a group; returns the exit code."""
    if _is_loss(error):
        print(" ".join(str(error).split())[:200], file=sys.stderr)
        return LOST_EXIT_CODE
    found = as_bad_input(error)
    if found is None:
        print("".join(traceback.format_exception(error)), file=sys.stderr)
        return 1
    print(f"error: {' '.join(str(found).split())}", file=sys.stderr)
    _wait_for_others()
    return 2


def _is_loss(error: BaseException) -> bool:
    import jax

    link: BaseException | None = error
    while link is not None:
        says_so = any(phrase in str(link) for phrase in LOST_PHRASES)
        if isinstance(link, jax.errors.JaxRuntimeError) and says_so:
            return True
        if isinstance(link, ValueError) and "Gloo" in str(link):  # of a gather that the loss interrupts
            return True
        link = link.__cause__ or link.__context__
    return False


def _wait_for_others() -> None:
    """Gives the others time to report the same error, before process 0 ends the service through which they talk."""
    with contextlib.suppress(Exception):
        processes.wait("the end", SHUTDOWN_SECONDS)


def _leave_together() -> None:
    import jax

    jax.distributed.shutdown()


class _Witness:
    """A shell that prints LOST_SENTENCE after this process is gone, unless it is dismissed. The process cannot print it
    itself: JAX aborts it from a thread of its own, without asking Python, when process 0 cannot be reached or another
    is lost."""

    def __init__(self):
        script = 'read -r line || printf "%s\\n" "$1" >&2'
        arguments = ["/bin/sh", "-c", script, "sh", LOST_SENTENCE]
        self.shell = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def dismiss(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.shell.communicate(b"all is said\n")
