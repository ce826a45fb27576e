"""Reads the prompt of one request at a time for a running batch, a chunk per call (`reading.py`)."""

import numpy as np

from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.programs import Refilled
from redrafter_jax.decode.room import Room
from redrafter_jax.decode.runner import Runner
from redrafter_jax.devices import processes


class Reader:
    """A request's prompt, of which ``taken`` tokens come from a row of the running state. tokens: how many are there so far. A
    request that scores its prompt is read as a whole, by a program of its own."""

    def __init__(self, runner: Runner, programs: Refilled, room: Room, request: Request, state: DecodeState, row: int, taken: int):
        self.request, self.source, self.taken, self.tokens = request, row, taken, taken
        self._runner, self._programs, self._room = runner, programs, room
        self._inputs = runner.put([request], runner.rows_at_least, room)
        self._reading = None if request.scores_prompt else runner.on_mesh(programs.take, state, np.int32(row), np.int32(taken))

    @property
    def is_complete(self) -> bool:
        return self.tokens == len(self.request.prompt)

    def read(self) -> None:
        """The next chunk."""
        if self.request.scores_prompt:
            self.tokens = len(self.request.prompt)
            return
        room, left = self._room, len(self.request.prompt) - self.tokens
        size = next((size for size in room.chunks if size >= left), room.chunks[-1])
        part = np.zeros((self._runner.rows_at_least, size), np.int32)
        count = min(size, left)
        part[0, :count] = self.request.prompt[self.tokens : self.tokens + count]
        tokens = self._runner.on_mesh(processes.put, part, "data", None)
        given = self._reading, tokens, np.int32(self.tokens), self._inputs[1]
        self._reading = self._runner.call(self._programs.reads[size], *given)
        self.tokens += count

    def begin(self) -> DecodeState:
        """The state behind the whole prompt, of a few rows of which the first counts."""
        if self.request.scores_prompt:
            return self._runner.call(self._programs.scoring, *self._inputs)
        prompt, _, *others = self._inputs
        return self._runner.call(self._programs.begin, self._reading, prompt, *others)
