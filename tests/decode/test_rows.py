"""Every row of a batch is decoded by its own request: what stands beside it changes nothing of it."""

import dataclasses

import jax
import numpy as np
import pytest

from redrafter_jax.decode import loop
from redrafter_jax.decode.batch import stop_id_table
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from tests import support
from tests.support import compilations

SHAPE = Shape(4, 4)
PROMPTS = [[1, 5, 9], [4, 8, 100, 200, 7, 7], [3] * 20, [9, 8], [7] * 11, [2, 300], [1, 5, 9]]
SAMPLINGS = [
    Sampling(),
    Sampling(1.0),
    Sampling(0.7, rule="independent"),
    Sampling(1.2, rule="typical"),
    Sampling(1.0, top_k=5),
    Sampling(1.5, top_p=0.8),
    Sampling(0.0, top_k=3, top_p=0.5, rule="typical"),
]
LIMITS = [Limits(40), Limits(23), Limits(1), Limits(40, length=12), Limits(33), Limits(40), Limits(17)]
ROWS, SEEDS = len(PROMPTS), [10, 11, 12, 13, 14, 15, 16]


def outcome(reply) -> tuple:
    """All of a reply but its times and its number."""
    return reply.token_ids, reply.drafted, reply.finish_reason, reply.rounds, reply.accepted_histogram, reply.seed


@pytest.fixture(scope="module")
def engine(mha):
    """One for all tests, so that they share its compiled programs."""
    return Engine(mha[0], Recurrent(mha[1], SHAPE))


@pytest.fixture(scope="module")
def alone(engine):
    """What the engine answers to each request alone, with limits of 40 tokens."""
    requests = zip(PROMPTS, SAMPLINGS, SEEDS, strict=True)
    return [next(engine.generate([prompt], how, Limits(40), seeds=[seed])) for prompt, how, seed in requests]


def test_a_row_of_a_mixed_batch_is_what_it_is_alone(engine, alone):
    mixed = list(engine.generate(PROMPTS, SAMPLINGS, Limits(40), SEEDS, ROWS))
    assert [outcome(reply) for reply in mixed] == [outcome(reply) for reply in alone]
    assert len({tuple(reply.token_ids) for reply in mixed[:-1]}) == ROWS - 1
    assert mixed[-1].token_ids == mixed[0].token_ids  # greedy, whatever its seed, filters and rule


def test_the_tokens_of_exact_rows_are_those_of_plain_decoding(mha, alone):
    plain = list(Engine(mha[0]).generate(PROMPTS, SAMPLINGS, Limits(40), SEEDS, ROWS))
    same = [fast.token_ids == slow.token_ids for fast, slow in zip(alone, plain, strict=True)]
    assert same == [how.is_exact for how in SAMPLINGS]


def test_limits_and_stop_ids_cut_each_row_of_a_mixed_batch_where_its_own_say(engine, alone):
    """Against a loop over the tokens that come without limits."""
    stops = [[alone[row].token_ids[15 - row], 300 + row][: row % 3] for row in range(ROWS)]
    replies = list(engine.generate(PROMPTS, SAMPLINGS, LIMITS, SEEDS, ROWS, stops))
    for prompt, limits, ends, free, reply in zip(PROMPTS, LIMITS, stops, alone, replies, strict=True):
        room = min(limits.new, (limits.length or 10**6) - len(prompt))
        expected, reason = [], "length"
        for token in free.token_ids[:room]:
            expected.append(token)
            if token in ends:
                reason = "stop"
                break
        assert (reply.token_ids, reply.finish_reason) == (expected, reason)
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}


def test_replies_say_which_prompt_of_the_call_they_answer(mha):
    plain = Engine(mha[0])
    assert [reply.index for reply in plain.generate(PROMPTS[:5], limits=Limits(3), batch=2)] == [0, 1, 2, 3, 4]
    *_, last = plain.stream(PROMPTS[:2], limits=Limits(3), seeds=None, rounds=9)
    assert [(reply.index, reply.seed) for reply in last.replies] == [(0, 0), (1, 1)]


def test_other_requests_of_the_same_kinds_compile_nothing(engine, alone):
    list(engine.generate(PROMPTS, SAMPLINGS, Limits(40), SEEDS, ROWS))
    others = [*SAMPLINGS[1:], Sampling(0.3, 7)]
    with compilations() as found:
        list(engine.generate(PROMPTS[::-1], SAMPLINGS[::-1], Limits(64), range(ROWS), ROWS, [1, 2, 3]))
        list(engine.generate(PROMPTS, others, LIMITS, SEEDS, ROWS, [[1], [], [2, 3], [4, 5, 6, 7], [8], [9], [10]]))
    assert not found


def test_a_greedy_batch_asks_for_no_noise_no_filter_and_no_rule():
    policy = make_policy([Sampling(), Sampling(0.0, 5, 0.5, "typical")], [0, 1])
    assert not (policy.sampled or policy.filtered or policy.shown or policy.typical)
    assert policy.top_k_B.tolist() == [0, 0] and policy.top_p_B.tolist() == [1, 1] and not policy.typical_B.any()
    mixed = make_policy([Sampling(), Sampling(0.5, 5, rule="independent")], [0, 1])
    assert (mixed.sampled, mixed.filtered, mixed.shown, mixed.typical) == (True, True, False, False)


RUN_LIMITS = [6, 30, 18, 30]


def started(target):
    state = support.started(target, [[3] * 5] * len(RUN_LIMITS), max(RUN_LIMITS), SHAPE.length)
    return dataclasses.replace(state, limit=support.put(RUN_LIMITS, np.int32))


def test_a_run_that_may_end_one_row_returns_each_time_that_one_does(mha):
    expected, state = started(mha[0]), started(mha[0])
    ended = []
    while len(ended) < 10 and not all(ended[-1] if ended else [False]):
        before = np.asarray(state.done)
        state = loop.run(mha[0], Recurrent(mha[1], SHAPE), state, 1000, ends=1)
        ended.append(np.asarray(state.done).tolist())
        while (np.asarray(expected.done) == before).all():  # one round at a time
            expected = loop.run(mha[0], Recurrent(mha[1], SHAPE), expected, 1)
        jax.tree.map(np.testing.assert_array_equal, state.rounds, expected.rounds)
        assert support.texts(state) == support.texts(expected)
    assert ended == [[True, False, False, False], [True, False, True, False], [True, True, True, True]]


def test_a_run_that_may_end_one_row_is_one_program_and_stops_at_its_rounds(mha):
    loop.run(mha[0], Recurrent(mha[1], SHAPE), started(mha[0]), 1, ends=1)
    with compilations() as found:
        state = loop.run(mha[0], Recurrent(mha[1], SHAPE), started(mha[0]), 1, ends=1)
        assert np.asarray(state.rounds).tolist() == [1, 1, 1, 1]
        for _ in range(3):  # rows that end together end one run
            state = loop.run(mha[0], Recurrent(mha[1], SHAPE), state, 1000, ends=1)
        assert np.asarray(state.done).all()
        again = np.asarray(state.rounds)
        assert np.asarray(loop.run(mha[0], Recurrent(mha[1], SHAPE), state, 1000, ends=1).rounds).tolist() == again.tolist()
    assert not found


def test_the_table_of_stop_ids_is_as_wide_as_a_power_of_two():
    assert stop_id_table([[], []], 3).tolist() == [[-1] * 4] * 3
    table = stop_id_table([[1, 2, 3, 4, 5], [7]], 2)
    assert table.tolist() == [[1, 2, 3, 4, 5, -1, -1, -1], [7] + [-1] * 7]
    assert [stop_id_table([range(count)], 1).shape[1] for count in (4, 8, 9, 16, 17)] == [4, 8, 16, 16, 32]
