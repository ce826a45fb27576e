"""`--check-grid`: how near the choice is to the best of all points, every one of them measured, and the best ones to the end."""

import functools
import statistics
from collections.abc import Sequence

from infer import stages
from infer.tune import costs, race
from infer.tune.measure import Measured, Tuner
from infer.tune.points import Point
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer

LAPS = 5  # in which every point of the grid is timed
FINALISTS = 4  # of the grid, which then decode all prompts to the end, with the choice
REPEATS = 5  # of that
COMPILED = 12  # points that are compiled at a time, before their programs are given back


def check(tuner: Tuner, outcome: Measured, context: int | None) -> str:
    """Measures every point at the batch of an outcome; returns a line that compares the choice with the best."""
    grid = [each.point for each in outcome.estimates]
    rough = time_all(tuner, grid, outcome.batch, context)
    choice, ranked = outcome.best, sorted(rough, key=rough.get, reverse=True)
    finalists = list(dict.fromkeys([*outcome.speedups, *ranked[:FINALISTS]]))
    seconds = decode_all(tuner, finalists, outcome.batch)
    speedups = {
        name: statistics.median(a / b for a, b in zip(seconds[None], found, strict=True)) for name, found in seconds.items()
    }
    first = max(speedups, key=speedups.get)
    return (
        f"batch {outcome.batch}: the fastest of {len(grid)} points and plain decoding is {_name(first)}, {speedups[first]:.3f}x;\n"
        f"  the choice, {_name(choice)}, has {speedups[choice]:.3f}x, {speedups[choice] / speedups[first]:.1%} of it"
    )


def _name(point: Point | None) -> str:
    return "plain decoding" if point is None else f"{point.shape} ({point.nodes} nodes, {point.head})"


def time_all(tuner: Tuner, grid: Sequence[Point], batch: int, context: int | None) -> dict[Point, float]:
    """The speed-up of every point over plain decoding, from rounds timed in turn."""
    setting, found = tuner.setting(batch, context), {}
    for first in range(0, len(grid), COMPILED):
        stages.free_programs()
        part = grid[first : first + COMPILED]
        tuner.say(f"batch {batch}: points {first + 1} to {first + len(part)} of {len(grid)}")
        setting.programs.clear()
        runs = {point: setting.rounds(point, tuner.proposer(point)) for point in part}
        runs |= {race.PLAIN: setting.rounds(race.PLAIN, Plain())}
        times = stages.in_turn(runs, LAPS)
        laps = [dict(zip(times, row, strict=True)) for row in zip(*times.values(), strict=True)]
        found |= {point: tuner.gain(point, batch) / race.round_cost(point, laps) for point in part}
        del runs  # and with it the programs
    return found


def decode_all(tuner: Tuner, points: Sequence[Point], batch: int) -> dict[Point | None, list[float]]:
    """Seconds of decoding all prompts to the end, of each point and of plain decoding (None), in turn; prefills not counted."""
    stages.free_programs()
    tuner.say(f"batch {batch}: all prompts with {len(points)} points and plainly")
    ways: dict[Point | None, Proposer] = {None: Plain(), **{point: tuner.proposer(point) for point in points}}
    runs = {point: functools.partial(_decode, *_compiled(tuner, proposer, batch)) for point, proposer in ways.items()}
    stages.in_turn(runs, 1)
    return stages.in_turn(runs, REPEATS)


def _compiled(tuner: Tuner, proposer: Proposer, batch: int) -> tuple[stages.DecodingProgram, list[tuple]]:
    engine, plan = Engine(tuner.target, proposer), tuner.plan
    makers, bucket = costs.group_inputs(engine, tuner.prompts, plan.sampling, plan.new, batch)
    inputs = [make() for make in makers]
    return stages.build(tuner.target, engine.proposer, inputs[0], bucket), inputs


def _decode(program: stages.DecodingProgram, inputs: Sequence[tuple]) -> float:
    return sum(program.decode(batch)[2] for batch in inputs)
