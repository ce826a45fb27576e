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
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.room import Inputs, Room, put
from redrafter_jax.devices import processes
from redrafter_jax.model.target import Target


class Runner:
    """``proposer`` is what was given, as it decodes (`Proposer.prepare`).

    ``compile_seconds`` adds up what was spent on compiling; ``on_compile`` makes a context that programs are compiled in.

    Raises:
      BadInput: the proposer does not fit the target.
    """

    def __init__(self, target: Target, proposer: Proposer):
        self.target = target
        self.mesh: jax.sharding.Mesh = jax.tree.leaves(target)[0].sharding.mesh
        with jax.set_mesh(self.mesh):
            self.proposer = proposer.prepare(target)
        self.compile_seconds = 0.0
        self.on_compile: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        self._weights = flatten(target, self.proposer)
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
        return self._kept(key, lambda: compile_programs(self.target, self.proposer, inputs, bucket))

    def refilled(self, rows: int, room: Room) -> Refilled:
        """Of a running batch of so many rows. Prompts are read one at a time, beside rows without one where rows are split over
        devices."""
        few = {size: self.put([], self.rows_at_least, room.of_prompt(size)) for size in room.prompts}
        inputs = self.put([], rows, room)
        given = self.target, self.proposer, inputs, few, room.bucket, room.scores
        return self._kept((rows, room), lambda: compile_refilled(*given))

    def _kept(self, key: tuple, compiled: Callable):
        if key not in self._programs:
            began = time.perf_counter()
            with self.on_compile():
                self._programs[key] = self.on_mesh(compiled)
            self.compile_seconds += time.perf_counter() - began
        return self._programs[key]

    def call(self, program: jax.stages.Compiled, *arguments):
        """The result of a program that takes the weights first."""
        return self.on_mesh(program, self._weights, *arguments)

    def end(self, state: DecodeState, rows: Collection[int]) -> DecodeState:
        """With these rows done."""
        is_ended = np.isin(np.arange(state.done.shape[0]), list(rows))
        with jax.set_mesh(self.mesh):
            rows_B = processes.put(is_ended, "data")
        return self.on_mesh(loop.end, state, rows_B)

    def fetch(self, tree):
        """The arrays on the host, in every process."""
        return self.on_mesh(processes.fetch, tree)

    def on_mesh(self, call: Callable, *arguments):
        """The result of a call, after waiting for it."""
        with jax.set_mesh(self.mesh):
            return jax.block_until_ready(call(*arguments))
