"""Ends a run early: on Ctrl-C, or on SIGTERM, which pre-emption sends. The run saves after the update under way and
ends with the signal's exit code, so that it does not look finished."""

import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterator

from infer.command import INTERRUPTED, TERMINATED
from redrafter_jax.devices import processes


class Stopped(Exception):
    """A run was asked to end, and has saved a checkpoint after update ``step``; ``code``: the process's exit code."""

    def __init__(self, step: int, code: int):
        super().__init__(f"stopped after step {step}")
        self.step, self.code = step, code


class Stop:
    """Whether the run was asked to end; a context manager, inside which a signal only asks. A second Ctrl-C ends at
    once.

    Of several processes, SIGTERM goes to JAX, which finds a step at which all can end; Ctrl-C is passed on as SIGTERM.
    """

    def __init__(self):
        self.asked: int | None = None  # the first signal
        self.before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        with contextlib.suppress(ValueError):  # not the main thread, which alone gets signals
            for number in (signal.SIGINT, signal.SIGTERM) if processes.count() == 1 else (signal.SIGINT,):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def is_asked(self, index: int) -> bool:
        """Whether update ``index`` should be the last; each of several processes asks at every update."""
        return self.asked is not None if processes.count() == 1 else processes.is_asked_to_stop(index)

    @property
    def code(self) -> int:
        return INTERRUPTED if self.asked == signal.SIGINT else TERMINATED

    def _ask(self, number: int, _) -> None:
        if number == signal.SIGINT and self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or number
        if number == signal.SIGINT:
            processes.say("\nCtrl-C: the run saves after this update and stops; once more ends it at once", sys.stderr)
            if processes.count() > 1:
                signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def says_how_to_resume(place: pathlib.Path | str) -> Iterator[None]:
    """Prints, on Ctrl-C in this context, where the work is saved."""
    try:
        yield
    except KeyboardInterrupt:
        processes.say(f"\ninterrupted; the same command goes on from what is saved in {place}", sys.stderr)
        raise
