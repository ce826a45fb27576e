"""What a call takes is told apart into its rounds and the rest, whatever else happens to the machine."""

import random

import pytest

from redrafter_jax.decode import round_times
from redrafter_jax.decode.round_times import RoundTimes

ROUNDS = [0.004, 0.003, 0.002]


def calls(times: RoundTimes, way: int, seconds: float, besides: float, count=200, noise=0.1, slower=1.0, seed=0) -> RoundTimes:
    """So many calls of 1 to 19 rounds."""
    draw = random.Random(seed)
    for _ in range(count):
        rounds = draw.randint(1, 19)
        times.saw(way, rounds, slower * (besides + rounds * seconds) * draw.gauss(1, noise))
    return times


def test_rounds_and_what_a_call_takes_besides_are_told_apart():
    times = calls(RoundTimes(ROUNDS, 0.0005), 1, 0.0036, besides=0.006)
    assert times.rounds[1] == pytest.approx(0.0036, rel=0.1) and times.call == pytest.approx(0.006, rel=0.2)
    times.saw(2, 8, 0.006 + 8 * 0.002)  # a short call of another way, beside the same clients: its rounds are as fast as before
    assert times.rounds[2] == pytest.approx(0.002, rel=0.15)


def test_calls_of_one_length_tell_at_least_what_such_a_call_takes():
    times = RoundTimes(ROUNDS, 0.0005)
    for _ in range(100):
        times.saw(0, 10, 0.055)
    assert times.call + 10 * times.rounds[0] == pytest.approx(0.055, rel=0.01)
    assert times.call > 0.001 and times.rounds[0] > 0.0045  # some of it each


def test_what_slows_one_way_is_expected_of_all():
    times = calls(RoundTimes(ROUNDS, 0.0), 0, ROUNDS[0], besides=0.0, count=400)
    before = times.rounds
    calls(times, 0, ROUNDS[0], besides=0.0, slower=1.5, count=400)
    grown = [now / then for now, then in zip(times.rounds, before, strict=True)]
    assert grown[0] == pytest.approx(1.5, rel=0.1) and all(1.2 < each < 1.6 for each in grown[1:])


def test_one_call_that_was_stopped_for_long_changes_little_where_much_is_known():
    times = calls(RoundTimes(ROUNDS, 0.0005), 0, ROUNDS[0], besides=0.0005)
    before = times.rounds[0]
    times.saw(0, 10, 60.0)
    assert before < times.rounds[0] < 1.15 * before


def test_times_are_positive_whatever_is_seen():
    times = RoundTimes(ROUNDS, 0.010)
    for rounds in (1, 30, 1, 30):
        times.saw(1, rounds, 1e-6)
        assert times.call >= 0 and min(times.rounds) > 0


def test_doubt_is_less_by_what_is_seen_and_grows_while_other_ways_run():
    times = RoundTimes(ROUNDS, 0.0005)
    first = times.doubt(1, 0)
    assert first == round_times.FIRST_DOUBT  # of both, and no more than of one
    for _ in range(30):
        times.saw(0, 10, 0.0405)
    tried = []
    for _ in range(3):
        times.saw(1, 8, 0.0245)
        tried.append(times.doubt(1, 0))
    assert first > tried[0] > tried[1] > tried[2] > times.doubt(0, 0) == 0
    assert tried[2] < 0.15 and times.doubt(2, 0) > 0.25
    calls(times, 0, ROUNDS[0], besides=0.0005, count=400)
    assert tried[2] < times.doubt(1, 0) <= first


def test_what_is_settled_is_not_doubted():
    times = RoundTimes(ROUNDS, 0.0005)
    times.settle()
    assert times.doubt(1, 0) == 0 and times.rounds == ROUNDS
