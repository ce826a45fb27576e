"""Several replies to a prompt and seed, and what of a request the vocabulary limits."""

import jax
import numpy as np
import pytest

from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.errors import BadInput
from tests import small

PROMPTS = [[1, 5, 9, 5], [4, 8, 33, 33, 7, 7], [3] * 8]


@pytest.fixture(scope="module")
def engine():
    return Engine(small.models()[0])


def test_more_likeliest_tokens_than_the_vocabulary_has_are_refused(engine):
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
