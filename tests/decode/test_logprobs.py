"""Log-probabilities of a reply: the model's own, whatever is drafted, sampled or split; and several replies to one prompt."""

import jax
import numpy as np
import pytest

from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.errors import BadInput
from tests import small
from tests.decode.test_adjust import logits_before
from tests.support import compilations

PROMPTS = [[1, 5, 9, 5], [4, 8, 33, 33, 7, 7], [3] * 8]
SAMPLINGS = [Sampling(logprobs=3), Sampling(1.0, 5, 0.8, repetition_penalty=1.5, logprobs=1), Sampling(1.0)]


@pytest.fixture(scope="module")
def models():
    return small.models()


@pytest.fixture(scope="module")
def engine(models):
    return Engine(models[0], Recurrent(models[1], Shape(4, 4)))


@pytest.fixture(scope="module")
def replies(engine):
    return list(engine.generate(PROMPTS, SAMPLINGS, Limits(30), batch=3))


def check(replies, models) -> None:
    """Against a log-softmax of the model's logits of the full text."""
    for prompt, how, reply in zip(PROMPTS, SAMPLINGS, replies, strict=True):
        if not how.logprobs:
            assert reply.logprobs is None and reply.top_logprobs is None
            continue
        expected = np.asarray(jax.nn.log_softmax(logits_before(models[0], prompt, reply.token_ids)))
        np.testing.assert_allclose(reply.logprobs, expected[np.arange(30), reply.token_ids], atol=1e-4)
        order = np.argsort(-expected, axis=1, kind="stable")[:, : how.logprobs]
        assert [list(place) for place in reply.top_logprobs] == order.tolist()
        values = [list(place.values()) for place in reply.top_logprobs]
        np.testing.assert_allclose(values, np.take_along_axis(expected, order, axis=1), atol=1e-4)


def test_they_are_those_of_the_model_before_penalties_temperature_and_filters(models, replies):
    assert sum(sum(reply.drafted) for reply in replies) > 5
    check(replies, models)
    assert min(replies[1].logprobs) < -2  # what was sampled is not always the likeliest


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8), (2, 4)], ids=str)
def test_a_split_vocabulary_reports_the_same(models, replies, mesh):
    target, head = small.models(mesh)
    engine = Engine(target, Recurrent(head, Shape(4, 4)))
    found = list(engine.generate([*PROMPTS, [1]], [*SAMPLINGS, Sampling()], Limits(30), batch=4))[:3]
    small.models()
    assert [reply.token_ids for reply in found] == [reply.token_ids for reply in replies]
    check(found, models)


def test_reporting_them_changes_no_token(engine, replies):
    without = engine.generate(PROMPTS, [Sampling(), SAMPLINGS[1], SAMPLINGS[2]], Limits(30), batch=3)
    assert [reply.token_ids for reply in without] == [reply.token_ids for reply in replies]


def test_similar_numbers_of_likeliest_tokens_share_a_program(engine, replies):
    with compilations() as found:
        four = list(engine.generate(PROMPTS, [Sampling(logprobs=4), *SAMPLINGS[1:]], Limits(30), batch=3))
    assert not found
    assert [len(place) for place in four[0].top_logprobs] == [4] * 30
    for few, more in zip(replies[0].top_logprobs, four[0].top_logprobs, strict=True):
        assert list(more)[:3] == list(few)


def test_more_than_the_vocabulary_has_is_refused(engine):
    with pytest.raises(BadInput, match="logprobs should be at most the target's vocabulary of 64, not 65"):
        engine.generate(PROMPTS, Sampling(logprobs=65))


def test_n_replies_to_each_prompt_of_which_the_first_is_the_only_one_of_one(engine):
    how = Sampling(1.0)
    once = list(engine.generate(PROMPTS, how, Limits(20), [7, 8, 9], batch=3))
    found = list(engine.generate(PROMPTS, how, Limits(20), [7, 8, 9], batch=3, n=3))
    assert [(reply.index, reply.sample, reply.seed) for reply in found] == [(i, j, 7 + i) for i in range(3) for j in range(3)]
    assert [reply.token_ids for reply in found[::3]] == [reply.token_ids for reply in once]
    assert len({tuple(reply.token_ids) for reply in found}) == 9
    *_, last = engine.stream([PROMPTS[1]] * 3, how, Limits(20), [8] * 3, samples=[2, 0, 1], rounds=30)
    assert [reply.token_ids for reply in last.replies] == [found[3 + sample].token_ids for sample in (2, 0, 1)]


def test_no_two_of_seeds_and_samples_share_a_key():
    seeds, samples = np.meshgrid([0, 1, 2, 1023, 2**31, 2**32 - 1], [0, 1, 2, 1023])
    policy = make_policy([Sampling(1.0)] * seeds.size, seeds.ravel(), samples.ravel())
    words = np.asarray(jax.random.key_data(policy.keys_B))
    assert len(np.unique(words, axis=0)) == seeds.size
    first = make_policy([Sampling(1.0)] * 6, seeds[0]).keys_B
    assert (jax.random.key_data(first) == jax.random.key_data(jax.vmap(jax.random.key)(seeds[0].astype(np.uint32)))).all()


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"n": 0}, "n should be from 1 to 1024, not 0"),
        ({"n": 1.5}, "n should be from 1 to 1024, not 1.5"),
        ({"n": 2}, "n should be 1 at temperature 0, where all replies are the same, not 2"),
    ],
    ids=str,
)
def test_so_many_replies_are_refused(engine, named, words):
    with pytest.raises(BadInput) as caught:
        engine.generate(PROMPTS, **named)
    assert str(caught.value) == words


def test_samples_are_one_for_each_prompt_and_in_range(engine):
    wrong = {"samples should be 3, one for each prompt, not 1": [0], "a sample should be from 0 to 1023, not -1": [0, 1, -1]}
    for words, samples in wrong.items():
        with pytest.raises(BadInput) as caught:
            next(engine.stream(PROMPTS, seeds=[1, 2, 3], samples=samples))
        assert str(caught.value) == words
