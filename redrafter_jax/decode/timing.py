"""What a round costs in each way to draft and at each number of rows: timed on the programs that will run, before the first
request."""

import json
import statistics
import time
from collections.abc import Sequence

import numpy as np

from redrafter_jax.decode import loop
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.programs import Refilled
from redrafter_jax.decode.request import Limits, Sampling
from redrafter_jax.decode.room import Room
from redrafter_jax.decode.runner import Runner
from redrafter_jax.devices import processes

MORE_ROUNDS = 4  # of the long call beyond the short one's
LAPS = 3  # of all programs in turn, so that what slows the machine for a while slows all of them
MORE_LAPS, MORE_SECONDS = 9, 1.5  # laps at most, as long as all of them took less


def longest(room: Room) -> Request:
    """The shortest prompt with the longest reply that there is room for."""
    return Request([0], Sampling(), Limits(min(room.bucket.new, room.longest - 1)), 0, ())


def measure(runner: Runner, programs: Refilled, few: DecodeState, order: Sequence[int]) -> tuple[dict, float]:
    """Seconds of a round by rows and way, medians of laps, and of a call besides its rounds, the median of all programs: the
    same in all processes of a mesh. A round is what a call of more rounds takes longer.

    Args:
      few: what the prompt of `longest` was read into.
      order: of rows, those of the smallest program first.
    """

    def busy(rows: int) -> DecodeState:
        state = runner.on_mesh(programs.empty)
        for row in order[:rows]:
            state = runner.on_mesh(programs.insert, state, np.int32(row), few)
        return state

    def run(state: DecodeState, rows: int, way: int, rounds: int) -> tuple[DecodeState, float, int]:
        began = time.perf_counter()
        state = runner.call(programs.runs[rows, way], state, np.int32(rounds), np.int32(loop.ALL_ROWS), way=way)
        return state, time.perf_counter() - began, int(np.max(runner.fetch(state.rounds)))

    def once(rows: int, way: int) -> tuple[float, float]:
        state, *_ = run(busy(rows), rows, way, 1)  # which finds the weights of another program in the caches
        state, short, before = run(state, rows, way, 1)
        state, long, after = run(state, rows, way, 1 + MORE_ROUNDS)
        more = after - before - 1
        seconds = (long - short) / more if more > 0 and long > short else long / max(1, after - before)
        return seconds, max(0.0, short - seconds)

    found, began = {key: [] for key in programs.runs}, time.perf_counter()
    for lap in range(MORE_LAPS):
        if lap >= LAPS and (runner.mesh.is_multi_process or time.perf_counter() - began > MORE_SECONDS):
            break
        for key in found:
            found[key].append(once(*key))
    medians = {key: [statistics.median(parts) for parts in zip(*laps, strict=True)] for key, laps in found.items()}
    if runner.mesh.is_multi_process:  # as the first of them found
        medians = dict(zip(medians, json.loads(processes.broadcast_text(json.dumps(list(medians.values())))), strict=True))
    return {key: seconds for key, (seconds, _) in medians.items()}, statistics.median(call for _, call in medians.values())
