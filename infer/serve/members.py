"""One server of several processes over one mesh: the first listens and decides, the others follow it (`decode/led.py`)."""

import signal
import socket
import sys
from collections.abc import Callable

from infer.command import INTERRUPTED
from redrafter_jax.decode.led import Led
from redrafter_jax.decode.led import follow as follow_first
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.devices import processes


def listen(bind: Callable[[], socket.socket]) -> socket.socket | None:
    """The socket, in the first process alone. All processes call it together.

    Raises:
      BadInput: what ``bind`` raises, in every process.
    """
    found: list[socket.socket] = []
    processes.run_in_first(lambda: found.append(bind()))
    return found[0] if found else None


def lead(scheduler: Scheduler, serve: Callable[[Scheduler | Led], int]) -> int:
    """The exit code of ``serve``, which is given the scheduler that it may use: of several processes one that the others follow
    until it returns. What made a step of it fail is raised, since the others cannot go on either."""
    if processes.count() == 1:
        return serve(scheduler)
    led = Led(scheduler)
    try:
        code = serve(led)
    except KeyboardInterrupt:  # all processes leave together
        code = INTERRUPTED
    led.close()
    if led.failure is not None:
        raise led.failure
    return code


def follow(scheduler: Scheduler) -> int:
    """Decodes what the first process tells, until that ends; returns the exit code. Where all processes are asked to end at once,
    the first one still lets its requests end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _wait_for_first)
    follow_first(scheduler)
    return 0


def _wait_for_first(number: int, _) -> None:
    print("note: this process ends with process 0; asked again, it ends at once", file=sys.stderr, flush=True)
    signal.signal(number, signal.SIG_DFL)
