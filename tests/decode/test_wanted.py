"""What only some rows want is computed in the rounds in which one of them runs, and in no other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode import adjust, logprobs, loop, sample
from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.decode.policy import Needs, make_policy
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.request import Sampling
from redrafter_jax.decode.wanted import filled, where_wanted
from redrafter_jax.devices.mesh import make_mesh
from tests import support

SHORT, LONG = 4, 9  # tokens of the row that wants something, and of the one that does not
WISHES = {
    "noise": (Sampling(1.0), jax.random, "gumbel"),
    "filters": (Sampling(1.0, top_k=3), sample, "_smallest_kept"),
    "penalties": (Sampling(frequency_penalty=0.5), adjust, "_penalise"),
    "log-probabilities": (Sampling(logprobs=2), logprobs, "_measure"),
}


@pytest.mark.parametrize("wish", WISHES)
def test_a_round_computes_what_a_row_wants_while_that_row_runs(wish, mha, monkeypatch):
    sampling, module, name = WISHES[wish]
    calls, real = [], getattr(module, name)

    def counted(*arguments, **more):
        jax.debug.callback(lambda: calls.append(name))
        return real(*arguments, **more)

    monkeypatch.setattr(module, name, counted)
    policy = make_policy([sampling, Sampling()], [0, 1])
    state = support.started(mha[0], [[1, 5, 9], [4, 8]], LONG, 0, policy)
    state = dataclasses.replace(state, limit=support.put([SHORT, LONG]))
    run = jax.jit(loop.run.__wrapped__)  # a program of its own, which no other test finds
    seen = []
    for _ in range(LONG - 1):
        calls.clear()
        state = run(mha[0], Plain(), state, 1)
        jax.effects_barrier()
        seen.append(len(calls) > 0)
    assert seen == [True] * (SHORT - 1) + [False] * (LONG - SHORT)
    assert np.asarray(state.count).tolist() == [SHORT, LONG]


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_one_row_that_wants_it_is_enough_and_none_is_not(mesh):
    jax.set_mesh(make_mesh(*mesh))
    x = jax.device_put(np.arange(32, dtype=np.float32).reshape(4, 8), jax.P("data", "model"))

    @jax.jit
    def found(wants_B, x_BV):
        return where_wanted(wants_B, lambda: (2 * x_BV, x_BV > 3), filled(lambda: (2 * x_BV, x_BV > 3), 1))

    for wanted in ([False] * 4, [False, False, False, True], [True] * 4):
        doubled, above = found(support.put(wanted), x)
        np.testing.assert_array_equal(doubled, 2 * np.asarray(x) if any(wanted) else np.ones((4, 8)))
        np.testing.assert_array_equal(above, np.asarray(x) > 3 if any(wanted) else np.ones((4, 8), bool))
        assert doubled.sharding.is_equivalent_to(x.sharding, 2) and doubled.dtype == jnp.float32


def test_a_row_without_wishes_is_greedy_and_the_others_keep_theirs():
    wishes = Sampling(0.7, top_k=5, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.3, logprobs=1)
    policy = make_policy([wishes, wishes, Sampling()], [0, 1, 2], min_news=[4, 4, 0])
    left = policy.without(support.put([True, False, False]))
    for each, expected in ((policy, [True, True, False]), (left, [False, True, False])):
        for flags in (each.samples_B, each.filters_B, each.adjusts_B, each.penalties.are_on_B, each.reports_B, each.min_new_B > 0):
            assert np.asarray(flags).tolist() == expected
    assert jax.tree.map(lambda leaf: leaf.dtype, left) == jax.tree.map(lambda leaf: leaf.dtype, policy)


@pytest.mark.parametrize(
    "wish", [{"repetition_penalty": 1.2}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.3}], ids=lambda wish: next(iter(wish))
)
def test_each_penalty_alone_is_a_wish(wish):
    policy = make_policy([Sampling(**wish), Sampling()], [0, 1])
    assert np.asarray(policy.adjusts_B).tolist() == np.asarray(policy.penalties.are_on_B).tolist() == [True, False]


def test_a_greedy_row_that_penalises_has_its_text_alone_and_beside_rows_that_sample(mha):
    prompt, penalised = [3] * 20, Sampling(frequency_penalty=2.0)
    engine, rows = Engine(mha[0]), {"limits": Limits(16), "stop_ids": []}
    alone, plain = (next(iter(engine.generate([prompt], way, **rows))).token_ids for way in (penalised, Sampling()))
    beside = engine.generate([prompt] * 3, [penalised, Sampling(1.0), Sampling()], batch=3, **rows)
    assert [reply.token_ids for reply in beside][::2] == [alone, plain]
    assert alone != plain and max(map(alone.count, alone)) < max(map(plain.count, plain))


def test_a_program_with_filters_rules_nothing_out_where_no_row_has_one():
    policy = make_policy([Sampling(2.0), Sampling()], [0, 1], needs=Needs(sampled=True, filtered=True))
    logits = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    found = jax.jit(sample.warp)(policy, jax.device_put(logits, jax.P("data", None, "model")))
    np.testing.assert_array_equal(found, logits / np.float32([2, 1])[:, None, None])
