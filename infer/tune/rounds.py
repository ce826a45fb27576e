"""Rounds of one way to draft, compiled: some of them timed, or all to the end of the replies."""

import dataclasses
import time

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from infer.stages import clock
from redrafter_jax.decode import loop
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.devices import processes
from redrafter_jax.model.target import Target

WARM_ROUNDS = 2  # before those that are timed


class RoundsProgram:
    """Rounds of a proposer without memory, compiled for states like this one. Where programs run in turn, the first round of each
    finds the weights out of the CPU's cache, which decoding does once per reply and not once in so few rounds."""

    def __init__(self, target: Target, proposer: Proposer, state: DecodeState):
        self.places, self.features = proposer.round.length + 1, target.features
        self.weights, structure = jax.tree.flatten((target, proposer))
        rounds_of = jax.jit(lambda weights, *given: loop.run(*structure.unflatten(weights), *given), donate_argnums=1)
        self.run = rounds_of.lower(self.weights, self._own(state), jnp.int32(loop.ALL_ROUNDS)).compile()

    def _own(self, state: DecodeState) -> DecodeState:
        """A copy that the program takes over, with a histogram for this proposer's rounds."""
        histogram_BM = jnp.zeros((len(state.g), self.places), jnp.int32, out_sharding=P("data", None))
        return dataclasses.replace(jax.tree.map(jnp.copy, state), histogram=histogram_BM)

    def round_seconds(self, state: DecodeState, rounds: int) -> float:
        """Seconds per round of so many behind `WARM_ROUNDS`, which must all take place."""
        warm = jax.block_until_ready(self.run(self.weights, self._own(state), jnp.int32(WARM_ROUNDS)))
        return clock(lambda: self.run(self.weights, warm, jnp.int32(rounds))) / rounds

    def reply_seconds(self, state: DecodeState) -> tuple[float, int]:
        """Seconds from this state to the end of its replies, and the rounds of the slowest row."""
        own, began = jax.block_until_ready(self._own(state)), time.perf_counter()
        last = jax.block_until_ready(self.run(self.weights, own, jnp.int32(loop.ALL_ROUNDS)))
        seconds = time.perf_counter() - began
        return seconds, int(processes.fetch(last.histogram).sum(1).max())
