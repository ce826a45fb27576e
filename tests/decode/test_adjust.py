"""Penalties, the least length and log-probabilities: at every node those of its own text, whatever is drafted, alone and beside
other rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from redrafter_jax.decode import adjust
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.scripted import scripted
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.model import attention
from tests import small, support
from tests.draft_vocabularies import cut
from tests.support import compilations, put

PROMPTS = [[1, 5, 9, 5], [4, 8, 33, 33, 7, 7], [3] * 8, [9, 8], [7, 6] * 4, [2, 30], [1, 5, 9, 5], [11]]
SAMPLINGS = [
    Sampling(repetition_penalty=1.3),
    Sampling(1.0, repetition_penalty=1.5, logprobs=1),
    Sampling(1.0, 20, 0.9, presence_penalty=1.0, frequency_penalty=0.5),
    Sampling(0.7, rule="independent", repetition_penalty=1.2, frequency_penalty=-0.5),
    Sampling(1.0, logprobs=3),
    Sampling(presence_penalty=2.0, frequency_penalty=2.0, logprobs=4),
    Sampling(),
    Sampling(1.5, 12, repetition_penalty=0.7),
]
STOPS = list(range(24))  # so many that most rows would end at once
LIMITS = [Limits(40, min_new=least) for least in (20, 15, 0, 38, 9, 40, 0, 0)]
ROWS, SEEDS = len(PROMPTS), list(range(20, 28))
GIVEN = (PROMPTS, SAMPLINGS, LIMITS, SEEDS, ROWS, STOPS)


@pytest.fixture(scope="module")
def models():
    return small.models()


@pytest.fixture(scope="module")
def engine(models):
    """One for all tests, so that they share its compiled programs."""
    return Engine(models[0], Recurrent(models[1], Shape(3, 3)))


@pytest.fixture(scope="module")
def plain(models):
    return list(Engine(models[0]).generate(*GIVEN))


def ids(replies) -> list[list[int]]:
    return [reply.token_ids for reply in replies]


def script(head, replies):
    tokens = np.zeros((ROWS, 32 + 64), np.int32)
    for row, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        text = prompt + reply.token_ids
        tokens[row, : len(text)] = text
    return scripted(Recurrent(head, Shape(2, 3)), tokens, [0.7] * 3)


WAYS = {
    "search": lambda engine, models, _: engine,
    "beams": lambda _, models, __: Engine(models[0], Recurrent(models[1], Shape(4, 3, 9, "beams"))),
    "lookup": lambda _, models, __: Engine(models[0], Lookup(3, 1, 4, 2)),
    "union": lambda _, models, __: Engine(models[0], Union(Recurrent(models[1], Shape(2, 3)), Lookup(4, 1, 5))),
    "scripted": lambda _, models, replies: Engine(models[0], script(models[1], replies)),
}
QUICK = "search"
NAMES = [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in WAYS if name != QUICK)]


@pytest.mark.parametrize("name", NAMES)
def test_no_way_to_draft_changes_a_token(engine, models, plain, name):
    replies = list(WAYS[name](engine, models, plain).generate(*GIVEN))
    assert ids(replies) == ids(plain)
    check_logprobs(replies, models[0])
    assert sum(sum(reply.drafted) for reply in replies) > (0 if name == "lookup" else 20)
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}


@pytest.mark.slow
def test_a_row_is_alone_what_it_is_beside_others(engine, plain):
    alone = next(engine.generate(PROMPTS[1:2], SAMPLINGS[1], LIMITS[1], SEEDS[1:2], stop_ids=STOPS))
    assert alone.token_ids == plain[1].token_ids


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 4), (1, 8)], ids=str)
def test_a_split_vocabulary_gives_the_tokens_of_one_device(models, plain, mesh):
    target, head = small.models(mesh)
    replies = list(Engine(target, Recurrent(head, Shape(2, 2))).generate(*GIVEN))
    assert ids(replies) == ids(plain)
    jax.set_mesh(models[0].lm_head[...].sharding.mesh)
    check_logprobs(replies, models[0])


def check_logprobs(replies, target) -> None:
    """Against a log-softmax of the model's own logits of the full text: before penalties, temperature and filters."""
    for prompt, how, reply in zip(PROMPTS, SAMPLINGS, replies, strict=True):
        if not how.logprobs:
            assert reply.logprobs is None and reply.top_logprobs is None
            continue
        count, K = len(reply.token_ids), how.logprobs
        expected = np.asarray(jax.nn.log_softmax(logits_before(target, prompt, reply.token_ids)))
        np.testing.assert_allclose(reply.logprobs, expected[np.arange(count), reply.token_ids], atol=1e-4)
        order = np.argsort(-expected, axis=1, kind="stable")[:, :K]
        assert [list(place) for place in reply.top_logprobs] == order.tolist()
        values = [list(place.values()) for place in reply.top_logprobs]
        np.testing.assert_allclose(values, np.take_along_axis(expected, order, axis=1), atol=1e-4)


def test_what_is_sampled_is_not_always_the_likeliest_and_plain_decoding_reports_the_same(models, plain):
    check_logprobs(plain, models[0])
    assert min(plain[1].logprobs) < -2


@functools.cache
def program():
    @jax.jit
    def run(model, row, positions):
        return model.unembed(model(row, positions, attention.causal(row >= 0)).hidden)

    return run


def logits_before(target, prompt: list[int], reply: list[int]) -> np.ndarray:
    """The model's own logits ``[T, V]`` of each token of a reply."""
    text = prompt + reply + [0] * (64 - len(prompt) - len(reply))
    found = program()(target, put([text], np.int32), put([list(range(64))], np.int32))
    return np.asarray(found)[0, len(prompt) - 1 :][: len(reply)]


def choose(logits: np.ndarray, how: Sampling, least: int, prompt: list[int], reply: list[int], seed: int) -> int:
    """The next token, by a loop over the vocabulary."""
    adjusted = np.empty(len(logits))
    for token, logit in enumerate(map(float, logits)):
        if token in prompt or token in reply:
            logit = logit / how.repetition_penalty if logit > 0 else logit * how.repetition_penalty
        logit -= how.frequency_penalty * reply.count(token) + how.presence_penalty * (token in reply)
        adjusted[token] = -np.inf if token in STOPS and len(reply) < least else logit
    if how.temperature == 0:
        return int(adjusted.argmax())
    warped = np.asarray(filter_scaled(adjusted / how.temperature, how))
    noise = jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), len(prompt) + len(reply)), (len(logits),))
    return int((warped + np.asarray(noise)).argmax())


def filter_scaled(scaled: np.ndarray, how: Sampling) -> np.ndarray:
    """Top-k, then top-p of what is left."""
    order = np.argsort(-scaled, kind="stable")
    kept = order[: how.top_k] if how.top_k else order
    p = np.exp(scaled[kept] - scaled[kept].max())
    kept = kept[np.cumsum(p / p.sum()) - p / p.sum() < how.top_p]
    return np.where(np.isin(np.arange(len(scaled)), kept), scaled, -np.inf)


def test_every_token_is_that_of_a_loop_over_the_vocabulary(models, plain):
    checked = 0
    for row, reply in enumerate(plain):
        logits = logits_before(models[0], PROMPTS[row], reply.token_ids)
        for at, token in enumerate(reply.token_ids):
            before = reply.token_ids[:at]
            assert choose(logits[at], SAMPLINGS[row], LIMITS[row].min_new, PROMPTS[row], before, SEEDS[row]) == token
            checked += 1
    assert checked > 120


def test_greedy_tokens_are_those_of_the_processors_of_transformers(models, plain):
    row, reply = 0, plain[0].token_ids
    processors = transformers.LogitsProcessorList([
        transformers.RepetitionPenaltyLogitsProcessor(SAMPLINGS[row].repetition_penalty),
        transformers.MinNewTokensLengthLogitsProcessor(len(PROMPTS[row]), LIMITS[row].min_new, STOPS, device="cpu"),
    ])  # fmt: skip
    logits, moved = logits_before(models[0], PROMPTS[row], reply), 0
    for at, token in enumerate(reply):
        text = torch.tensor([PROMPTS[row] + reply[:at]])
        assert processors(text, torch.tensor(logits[at : at + 1])).argmax().item() == token
        moved += token != logits[at].argmax()
    assert moved > 3


def test_no_stop_id_comes_too_early_and_a_reply_ends_at_the_first_that_may(plain):
    for reply, limits in zip(plain, LIMITS, strict=True):
        assert not set(reply.token_ids[: limits.min_new]) & set(STOPS)
        assert len(reply.token_ids) >= limits.min_new
        assert (reply.finish_reason == "stop") == (reply.token_ids[-1] in STOPS)
        assert reply.stop_reason == (reply.token_ids[-1] if reply.finish_reason == "stop" else None)


def test_other_values_compile_nothing(engine):
    list(engine.generate(*GIVEN))
    others = [*SAMPLINGS[1:], Sampling(0.5, repetition_penalty=1.01, logprobs=3)]
    with compilations() as found:
        list(engine.generate(PROMPTS[::-1], others, LIMITS[::-1], SEEDS, ROWS, list(range(30, 60))))
    assert not found


EVERY_TOKEN = pytest.param(None, 0, marks=pytest.mark.slow, id="all tokens")


CUT = pytest.param(list(range(1, 64, 3)), 0, id="a draft vocabulary")


@pytest.mark.parametrize(("vocabulary", "few"), [EVERY_TOKEN, CUT, pytest.param(None, 60, id="candidates")])
def test_the_head_drafts_with_the_adjustments_of_the_target(models, vocabulary, few):
    """A single greedy beam, against a loop that adjusts the head's logits by the text and what is drafted."""
    target, head = models
    if vocabulary is not None:
        head = cut(head, vocabulary)
    drafts = support.with_candidates(head, target, few, min(head.config.exit_size, small.V)) if few else head
    columns = list(range(small.V)) if vocabulary is None else vocabulary
    how, least, prompt = Sampling(repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=1.0), 3, PROMPTS[0]
    policy = support.make_policy([how], [0], min_news=[least])
    state = support.started(target, [prompt], 20, 6, policy, stops=STOPS)
    draft = jax.jit(Recurrent(drafts, Shape(1, 6)).draft)
    drafted = draft(target, state.view()).tokens[0, :, 0].tolist()
    assert drafted != draft(target, dataclasses.replace(state.view(), history=None)).tokens[0, :, 0].tolist()
    reply, recurrent = [int(state.g[0])], jnp.zeros_like(state.h)
    for token in drafted:
        logits = np.full(small.V, -np.inf)
        logits[columns], recurrent = step(head, target, state.h, recurrent, put([reply[-1]], np.int32))
        assert choose(logits, how, least, prompt, reply, 0) == token
        reply.append(token)


@jax.jit
def step(head, target, h, recurrent, token):
    recurrent = head.advance(recurrent, target.embed(token))
    return head.unembed(head.exit(head.context(h), recurrent), target)[0], recurrent


def test_the_paths_of_a_tree_are_its_ancestors_without_the_root():
    tokens, parent, depth = put([[50, 10, 11, 12, 13, 0]]), put([[0, 0, 0, 1, 3, 0]]), put([[0, 1, 1, 2, 3, 0]])
    found = adjust.paths(tokens, parent, depth, 3)
    assert found.tolist() == [[[-1] * 3, [10, -1, -1], [11, -1, -1], [12, 10, -1], [13, 12, 10], [-1] * 3]]


def test_what_is_seen_counts_the_reply_and_marks_the_prompt_up_to_its_length():
    policy = support.make_policy([Sampling(presence_penalty=1.0)] * 2, [0, 1])
    seen = adjust.begin(policy, put([[3, 5, 5, 0], [7, 0, 0, 0]], np.int32), put([3, 1], np.int32), 8)
    seen = adjust.add(seen, put([[5, 2, 2], [1, 1, 6]], np.int32), put([3, 2], np.int32))
    assert [np.flatnonzero(row).tolist() for row in np.asarray(seen.prompt)] == [[3, 5], [7]]
    assert np.asarray(seen.reply).tolist() == [[0, 0, 2, 0, 0, 1, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0]]


def test_rows_that_ask_for_nothing_keep_their_logits_bit_by_bit_and_what_is_not_finite_stays_so():
    policy = support.make_policy([Sampling(), Sampling(repetition_penalty=2.0)], [0, 1], min_news=[0, 5])
    seen = adjust.begin(policy, put([[1]] * 2), put([1, 1]), 4)
    history = adjust.History(put([1, 1], np.int32), put([[2, 3]] * 2, np.int32), seen)
    logits = np.tile(np.array([-0.0, 1e-30, np.nan, -np.inf], np.float32), (2, 1, 1))
    split = jax.device_put(logits, jax.P("data", None, "model"))
    found = np.asarray(adjust.adjust(policy, history, split, put(np.zeros((2, 1, 0), np.int32))))
    assert found[0].tobytes() == logits[0].tobytes()
    assert np.isnan(found[1, 0, 2]) and found[1, 0, 3] == -np.inf and found[1, 0, 0] == 0


def test_the_logits_of_a_shortlist_are_adjusted_as_those_of_all_tokens_are():
    how = [Sampling(repetition_penalty=1.5), Sampling(presence_penalty=1.0, frequency_penalty=0.5)]
    policy, rng = support.make_policy(how, [0, 1], min_news=[9, 0]), np.random.default_rng(0)
    seen = adjust.begin(policy, put(rng.integers(0, 16, (2, 6)), np.int32), put([6, 4], np.int32), 16)
    seen = adjust.add(seen, put(rng.integers(0, 16, (2, 8)), np.int32), put([8, 8], np.int32))
    history = adjust.History(put([8, 8], np.int32), put([[2, 3]] * 2, np.int32), seen)
    logits, path = rng.normal(size=(2, 3, 16)).astype(np.float32), put(rng.integers(-1, 16, (2, 3, 2)), np.int32)
    ids = np.array([[rng.permutation(16)[:9] for _ in range(3)] for _ in range(2)])
    every = adjust.adjust(policy, history, jax.device_put(logits, jax.P("data", None, "model")), path)
    found = adjust.adjust(policy, history, put(np.take_along_axis(logits, ids, axis=2)), path, put(ids, np.int32))
    np.testing.assert_array_equal(found, np.take_along_axis(np.asarray(every), ids, axis=2))
