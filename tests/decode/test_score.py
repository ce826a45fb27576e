"""Log-probabilities of a prompt's tokens are the target's own, whatever the prompt is filled up to and read in."""

import dataclasses

import numpy as np
import pytest

from redrafter_jax.decode import prefill
from redrafter_jax.decode.batch import make_requests
from redrafter_jax.decode.engine import Engine, Limits, Sampling, in_order
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.room import room_for
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.errors import BadInput
from redrafter_jax.model import attention
from tests import support
from tests.support import compilations

PROMPTS = [[5], [1, 5, 9], [9, 8, 7, 6, 5, 4, 3, 2], [(7 * n) % 300 for n in range(19)], [3] * 30]
TOP = 3


@pytest.fixture(scope="module")
def engine(mha):
    return Engine(mha[0], Recurrent(support.with_features(mha[1]), Shape(2, 2)))


@pytest.fixture(scope="module")
def requests(engine):
    config = engine.target.config
    given = make_requests(
        PROMPTS, Sampling(1.0, logprobs=TOP), Limits(4), None, [], config.vocab_size, config.max_position_embeddings
    )
    return [dataclasses.replace(request, scores_prompt=True) for request in given]


@pytest.fixture(scope="module")
def scheduler(engine, requests):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "CHUNK_TOKENS", 8)  # so that prompts are read in one chunk, in full ones, and in a part of one
        room = room_for(requests, engine.runner.context, engine.proposer.round.length)
        made = Scheduler(engine.runner, 2, dataclasses.replace(room, scores=True))
        made.prepare()
        yield made


def logprobs_of(target, prompt) -> np.ndarray:
    """``[T, V]``: of the token behind each of the prompt's, by one pass over all of it."""
    positions = support.put(np.arange(len(prompt))[None], np.int32)
    hidden = target(support.put([prompt], np.int32), positions, attention.causal(positions >= 0)).hidden
    logits = np.asarray(target.unembed(hidden), np.float64)[0]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_they_are_those_of_one_pass_over_the_prompt_and_the_reply_stays_what_it_is(engine, requests, scheduler):
    plain = [dataclasses.replace(request, scores_prompt=False) for request in requests]
    with compilations() as found:
        scored, others = list(in_order(scheduler, requests)), list(in_order(scheduler, plain))
    assert not found
    for prompt, reply, other in zip(PROMPTS, scored, others, strict=True):
        expected = logprobs_of(engine.target, prompt)[:-1]
        tokens = np.asarray(prompt[1:], int)
        np.testing.assert_allclose(reply.prompt_logprobs, expected[np.arange(len(tokens)), tokens], atol=1e-4)
        for top, row in zip(reply.prompt_top_logprobs, expected, strict=True):
            assert list(top) == np.argsort(-row)[:TOP].tolist()
            np.testing.assert_allclose(list(top.values()), np.sort(row)[::-1][:TOP], atol=1e-4)
        assert reply.token_ids == other.token_ids and other.prompt_logprobs is other.prompt_top_logprobs is None
        np.testing.assert_allclose(reply.logprobs, other.logprobs, atol=1e-5)


def test_a_reply_that_is_a_prompt_has_the_log_probabilities_that_it_was_decoded_with(engine, requests, scheduler):
    (first,) = in_order(scheduler, [requests[2]])
    longer = dataclasses.replace(requests[2], prompt=[*PROMPTS[2], *first.token_ids])
    (again,) = in_order(scheduler, [longer])
    np.testing.assert_allclose(again.prompt_logprobs[-len(first.token_ids) :], first.logprobs, atol=1e-4)


def test_they_are_refused_where_no_program_has_them(engine, requests, scheduler):
    with pytest.raises(BadInput, match="a room that was made with scores"):
        dataclasses.replace(scheduler.room, scores=False).check(requests[0])
    with pytest.raises(BadInput, match="needs log-probabilities"):
        scheduler.room.check(dataclasses.replace(requests[0], sampling=Sampling()))
    with pytest.raises(BadInput, match="for a scheduler whose room has scores"):
        next(iter(engine._in_batches(requests[:1], 1)))
