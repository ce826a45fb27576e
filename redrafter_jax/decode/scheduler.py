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
(`prefix_cache.py`, `reading.py`). A scheduler that adapts has programs for a few rows as well (`ladder.py`), and takes for each run
the way to draft that promises most (`picker.py`).

Every chunk is read by the same program, and every request decoded by programs that give the same text: so that depends neither on
what runs beside it, nor on its row, nor on the way to draft. Not here: threads, clocks of clients, text (`infer/`).
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Collection

import numpy as np

from redrafter_jax.decode import ladder, loop, timing
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.picker import Picker
from redrafter_jax.decode.prefix_cache import PrefixCache, exact_length
from redrafter_jax.decode.programs import Refilled
from redrafter_jax.decode.reader import Reader
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.report import COUNTS, reply_of
from redrafter_jax.decode.room import Room
from redrafter_jax.decode.runner import Runner
from redrafter_jax.decode.seat import Event, Seat, Watch


class Scheduler:
    """rows: R, decoded together, a multiple of the devices that rows are split over; room: the most that a request may ask for,
    which the programs are compiled for; reuses: whether a prompt takes what it shares with one that was read before from the row
    that has it; adapts: whether it takes the `Runner.ways` in turn, as suits the busy rows, and programs of fewer rows, and reuses
    replies as well. What drafts with a memory keeps to its own way, and so do rules by which drafts decide the text.

    decoded, offered: rows times rounds that decoded a request, and all that there were, so far; round_seconds: of the last step's
    rounds, the looks at them included; 0 before the first; rounds_of: rounds so far, by the name of the way; picker: decides
    between ways, once there are several; clock: seconds, by which alone it decides anything: of several processes that decode
    together it has to say the same in all (`led.py`).
    """

    idle_seconds: float | None = None  # that an empty batch can do without a step: any time

    def __init__(self, runner: Runner, rows: int, room: Room, *, reuses: bool = True, adapts: bool = False):
        self.rows, self.room = rows, room
        self.decoded, self.offered, self.round_seconds = 0, 0, 0.0
        self.rounds_of: collections.Counter[str] = collections.Counter()
        self.clock: Callable[[], float] = time.perf_counter
        self._runner = runner
        shards = runner.rows_at_least
        self._places = ladder.Places(rows, shards, ladder.ladder(rows, shards) if adapts else [rows])
        self._ways = runner.turns(room) if adapts else 1
        self._programs: Refilled | None = None
        self.picker: Picker | None = None
        self._state: DecodeState | None = None
        self._waiting: collections.deque[Seat] = collections.deque()
        self._seats: dict[int, Seat] = {}
        self._reading: tuple[Seat, Reader] | None = None
        self._kept = PrefixCache(room.chunks[-1], room.bucket.length + 1, exact_length(runner.target.config) if reuses else 0)
        self._rounds, self._counts = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self._reuses_replies, self._tickets = adapts, 0

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

    @property
    def next_ticket(self) -> int:
        """Of the next request that is submitted."""
        return self._tickets

    def prepare(self) -> None:
        """Compiles all programs, of which none is compiled later, and times their rounds where there are several ways. Left out,
        the first step does it."""
        self._state = None  # there is room for one
        self._programs = programs = self._runner.refilled(self.rows, self.room, self._ways, self._places.sizes)
        if programs.ways > 1 and self.picker is None:
            lengths = [way.round.length for way in self._runner.ways[: programs.ways]]
            seconds, call = self._measure()
            self.picker = Picker(seconds, lengths, call)
        self._state = self._runner.on_mesh(programs.empty)

    def _measure(self) -> tuple[dict, float]:
        blank = [self._runner.on_mesh(self._programs.empty)]
        reader = Reader(self._runner, self._programs, self.room, timing.longest(self.room), blank.pop(), 0, 0)
        reader.read()
        return timing.measure(self._runner, self._programs, reader.begin(), self._places.order)

    def submit(self, request: Request, follows: bool = False) -> int:
        """The ticket of a request, which is decoded as soon as a row is free. follows: every event has its reply so far.

        Raises:
          BadInput: it asks for more than there is room for.
        """
        self.room.check(request)
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._waiting.append(Seat(ticket, request, follows, time.perf_counter()))
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
        waits for it (one that adapts: until any row ends), and says what became of each request that has a row. After so many
        ``reading_seconds`` no further chunk of a prompt is read, so that those that run are not stopped for longer than that and
        one chunk. At least one is, where a row is free; and where a prompt is left in part, at least one round is run."""
        if self._state is None:
            self.prepare()
        self._fill(reading_seconds)
        if not self._seats:
            return []
        began, ran = time.perf_counter(), 0
        while True:
            counts, new = self._run(max(rounds, int(self.is_reading)) - ran)
            ran += new
            if self.picker is None or new == 0 or ran >= rounds or any(counts["done"][row] for row in self._seats):
                break
        told = [row for row, seat in self._seats.items() if counts["done"][row] or seat.follows]
        events = self._events(counts, self._seats, told)
        self.round_seconds = (time.perf_counter() - began) / ran if ran else self.round_seconds
        over = {row for row, event in events.items() if event.done}
        asked = set(watch(list(events.values()))) if watch is not None else set()
        ended = {row for row, event in events.items() if event.ticket in asked} - over
        events |= self._events(counts, ended, ended, are_ended=True)
        for row in over | ended if self._reuses_replies else ():
            self._kept.keep(row, self._seats[row].in_cache(events[row].reply), 0)
        self._end(ended)
        for row in over:
            del self._seats[row]
        return list(events.values())

    def _run(self, rounds: int) -> tuple[dict, int]:
        """Decodes at most so many rounds of the busy rows; the `COUNTS` of all rows, and how many rounds there were."""
        rows, way, ends = self._arrange(), 0, loop.ALL_ROWS
        if self.picker is not None:
            picked = self.picker.pick(rows, self.running)
            way, rounds, ends = picked.way, min(rounds, picked.rounds), 1
        elif len(self._places.sizes) > 1 or (self.waiting and self.running == self.rows):
            ends = 1
        run, began = self._programs.runs[rows, way], time.perf_counter()
        self._state = self._runner.call(run, self._state, np.int32(rounds), np.int32(ends), way=way)
        counts = self._runner.fetch({name: getattr(self._state, name) for name in COUNTS})
        seats = list(self._seats)
        each = counts["rounds"][seats] - self._rounds[seats]
        before = np.where(self._rounds[seats] > 0, self._counts[seats], 1)  # the pass over a prompt has chosen the first token
        tokens = int((counts["count"][seats] - before).sum())
        self._rounds, self._counts = np.array(counts["rounds"]), np.array(counts["count"])
        decoded, ran = int(each.sum()), int(each.max())
        if self.picker is not None:
            took = None if self._runner.mesh.is_multi_process else time.perf_counter() - began
            self.picker.saw(rows, ran, decoded, max(tokens, decoded), took)
        self.decoded, self.offered = self.decoded + decoded, self.offered + rows * ran
        self.rounds_of[self._runner.ways[way].name] += ran
        return counts, ran

    def _arrange(self) -> int:
        """Rows of the smallest program that has room for the busy ones, which move down to its rows."""
        rows, moves = self._places.arrange(self._seats)
        for source, goal in moves:
            self._state = self._runner.on_mesh(self._programs.swap, self._state, np.int32(source), np.int32(goal))
            self._kept.swap(source, goal)
            self._seats[goal] = self._seats.pop(source)
            self._rounds[goal], self._counts[goal] = self._rounds[source], self._counts[source]
        return rows

    def _fill(self, seconds: float) -> None:
        until, has_read = self.clock() + seconds if self.waiting else 0.0, False
        while self.is_reading or (self._waiting and self.running < self.rows):
            if has_read and self.clock() >= until:
                return
            has_read = True
            if self._reading is None:
                self._reading = self._open(self._waiting.popleft())
            seat, reader = self._reading
            reader.read()
            if reader.is_complete:
                self._insert(dataclasses.replace(seat, taken=reader.taken), reader)
                self._reading = None

    def _open(self, seat: Seat) -> tuple[Seat, Reader]:
        row, taken = (0, 0) if seat.request.scores_prompt else self._kept.find(seat.request.prompt)
        return seat, Reader(self._runner, self._programs, self.room, seat.request, self._state, row, taken)

    def _insert(self, seat: Seat, reader: Reader) -> None:
        free = [row for row in self._places.order if row not in self._seats]
        row = self._kept.choose(free, reader.source, reader.taken)
        self._state = self._runner.on_mesh(self._programs.insert, self._state, np.int32(row), reader.begin())
        self._kept.keep(row, [] if seat.request.scores_prompt else seat.request.prompt, seat.request.limits.new)
        self._seats[row], self._rounds[row] = dataclasses.replace(seat, read=time.perf_counter()), 0

    def _events(self, counts: dict, rows: Collection[int], told: Collection[int], are_ended: bool = False) -> dict[int, Event]:
        """Of these rows, with the replies of those that are ``told``, whose texts alone are fetched; are_ended: by the caller."""
        texts, events = self._runner.fetch_texts(self._programs, self._state, told), {}
        for row in rows:
            seat, done = self._seats[row], are_ended or bool(counts["done"][row])
            reply = self._reply(counts, row, texts[row], are_ended) if row in texts else None
            events[row] = Event(seat.ticket, reply, done, int(counts["count"][row]), seat.taken)
        return events

    def _reply(self, counts: dict, row: int, texts: dict, is_ended: bool) -> Reply:
        seat, now = self._seats[row], time.perf_counter()
        host = texts | {name: value[row : row + 1] for name, value in counts.items()} | {"logprobs": None}
        if seat.request.sampling.logprobs > 0:
            host["logprobs"] = self._runner.fetch_logprobs(self._programs, self._state, row)
        reply = reply_of(host, 0, seat.request, now - seat.began, seat.read - seat.began, is_ended)
        return dataclasses.replace(reply, cached_tokens=seat.taken)

    def _end(self, rows: Collection[int]) -> None:
        """Frees rows that are not done, here and on the device."""
        for row in rows:
            del self._seats[row]
        if rows:
            self._state = self._runner.end(self._state, rows)
