"""How a run is asked to end early: Ctrl-C, or SIGTERM as pre-emption sends it. It saves after the update under way and
ends with the signal's exit code, so that it does not look finished."""

import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterator

from redrafter_jax.devices import processes


class Stopped(Exception):
    """A run was asked to end, and has saved what it had after update ``step``; ``code``: its process's exit code."""

    def __init__(self, step: int, code: int):
        super().__init__(f"stopped after step {step}")
        self.step, self.code = step, code


class Stop:
    """Whether the run was asked to end; a context manager, within which signals only ask. A second Ctrl-C ends at once.

    Several processes leave SIGTERM to JAX, which finds a step that all of them can end at; Ctrl-C is passed on as SIGTERM.
    """

    def __init__(self):
        self.asked: int | None = None  # the first signal
        self.before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        with contextlib.suppress(ValueError):  # not the main thread: nobody asks
            for number in (signal.SIGINT, signal.SIGTERM) if processes.count() == 1 else (signal.SIGINT,):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def is_asked(self, index: int) -> bool:
        """Whether update ``index`` should be the last; in a group every process asks at every update."""
        return self.asked is not None if processes.count() == 1 else processes.is_asked_to_stop(index)

    @property
    def code(self) -> int:
        return 128 + (self.asked or signal.SIGTERM)

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
    """Ctrl-C in here ends with a line about where the work is saved."""
    try:
        yield
    except KeyboardInterrupt:
        processes.say(f"\ninterrupted; the same command goes on from what is saved in {place}", sys.stderr)
        raise
