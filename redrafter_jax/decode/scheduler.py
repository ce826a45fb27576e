"""A running batch whose rows are refilled as they end.

    scheduler = Scheduler(engine.runner, rows=8, room=room_for(requests, ...))
    tickets = [scheduler.submit(request) for request in requests]
    while scheduler.running or scheduler.waiting:
        for event in scheduler.step():
            print(event.ticket, event.reply.token_ids, event.done)

    rows    0 [a a a a a a][d d d d][f f ...      a step: requests that wait are read, one after the other, and inserted into
            1 [b b b][c c c c c c c][e e ...      free rows; then rounds for all rows, until one of them ends where another request
                     ^ b ended: c is inserted     waits for it

A long prompt is read in chunks, between which the rows run on; chunks that a row has in its cache already are taken from there
(`kept.py`, `reading.py`).

Every chunk is read by the same program, and every request decoded by the same program, so its text depends on nothing beside it:
not on when it came, nor on its row, nor on what was there already. Not here: threads, clocks of clients, text (`infer/`).
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np

from redrafter_jax.decode import loop
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.kept import KeptPrompts, exact_length
from redrafter_jax.decode.programs import Refilled
from redrafter_jax.decode.reader import Reader
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.report import FETCHED, reply_of
from redrafter_jax.decode.room import Room
from redrafter_jax.decode.runner import Runner


@dataclasses.dataclass(frozen=True)
class Event:
    """What a step brought to a request: its reply so far, and whether it is complete."""

    ticket: int
    reply: Reply
    done: bool


Watch = Callable[[list[Event]], Collection[int]]
"""Of what a step brought: the tickets to end now, whatever they asked for."""


@dataclasses.dataclass(frozen=True)
class _Seat:
    """A request that waits or has a row. began: when it was submitted, read: when its prompt was, in seconds of
    `time.perf_counter`; taken: tokens of its prompt that a row had."""

    ticket: int
    request: Request
    began: float
    read: float = 0.0
    taken: int = 0


class Scheduler:
    """rows: R, decoded together, a multiple of the devices that rows are split over; room: the most that a request may ask for,
    which the programs are compiled for.

    reuses: whether a prompt takes what it shares with one that was read before from the row that has it.

    decoded, offered: rows times rounds that decoded a request, and all that there were, so far; round_seconds: of the last step's
    rounds, the look at them included; 0 before the first.
    """

    def __init__(self, runner: Runner, rows: int, room: Room, reuses: bool = True):
        self.rows, self.room = rows, room
        self.decoded = self.offered = 0
        self.round_seconds = 0.0
        self._runner = runner
        self._programs: Refilled | None = None
        self._state: DecodeState | None = None
        self._waiting: collections.deque[_Seat] = collections.deque()
        self._seats: dict[int, _Seat] = {}
        self._reading: tuple[_Seat, Reader] | None = None
        exact = exact_length(runner.target.config) if reuses else 0
        self._kept = KeptPrompts(room.chunks[-1], room.bucket.length + 1, exact)
        self._rounds = np.zeros(rows, np.int64)
        self._tickets = 0

    @property
    def running(self) -> int:
        """Rows that hold a request."""
        return len(self._seats)

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting) + self.is_reading

    @property
    def is_reading(self) -> bool:
        """Whether one of them has a prompt that is read in part."""
        return self._reading is not None

    def prepare(self) -> None:
        """Compiles all programs, of which none is compiled later. Left out, the first step does it."""
        self._programs = self._runner.refilled(self.rows, self.room)
        self._state = self._runner.on_mesh(self._programs.empty)

    def submit(self, request: Request) -> int:
        """The ticket of a request, which is decoded as soon as a row is free.

        Raises:
          BadInput: it asks for more than there is room for.
        """
        self.room.check(request)
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._waiting.append(_Seat(ticket, request, time.perf_counter()))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forgets a request: its row is free before the next round, and no event names it any more."""
        self._waiting = collections.deque(seat for seat in self._waiting if seat.ticket != ticket)
        if self._reading is not None and self._reading[0].ticket == ticket:
            self._reading = None
        self._end([row for row, seat in self._seats.items() if seat.ticket == ticket])

    def reset(self) -> None:
        """Forgets every request, and what is on the device: for a caller whose step has failed."""
        self._waiting.clear()
        self._seats.clear()
        self._kept.clear()
        self._reading = None
        self.prepare()

    def step(self, rounds: int = loop.ALL_ROUNDS, watch: Watch | None = None, reading_seconds: float = math.inf) -> list[Event]:
        """Reads requests that wait into free rows, decodes at most ``rounds`` rounds, or until a row ends while another request
        waits for it, and says what became of each request that has a row. After ``reading_seconds`` no further chunk of a prompt
        is read, so that those that run are not stopped for longer than that and one chunk. At least one is, where a row is free."""
        if self._state is None:
            self.prepare()
        self._fill(time.perf_counter() + reading_seconds)
        if not self._seats:
            return []
        ends = 1 if self.waiting and self.running == self.rows else loop.ALL_ROWS
        began, before = time.perf_counter(), self.offered
        self._state = self._runner.call(self._programs.run, self._state, np.int32(rounds), np.int32(ends))
        events = self._look()
        self.round_seconds = (time.perf_counter() - began) * self.rows / max(self.offered - before, self.rows)
        over = {row for row, event in events.items() if event.done}
        asked = set(watch(list(events.values()))) if watch is not None else set()
        ended = {row for row, event in events.items() if event.ticket in asked} - over
        self._end(ended)
        for row in over:
            del self._seats[row]
        return [_ended(event) if row in ended else event for row, event in events.items()]

    def _fill(self, until: float) -> None:
        has_read = False
        while self.is_reading or (self._waiting and self.running < self.rows):
            if has_read and time.perf_counter() >= until:
                return
            has_read = True
            if self._reading is None:
                self._reading = self._open(self._waiting.popleft())
            seat, reader = self._reading
            reader.read()
            if reader.is_complete:
                self._insert(dataclasses.replace(seat, taken=reader.taken), reader)
                self._reading = None

    def _open(self, seat: _Seat) -> tuple[_Seat, Reader]:
        row, taken = self._kept.find(seat.request.prompt)
        return seat, Reader(self._runner, self._programs, self.room, seat.request, self._state, row, taken)

    def _insert(self, seat: _Seat, reader: Reader) -> None:
        free = [row for row in range(self.rows) if row not in self._seats]
        row = self._kept.choose(free, reader.source, reader.taken)
        self._state = self._runner.on_mesh(self._programs.insert, self._state, np.int32(row), reader.begin())
        self._kept.keep(row, seat.request.prompt, seat.request.limits.new)
        self._seats[row], self._rounds[row] = dataclasses.replace(seat, read=time.perf_counter()), 0

    def _look(self) -> dict[int, Event]:
        """What each row that holds a request has so far."""
        host, now = self._runner.fetch({name: getattr(self._state, name) for name in FETCHED}), time.perf_counter()
        new = [int(host["rounds"][row] - self._rounds[row]) for row in self._seats]
        self.decoded, self.offered = self.decoded + sum(new), self.offered + self.rows * max(new)
        self._rounds = np.array(host["rounds"])
        events = {}
        for row, seat in self._seats.items():
            reply = reply_of(host, row, seat.request, now - seat.began, seat.read - seat.began, is_ended=False)
            reply = dataclasses.replace(reply, cached_tokens=seat.taken)
            events[row] = Event(seat.ticket, reply, bool(host["done"][row]))
        return events

    def _end(self, rows: Collection[int]) -> None:
        """Frees rows that are not done, here and on the device."""
        for row in rows:
            del self._seats[row]
        if rows:
            self._state = self._runner.end(self._state, rows)


def in_order(scheduler: Scheduler, requests: Iterable[Request]) -> Iterator[Reply]:
    """The replies to all of them, in their order, each as soon as those before it are complete."""
    tickets = [scheduler.submit(request) for request in requests]
    replies: dict[int, Reply] = {}
    for ticket in tickets:
        while ticket not in replies:
            replies |= {event.ticket: event.reply for event in scheduler.step() if event.done}
        yield replies.pop(ticket)


def _ended(event: Event) -> Event:
    return dataclasses.replace(event, reply=dataclasses.replace(event.reply, finish_reason="ended", stop_reason=None), done=True)
