"""A running batch of several processes: the first decides, and the others follow.

    led = Led(scheduler)         # in the first process: used as a Scheduler; led.close() ends the others
    follow(scheduler)            # in every other process: returns after `close`

Every process has the same scheduler over one mesh, and has to call the same programs in the same order. All that a scheduler does
follows from its calls, from what a watch answers and from its clock. So the first process tells the others of each call before it
makes it, of each answer and of each time that its clock says. A message is JSON in buffers of one size, so nothing is compiled
after the first.
"""

import dataclasses
import json
import math
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from redrafter_jax.decode import loop
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.request import Limits, Sampling
from redrafter_jax.decode.room import Room
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.decode.seat import Event, Watch
from redrafter_jax.devices import processes

BUFFER_BYTES = 16 << 10  # of one broadcast; the prompt of a request may need several
LENGTH_BYTES = 8  # that say how long a message is
BEAT_SECONDS = 5.0  # within which a step should be made, also of an empty batch: collectives give up after a while


class Led:
    """The first process's hand on the scheduler of all: what is submitted and cancelled happens, in all processes, at the next
    step. ``failure``: what a step raised, after which the processes may be at different places, and none can go on."""

    idle_seconds = BEAT_SECONDS

    def __init__(self, scheduler: Scheduler):
        self.rows = scheduler.rows
        self.failure: Exception | None = None
        self._scheduler, self._calls = scheduler, []
        self._ticket, self._new = scheduler.next_ticket, 0
        self._lock, self._is_closed = threading.Lock(), False
        scheduler.clock = lambda: _tell(time.perf_counter())

    @property
    def room(self) -> Room:
        return self._scheduler.room

    @property
    def round_seconds(self) -> float:
        return self._scheduler.round_seconds

    @property
    def running(self) -> int:
        """Rows that hold a request."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return self._scheduler.waiting + self._new

    @property
    def is_reading(self) -> bool:
        """Whether one of them has a prompt that is read in part."""
        return self._scheduler.is_reading

    @property
    def rounds_of(self) -> Mapping[str, int]:
        """Rounds so far, by the name of the way to draft."""
        return self._scheduler.rounds_of

    def submit(self, request: Request, follows: bool = False) -> int:
        """As `Scheduler.submit`."""
        self.room.check(request)
        ticket, self._ticket, self._new = self._ticket, self._ticket + 1, self._new + 1
        self._calls.append(["submit", [_plain(request), follows]])
        return ticket

    def cancel(self, ticket: int) -> None:
        """As `Scheduler.cancel`."""
        self._calls.append(["cancel", ticket])

    def step(self, rounds: int = loop.ALL_ROUNDS, watch: Watch | None = None, reading_seconds: float = math.inf) -> list[Event]:
        """As `Scheduler.step`."""

        def answer(events: list[Event]) -> Collection[int]:
            return _tell(sorted(watch(events)))

        with self._lock:
            if self._is_closed:
                raise RuntimeError("the other processes have ended")
            calls, self._calls, self._new = self._calls, [], 0
            try:
                order = _tell({"calls": calls, "rounds": rounds, "reads": reading_seconds, "watched": watch is not None})
                return _act(self._scheduler, order, answer)
            except Exception as error:
                self.failure = error
                raise

    def reset(self) -> None:
        """Raises RuntimeError: after a failed step nobody knows what the other processes have done."""
        raise RuntimeError("a batch of several processes cannot be started again")

    def close(self) -> None:
        """Ends `follow` in the other processes, once no step is being made. No step comes after it."""
        with self._lock:
            if not self._is_closed and self.failure is None:
                _tell(None)
            self._is_closed = True


def follow(scheduler: Scheduler) -> None:
    """Does what the first process tells, until it closes."""
    scheduler.clock = _hear
    while (order := _hear()) is not None:
        _act(scheduler, order, lambda _: _hear())


def _act(scheduler: Scheduler, order: dict, watch: Watch) -> list[Event]:
    for name, given in order["calls"]:
        if name == "submit":
            request, follows = given
            scheduler.submit(_request(request), follows)
        else:
            scheduler.cancel(given)
    return scheduler.step(order["rounds"], watch if order["watched"] else None, order["reads"])


def _plain(request: Request) -> dict:
    """A request as JSON holds it."""
    fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    ids = {"prompt": [int(token) for token in request.prompt], "stop_ids": [int(token) for token in request.stop_ids]}
    return fields | ids | {"seed": int(request.seed), "sampling": vars(request.sampling), "limits": vars(request.limits)}


def _request(fields: dict) -> Request:
    made = {"sampling": Sampling(**fields["sampling"]), "limits": Limits(**fields["limits"])}
    return Request(**fields | made | {"stop_ids": tuple(fields["stop_ids"])})


def _tell(message: Any) -> Any:
    """Gives the others a message; returns it as they hear it."""
    return json.loads(_exchange(json.dumps(message).encode()))


def _hear() -> Any:
    """The next message of the first process."""
    return json.loads(_exchange(b""))


def _exchange(own: bytes) -> bytes:
    """The first process's bytes, in every process."""
    told, heard = len(own).to_bytes(LENGTH_BYTES, "little") + own, b""
    while True:
        buffer = np.zeros(BUFFER_BYTES, np.uint8)
        part = np.frombuffer(told[len(heard) : len(heard) + BUFFER_BYTES], np.uint8)
        buffer[: len(part)] = part
        heard += np.asarray(processes.broadcast(buffer)).tobytes()
        end = LENGTH_BYTES + int.from_bytes(heard[:LENGTH_BYTES], "little")
        if len(heard) >= end:
            return heard[LENGTH_BYTES:end]
