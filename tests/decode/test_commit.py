"""How rows end: what counts as delivered, what a row that is done leaves alone, and logits that are not finite."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode import loop
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.reply import mean_tokens_per_step, tokens_per_step
from tests import support

SHAPE = Shape(4, 4)
PROMPTS = [[5, 9, 200, 3], [7, 7]]


@pytest.mark.parametrize("new", [1, *(pytest.param(new, marks=pytest.mark.slow) for new in (2, 4, 23)), 7])
def test_tokens_per_step_are_those_that_were_delivered(mha, new):
    replies = list(Engine(mha[0], Recurrent(mha[1], SHAPE)).generate(PROMPTS, limits=Limits(new), batch=2))
    for reply in replies:
        histogram = np.array(reply.accepted_histogram)
        assert len(reply.token_ids) == new and histogram.sum() == reply.rounds
        assert histogram @ np.arange(1, len(histogram) + 1) == new - 1
        assert reply.tokens_per_step == (pytest.approx((new - 1) / reply.rounds) if new > 1 else None)
        # Every pass ends with the target's own token, but for the last one if the limit cuts it among its drafts.
        assert not reply.drafted[0] and sum(reply.drafted) == new - 1 - reply.rounds + reply.drafted[-1]
        assert 0 < reply.first_token_seconds <= reply.seconds
    rounds = sum(reply.rounds for reply in replies)
    assert mean_tokens_per_step(replies) == (pytest.approx(2 * (new - 1) / rounds) if new > 1 else None)


def test_drafts_behind_a_stop_id_are_not_delivered(mha):
    whole = next(Engine(mha[0], Recurrent(mha[1], SHAPE)).generate(PROMPTS[:1], limits=Limits(40)))
    cut = next(number for number in range(2, 40) if whole.drafted[number] and whole.drafted[number - 1])
    stop = whole.token_ids[cut]
    reply = next(Engine(mha[0], Recurrent(mha[1], SHAPE), stop_ids=[stop]).generate(PROMPTS[:1], limits=Limits(40)))
    assert reply.finish_reason == "stop" and reply.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert reply.tokens_per_step == tokens_per_step(len(reply.token_ids), 1, reply.rounds)
    assert sum(a * n for a, n in enumerate(reply.accepted_histogram, 1)) == len(reply.token_ids) - 1


def test_what_counts_of_a_row_that_is_done_changes_no_more(mha):
    """In the smallest bucket that holds the longer row: a write past the last slot would be moved back over live ones."""
    target, drafter = mha
    state = support.started(target, [[3] * 32, PROMPTS[1]], 16, SHAPE.length)
    state = dataclasses.replace(state, limit=support.put([4, 16], np.int32))
    seen = []
    while not bool(jnp.all(state.done)):
        state = loop.run(target, Recurrent(drafter, SHAPE), state, 1)
        if bool(state.done[0]):
            length = int(state.cache.length[0])
            assert length == 32 + 4 - 1
            live = [np.asarray(buffer[0, :, :length]) for buffer in state.cache.keys + state.cache.values]
            names = ("h", "g", "tokens", "drafted", "scored", "count", "rounds", "histogram")
            seen.append([*live, *(np.asarray(getattr(state, name)[0]) for name in names)])
    assert len(seen) > 2
    for later in seen[1:]:
        jax.tree.map(np.testing.assert_array_equal, seen[0], later)


def poisoned(target, token: int, value: float = np.nan):
    """The target with an embedding that is not finite."""
    ours = copy.deepcopy(target)
    ours.embedding[...] = ours.embedding[...].at[token].set(value)
    return ours


@pytest.mark.parametrize(
    "sampling", [Sampling(), pytest.param(Sampling(0.8, 40, 0.9), marks=pytest.mark.slow)], ids=["greedy", "filtered"]
)
def test_a_row_whose_logits_are_not_finite_ends_in_an_error_behind_its_good_tokens_and_others_go_on(mha, sampling):
    target, drafter = mha
    good = list(Engine(target, Recurrent(drafter, SHAPE)).generate(PROMPTS, sampling, Limits(24), seeds=[1, 2], batch=2))
    bad = next(token for token in good[0].token_ids[3:] if token not in good[1].token_ids + PROMPTS[0] + PROMPTS[1])
    at = good[0].token_ids.index(bad)
    failed, whole = Engine(poisoned(target, bad)).generate(PROMPTS, sampling, Limits(24), seeds=[1, 2], batch=2)
    assert failed.finish_reason == "error" and failed.token_ids == good[0].token_ids[: at + 1]
    assert whole.finish_reason == "length" and whole.token_ids == good[1].token_ids
    # A draft is read in one pass with what it follows, so one that is not finite ends its row before it is decided upon.
    replies = Engine(poisoned(target, bad), Recurrent(drafter, SHAPE)).generate(
        PROMPTS, sampling, Limits(24), seeds=[1, 2], batch=2
    )
    for number, (reply, expected) in enumerate(zip(replies, good, strict=True)):
        assert reply.token_ids == expected.token_ids[: len(reply.token_ids)]
        assert reply.finish_reason == ("error" if len(reply.token_ids) < 24 else "length")
        assert number or len(reply.token_ids) <= at + 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prompt_that_gives_no_finite_logits_gets_no_token(mha, value):
    target, drafter = mha
    failed, whole = Engine(poisoned(target, 200, value), Recurrent(drafter, SHAPE)).generate(PROMPTS, limits=Limits(8), batch=2)
    assert failed.finish_reason == "error" and failed.token_ids == [] and failed.tokens_per_step is None
    assert whole.finish_reason == "length" and len(whole.token_ids) == 8


def test_one_output_column_that_is_not_finite_is_noticed(mha):
    target, drafter = copy.deepcopy(mha[0]), mha[1]
    target.lm_head[...] = jnp.where(jnp.arange(503) == 77, np.nan, target.lm_head[...])
    for sampling in (Sampling(), Sampling(1.0), Sampling(1.0, 5), Sampling(1.0, 0, 0.5)):
        reply = next(Engine(target, Recurrent(drafter, SHAPE)).generate(PROMPTS[:1], sampling, Limits(8)))
        assert reply.finish_reason == "error" and reply.token_ids == []
