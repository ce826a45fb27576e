"""The way that is taken is the one that promises the most tokens per second; trials lose next to nothing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redrafter_jax.decode import picker
from redrafter_jax.decode.picker import Evidence, Picker, pick

LENGTHS = [4, 2, 0]  # deep, shallow, plain


def known(*means: float, rounds: float = 1e6) -> list[Evidence]:
    """Of the three ways, so sure that nothing is worth a trial."""
    return [Evidence(length, mean * rounds, rounds) for length, mean in zip(LENGTHS, means, strict=True)]


@settings(deadline=None)
@given(st.tuples(st.floats(1, 5), st.floats(1, 3), st.just(1.0)), st.tuples(*[st.floats(0.001, 1.0)] * 3), st.integers(1, 16))
def test_of_what_is_known_the_best_promise_is_taken(means, seconds, busy):
    found = pick(seconds, known(*means), busy, allowance=0.0)
    promises = [mean / cost for mean, cost in zip(means, seconds, strict=True)]
    assert promises[found.way] == pytest.approx(max(promises)) and found.loses == 0
    assert found.rounds == max(1, int(picker.REVIEW_SECONDS / seconds[found.way]))


def test_another_number_of_rows_has_other_costs_and_so_another_way():
    made = Picker({(1, 0): 10, (1, 1): 9, (1, 2): 8, (16, 0): 40, (16, 1): 22, (16, 2): 10}, LENGTHS)
    made.evidence = known(2.5, 1.6, 1.0)
    assert made.pick(1, 1).way == 0 and made.pick(16, 12).way == 2
    made.evidence = known(2.5, 2.4, 1.0)
    assert made.pick(16, 12).way == 1


def test_a_way_that_could_be_better_is_tried_as_long_as_it_loses_little_and_one_that_cannot_never():
    seconds = (0.010, 0.009, 0.006)
    unsure = [known(1.3, 1, 1)[0], Evidence(2, 4 * 1.3, 4), known(1, 1, 1.0)[2]]
    trial = pick(seconds, unsure, 4, allowance=1.0)
    assert (trial.way, trial.rounds) == (1, 2) and trial.loses == pytest.approx(0.009 - 1.3 * 0.006)
    assert pick(seconds, unsure, 4, allowance=2 * trial.loses * 1.01).way == 1
    assert pick(seconds, unsure, 4, allowance=2 * trial.loses * 0.99).way == 2
    hopeless = (0.010, 0.0181, 0.006)  # even three tokens a round are fewer per second than one of plain decoding
    assert pick(hopeless, [unsure[0], Evidence(2, 4 * 2.9, 4), unsure[2]], 4, allowance=9.0).way == 2


def test_what_is_known_of_a_way_fades_where_it_is_not_taken_and_follows_the_latest_where_it_is():
    sure = known(4.0, 1.0, 1.0, rounds=256)[0]
    assert sure.behind(256 * 5, 256).mean == pytest.approx((4 / 2.718 + 5) / (1 + 1 / 2.718), rel=1e-3)
    faded = sure.aged(40 * int(picker.STALE_ROUNDS))
    assert (faded.mean, faded.rounds) == pytest.approx((picker.guess(4).mean, picker.GUESS_ROUNDS))
    assert sure.aged(100).most > sure.most and picker.guess(0).most == picker.guess(0).mean == 1


def run(made: Picker, rates, seconds: float, rows=4, seed=0) -> tuple[float, float]:
    """Tokens per second over so many seconds, in which drafts of each way are accepted at rates of (time, way); and the share of
    time in trials."""
    draw, clock, tokens, tried = random.Random(seed), 0.0, 0, 0.0
    while clock < seconds:
        picked, new = made.pick(rows, rows), 0
        for _ in range(picked.rounds * rows):
            new += 1
            for _ in range(LENGTHS[picked.way]):
                if draw.random() > rates(clock, picked.way):
                    break
                new += 1
        took = picked.rounds * made.seconds[rows, picked.way]
        made.saw(rows, picked.rounds, picked.rounds * rows, new)
        clock, tokens, tried = clock + took, tokens + new, tried + took * (picked.loses > 0)
    return tokens / clock, tried / clock


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("costs", [(0.010, 0.009, 0.008), (0.020, 0.014, 0.010), (0.050, 0.024, 0.010)], ids=str)
def test_over_a_minute_it_is_within_three_percent_of_the_best_fixed_way(costs, rate):
    made = Picker({(4, way): cost for way, cost in enumerate(costs)}, LENGTHS)
    best = max(4 * sum(rate**depth for depth in range(length + 1)) / cost for length, cost in zip(LENGTHS, costs, strict=True))
    assert run(made, lambda *_: rate, 60.0)[0] > 0.97 * best


def test_it_notices_when_texts_become_easy_and_when_they_become_hard_again():
    costs = (0.020, 0.014, 0.010)
    made = Picker({(4, way): cost for way, cost in enumerate(costs)}, LENGTHS)
    for rate, best in ((0.1, 2), (0.9, 0), (0.1, 2)):
        run(made, lambda *_, rate=rate: rate, 30.0)
        late, _ = run(made, lambda *_, rate=rate: rate, 10.0)
        assert late > 0.95 * 4 * sum(rate**depth for depth in range(LENGTHS[best] + 1)) / costs[best]
