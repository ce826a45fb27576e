"""A target and what proposes for it, on their mesh, with the programs that decode with them. Each call sets the mesh, which
belongs to a thread, and waits for its result."""

import contextlib
import time
from collections.abc import Callable, Collection, Sequence

import jax
import numpy as np

from redrafter_jax.decode import loop
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.prefill import Bucket
from redrafter_jax.decode.programs import Programs, Refilled, compile_programs, compile_refilled, flatten
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.report import TEXTS
from redrafter_jax.decode.room import Inputs, Room, put
from redrafter_jax.devices import processes
from redrafter_jax.model.target import Target


class Runner:
    """``proposer`` is what was given, as it decodes (`Proposer.prepare`); ``ways``: it, and the same in other ``shapes``, of which
    one of length 0 is plain decoding.

    ``compile_seconds`` adds up what was spent on compiling; ``on_compile`` makes a context that programs are compiled in.

    Raises:
      BadInput: the proposer does not fit the target.
    """

    def __init__(self, target: Target, proposer: Proposer, shapes: Sequence[Shape] = ()):
        self.mesh: jax.sharding.Mesh = jax.tree.leaves(target)[0].sharding.mesh
        with jax.set_mesh(self.mesh):
            self.proposer = proposer.prepare(target)
        self.target = target.showing(self.proposer.features)
        self.ways = _distinct([self.proposer, *(self.proposer.in_shape(shape) if shape.length else Plain() for shape in shapes)])
        self.compile_seconds = 0.0
        self.on_compile: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        self._weights = [flatten(self.target, way) for way in self.ways]
        self._programs: dict[tuple, Programs | Refilled] = {}

    @property
    def context(self) -> int:
        """Tokens of prompt and reply at most, where a request does not say."""
        return self.target.config.max_position_embeddings

    @property
    def rows_at_least(self) -> int:
        """Devices that rows are split over: no batch can have fewer rows."""
        return self.mesh.shape["data"]

    def put(self, requests: Sequence[Request], rows: int, room: Room) -> Inputs:
        """`room.put`."""
        with jax.set_mesh(self.mesh):
            return put(requests, rows, self.context, room)

    def programs(self, inputs: Inputs, bucket: Bucket) -> Programs:
        """Of a batch that begins with such inputs."""
        key = (bucket, jax.tree.structure(inputs), *(leaf.shape for leaf in jax.tree.leaves(inputs)))
        return self._kept(key, lambda: compile_programs(self.target, self.proposer, inputs, bucket, self.on_compile))

    def refilled(self, rows: int, room: Room, ways: int = 1, sizes: Sequence[int] = ()) -> Refilled:
        """Of a running batch of so many rows, with so many of the `ways`, the first ones, and programs that decode the first rows
        in these ``sizes``; without any, all rows. Prompts are read one at a time, beside rows without one where rows are split over
        devices."""
        few, inputs = self.put([], self.rows_at_least, room), self.put([], rows, room)
        given = (inputs, few, room, tuple(sizes) or (rows,), self.on_compile)
        return self._kept((rows, room, ways, given[3]), lambda: compile_refilled(self.target, self.ways[:ways], *given))

    def _kept(self, key: tuple, compiled: Callable):
        if key not in self._programs:
            began = time.perf_counter()
            self._programs[key] = self.on_mesh(compiled)
            self.compile_seconds += time.perf_counter() - began
        return self._programs[key]

    def call(self, program: jax.stages.Compiled, *arguments, way: int = 0):
        """The result of a program that takes the weights first, of that of the `ways`."""
        return self.on_mesh(program, self._weights[way], *arguments)

    def end(self, state: DecodeState, rows: Collection[int]) -> DecodeState:
        """With these rows done."""
        is_ended = np.isin(np.arange(state.done.shape[0]), list(rows))
        with jax.set_mesh(self.mesh):
            rows_B = processes.put(is_ended, "data")
        return self.on_mesh(loop.end, state, rows_B)

    def turns(self, room: Room) -> int:
        """How many of the `ways`, the first ones, may take turns in a batch with this room: those whose rounds fit, and only the
        first of all where a rule lets drafts decide the text."""
        if room.needs.drawn or room.needs.typical:
            return 1
        fits = [way.round.length <= room.bucket.length for way in self.ways]
        return fits.index(False) if False in fits else len(fits)

    def fetch_texts(self, programs: Refilled, state: DecodeState, rows: Collection[int]) -> dict[int, dict]:
        """`report.TEXTS` of each of these rows ``[1, S]``, on the host."""
        parts = {name: getattr(state, name) for name in TEXTS}
        if len(rows) > 1 and not self.mesh.is_multi_process:  # all at once, for a call costs more than what other rows have
            whole = self.fetch(parts)
            return {row: {name: value[row : row + 1] for name, value in whole.items()} for row in rows}
        return {row: self.fetch(self.on_mesh(programs.text, parts, np.int32(row))) for row in rows}

    def fetch_logprobs(self, programs: Refilled, state: DecodeState, row: int):
        """The log-probabilities of one row ``[1, S, ...]``, on the host."""
        return self.fetch(self.on_mesh(programs.logprobs, state.logprobs, np.int32(row)))

    def fetch(self, tree):
        """The arrays on the host, in every process."""
        return self.on_mesh(processes.fetch, tree)

    def on_mesh(self, call: Callable, *arguments):
        """The result of a call, after waiting for it."""
        with jax.set_mesh(self.mesh):
            return jax.block_until_ready(call(*arguments))


def _distinct(ways: Sequence[Proposer | None]) -> tuple[Proposer, ...]:
    """Each once, and the first one first: those of one structure differ in nothing that a program could."""
    found: dict[jax.tree_util.PyTreeDef, Proposer] = {}
    for way in ways:
        if way is not None:
            found.setdefault(jax.tree.structure(way), way)
    return tuple(found.values())
