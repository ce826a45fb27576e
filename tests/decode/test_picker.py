"""The way that is taken is the one that promises the most tokens per second; trials lose next to nothing."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redrafter_jax.decode import picker
from redrafter_jax.decode.picker import Evidence, Picker, pick

LENGTHS = [4, 2, 0]  # deep, shallow, plain


def sure(length: int, mean: float, rounds: float = 1e9) -> Evidence:
    """So sure, by default, that nothing is worth a trial."""
    return Evidence(length, mean * rounds, rounds)


def tried(made: Picker) -> Picker:
    """As if each way had run at all numbers of rows."""
    for times in made.times.values():
        times.settle()
    return made


def known(*means: float) -> list[Evidence]:
    return [sure(length, mean) for length, mean in zip(LENGTHS, means, strict=True)]


@settings(deadline=None)
@given(st.tuples(st.floats(1, 5), st.floats(1, 3), st.just(1.0)), st.tuples(*[st.floats(0.001, 1.0)] * 3), st.integers(1, 16))
def test_of_what_is_known_the_best_promise_is_taken(means, seconds, busy):
    found = pick(seconds, known(*means), busy, allowance=0.0)
    promises = [mean / cost for mean, cost in zip(means, seconds, strict=True)]
    assert promises[found.way] == pytest.approx(max(promises)) and found.loses == 0


def test_it_decides_again_after_a_quarter_of_a_second_or_as_many_rounds_as_it_knows():
    assert pick((0.01, 0.02, 0.02), known(2.0, 1.0, 1.0), 4, 0.0) == picker.Pick(0, 25)
    assert pick((0.01, 0.02, 0.02), [Evidence(4, 32.0, 16.0), *known(2.0, 1.0, 1.0)[1:]], 4, 0.0).rounds == 8
    assert pick((0.9, 2.0, 2.0), known(2.0, 1.0, 1.0), 4, 0.0).rounds == 1


def test_another_number_of_rows_has_other_costs_and_so_another_way():
    made = tried(Picker({(1, 0): 10, (1, 1): 9, (1, 2): 8, (16, 0): 40, (16, 1): 22, (16, 2): 10}, LENGTHS))
    made.evidence = known(2.5, 1.6, 1.0)
    assert made.pick(1, 1).way == 0 and made.pick(16, 12).way == 2
    made.evidence = known(2.5, 2.4, 1.0)
    assert made.pick(16, 12).way == 1


def test_a_way_that_could_be_better_is_tried_as_long_as_it_loses_little_and_one_that_cannot_never():
    seconds = (0.010, 0.009, 0.006)
    unsure = [sure(4, 1.3), Evidence(2, rate=0.26), sure(0, 1.0)]  # 1.33 tokens, as a guess
    trial = pick(seconds, unsure, 4, allowance=1.0)
    assert (trial.way, trial.rounds) == (1, 2) and trial.loses == pytest.approx(0.009 - (1.26 + 0.26**2) * 0.006)
    assert pick(seconds, unsure, 4, allowance=2 * trial.loses * 1.01).way == 1
    assert pick(seconds, unsure, 4, allowance=2 * trial.loses * 0.99).way == 2
    hopeless = (0.010, 0.0181, 0.006)  # even three tokens a round are fewer per second than one of plain decoding
    assert pick(hopeless, [unsure[0], Evidence(2, rate=0.95), unsure[2]], 4, allowance=9.0).way == 2


def test_a_trial_of_the_time_of_a_way_begins_with_rounds_that_warm_up_and_all_of_it_must_be_affordable():
    seconds, least, known_well = (0.010, 0.013, 0.030), (0.010, 0.008, 0.030), known(1.1, 1.0, 1.0)
    loses = 0.013 - 0.010 / 1.1
    whole = (picker.COLD_ROUNDS + picker.TRIAL_ROUNDS) * loses + 0.004
    found = pick(seconds, known_well, 4, whole * 1.01, least, latest=0, switch=0.004)
    assert found == picker.Pick(1, picker.COLD_ROUNDS, pytest.approx(loses), 0.004)
    assert pick(seconds, known_well, 4, whole * 0.99, least, latest=0, switch=0.004).way == 0
    left = whole * 1.01 - picker.COLD_ROUNDS * loses - 0.004  # once it has warmed up
    assert pick(seconds, known_well, 4, left, least, latest=1, switch=0.004) == picker.Pick(1, 8, pytest.approx(loses), 0.0)


@pytest.mark.parametrize("call", [0.0, 0.002])
def test_all_that_trials_lose_stays_within_their_share_of_the_time(call):
    made, lost, clock = Picker({(4, 0): 0.010, (4, 1): 0.009, (4, 2): 0.006}, LENGTHS, call), 0.0, 0.0
    for _ in range(2000):
        made.evidence = [sure(4, 1.3), Evidence(2, rate=0.26), sure(0, 1.0)]  # it never learns
        picked = made.pick(4, 4)
        made.saw(4, picked.rounds, picked.rounds * 4, picked.rounds * 4)
        assert picked.switch in (0.0, pytest.approx(picker.SWITCH_CALLS * call))
        lost += picked.rounds * picked.loses + picked.switch
        clock += picked.rounds * made.times[4].rounds[picked.way]
    at_once = picker.MOST_TRIALS * 0.010 + picker.SWITCH_CALLS * call
    assert 0.8 < lost / (picker.TRIAL_SHARE * clock + at_once) < 1.001


def test_what_is_known_of_a_way_fades_where_it_is_not_taken_and_follows_the_latest_where_it_is():
    known_well = sure(4, 4.0, 256)
    after, kept = known_well.behind(256 * 5, 256), math.exp(-256 / picker.RECENT_ROUNDS)
    assert (after.tokens, after.rounds) == pytest.approx((256 * (4 * kept + 5), 256 * (kept + 1)))
    faded = known_well.aged(40 * int(picker.STALE_ROUNDS), 0.3)
    assert (faded.mean, faded.weight) == pytest.approx((1 + 0.3 + 0.09 + 0.027 + 0.0081, picker.GUESS_ROUNDS))
    rate = picker.rate_of(4.0, 4)
    assert known_well.aged(100, rate).most > known_well.aged(0, rate).most and Evidence(0, rate=0.9).most == Evidence(0).mean == 1
    assert picker.rate_of(picker.tokens_at(0.37, 5), 5) == pytest.approx(0.37, abs=1e-5)


def test_what_one_way_has_accepted_is_a_guess_for_others_and_fades_while_nothing_is_drafted():
    made = tried(Picker({(4, way): cost for way, cost in enumerate((0.03, 0.01, 0.009))}, LENGTHS))
    assert made.pick(4, 4).way == 1
    made.saw(4, 500, 2000, 2000 * 2)
    rate = picker.rate_of(2.0, 2)
    assert made.evidence[0].mean == pytest.approx(picker.tokens_at(rate, 4), rel=0.01) and made.evidence[0].rounds == 0
    made.saw(4, 1000, 4000, 4000)
    assert made.evidence[0].rate < 0.12
    assert made.pick(4, 4).way == 2
    made.saw(4, 10**6, 10**6, 10**6)
    assert made.evidence[0].rate == pytest.approx(picker.FIRST_RATE)


def test_what_a_round_takes_is_measured_again_whenever_a_way_is_taken_but_not_by_a_first_short_call():
    made = Picker({(1, 0): 0.009, (1, 1): 0.004, (1, 2): 0.003, (4, 0): 0.030, (4, 1): 0.010, (4, 2): 0.009}, LENGTHS, call=0.002)
    first, others = made.times[4].rounds, made.times[1].rounds
    assert made.pick(4, 4).way == 1
    made.saw(4, picker.WARM_ROUNDS - 1, 128, 256, seconds=9.0)  # weights were not in the caches
    assert made.times[4].rounds == first
    made.saw(4, 1, 4, 8, seconds=0.020)  # of the same way
    assert made.times[4].rounds[1] > first[1]
    made.pick(4, 4)
    before = made.times[4].rounds
    made.saw(4, 32, 128, 256)
    made.saw(4, 0, 0, 0, seconds=1.0)
    assert made.times[4].rounds == before and made.times[1].rounds == others


def trials(made: Picker, costs, rounds: int, is_timed: bool) -> list[tuple[int, int]]:
    """When the shallow way was tried, in rounds, and for how many, beside plain decoding, which is somewhat better."""
    found, clock = [], 0
    while clock < rounds:
        made.evidence = known(2.0, 1.1, 1.0)  # 67, 85 and 100 tokens per second and row
        picked = made.pick(4, 4)
        assert picked.way != 0
        if picked.way == 1:
            found.append((clock, picked.rounds))
        made.saw(4, picked.rounds, 4 * picked.rounds, 4 * picked.rounds, picked.rounds * costs[picked.way] if is_timed else None)
        clock += picked.rounds
    return found


COSTS = (0.030, 0.013, 0.010)


def test_a_way_that_may_be_faster_than_it_was_measured_is_tried_and_the_first_rounds_of_a_trial_warm_up():
    made = Picker({(4, way): cost for way, cost in enumerate(COSTS)}, LENGTHS)
    found = trials(made, COSTS, 300, is_timed=True)
    assert [rounds for _, rounds in found[:2]] == [picker.COLD_ROUNDS, picker.TRIAL_ROUNDS] and found[0][0] < 60
    more = len(trials(made, COSTS, 30_000, is_timed=True))
    assert 20 < more < 200  # what it takes may have changed


def test_where_times_are_not_seen_they_are_not_doubted():
    made = Picker({(4, way): cost for way, cost in enumerate(COSTS)}, LENGTHS)
    assert len(trials(made, COSTS, 30_000, is_timed=False)) <= 1


def test_one_bad_time_of_a_way_is_not_believed_for_good():
    """So the way that is better in fact is soon taken again."""
    made = tried(Picker({(4, 0): 0.030, (4, 1): 0.0150, (4, 2): 0.0125}, LENGTHS))
    costs = {(4, 0): 0.030, (4, 1): 0.010, (4, 2): 0.0125}
    run(made, 0.11, 10.0, costs=costs)
    assert run(made, 0.11, 20.0, seed=1, costs=costs) > 0.97 * max(speeds(0.11, costs.values()))


@pytest.mark.parametrize("wrong", [(1.0, 1.0, 1.6), (1.6, 1.0, 1.0), (0.6, 1.0, 1.0), (1.0, 0.7, 1.0), (1.0, 1.0, 0.7)], ids=str)
def test_what_was_measured_wrongly_is_found_out(wrong):
    costs = {(4, 0): 0.022, (4, 1): 0.014, (4, 2): 0.010}
    made = Picker({key: cost * each for (key, cost), each in zip(costs.items(), wrong, strict=True)}, LENGTHS)
    run(made, 0.45, 5.0, costs=costs)
    best = max(
        4 * sum(0.45**depth for depth in range(length + 1)) / cost for length, cost in zip(LENGTHS, costs.values(), strict=True)
    )
    assert run(made, 0.45, 20.0, seed=1, costs=costs) > 0.97 * best


def speeds(rate: float, costs) -> list[float]:
    """Expected tokens per second of four rows in each way."""
    ways = zip(LENGTHS, costs, strict=True)
    return [4 * sum(rate**depth for depth in range(length + 1)) / cost for length, cost in ways]


def run(made: Picker, rate: float, seconds: float, rows=4, seed=0, costs=None, call=0.0, cold=0.0, most=1 << 30, noise=0.0):
    """Tokens per second over so many seconds, in which drafts are accepted at this rate; costs: of a round, where they are not
    those that were measured beforehand; call, cold: what a call takes besides, and more behind another way; most: rounds of one."""
    draw, clock, tokens, costs, before = random.Random(seed), 0.0, 0, costs or made.seconds, None
    while clock < seconds:
        picked, new = made.pick(rows, rows), 0
        rounds = min(picked.rounds, most)
        for _ in range(rounds * rows):
            new += 1
            for _ in range(LENGTHS[picked.way]):
                if draw.random() > rate:
                    break
                new += 1
        took = (call + cold * (picked.way != before) + rounds * costs[rows, picked.way]) * draw.lognormvariate(0, noise)
        made.saw(rows, rounds, rounds * rows, new, took)
        clock, tokens, before = clock + took, tokens + new, picked.way
    return tokens / clock


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
def test_what_a_call_takes_besides_its_rounds_is_no_reason_to_stay(rate):
    """As on two cores with one row: short calls, and the first behind another way takes two rounds more."""
    costs = {(1, 0): 0.0040, (1, 1): 0.0029, (1, 2): 0.0014}
    gains = []
    for seed in range(4):
        made = Picker(costs, LENGTHS, call=0.0012)
        gains.append(run(made, rate, 20.0, 1, seed, costs, call=0.0015, cold=0.0025, most=40))
    ways = zip(LENGTHS, costs.values(), strict=True)
    best = max(40 * picker.tokens_at(rate, length) / (0.0015 + 40 * cost) for length, cost in ways)
    assert sum(gains) / 4 > 0.97 * best


@pytest.mark.parametrize("wrong", [(1.0, 1.0, 1.0), (1.0, 1.0, 1.3), (0.8, 1.2, 1.0)], ids=str)
@pytest.mark.parametrize("rate", [0.4, 0.8])
def test_clients_that_share_the_cores_are_no_part_of_a_round(rate, wrong):
    """As behind HTTP: calls of five rounds, and whatever their way is, six milliseconds besides."""
    costs = {(4, 0): 0.0065, (4, 1): 0.0037, (4, 2): 0.0020}
    promised, found = speeds(rate, costs.values()), []
    for seed in range(4):
        made = Picker({key: cost * each for (key, cost), each in zip(costs.items(), wrong, strict=True)}, LENGTHS, call=0.0004)
        for part in range(70):
            run(made, rate, 0.2, 4, 100 * seed + part, costs, call=0.006, cold=0.003, most=5, noise=0.15)
            found += [promised[made._last.way] / max(promised)] * (part >= 50)
    assert sum(found) / len(found) > 0.97


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("costs", [(0.010, 0.009, 0.008), (0.020, 0.014, 0.010), (0.050, 0.024, 0.010)], ids=str)
def test_over_a_minute_it_is_on_average_within_three_percent_of_the_best_fixed_way(costs, rate):
    made = Picker({(4, way): cost for way, cost in enumerate(costs)}, LENGTHS)
    best = max(speeds(rate, costs))
    gains = [run(made, rate, 20.0, seed=seed) for seed in range(3)]
    assert sum(gains) / 3 > 0.97 * best


def test_it_notices_when_texts_become_easy_and_when_they_become_hard_again():
    costs = (0.020, 0.014, 0.010)
    made = Picker({(4, way): cost for way, cost in enumerate(costs)}, LENGTHS)
    for rate, best in ((0.1, 2), (0.9, 0), (0.1, 2)):
        run(made, rate, 10.0)
        late = run(made, rate, 10.0, seed=1)
        assert late > 0.95 * 4 * sum(rate**depth for depth in range(LENGTHS[best] + 1)) / costs[best]
