"""Sampled text has exactly the target's distribution: 40,000 draws against enumeration on a target of 16 tokens.

The control: the published acceptance rule, min(1, p/q) on beam-search candidates, must be rejected by the same test.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode import adjust, loop, reject, sample
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.decode.propose import recurrent, search
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.medusa import Medusa
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.decode.request import Sampling
from redrafter_jax.model.drafter import Drafter, full
from redrafter_jax.model.target import Target, TargetConfig
from tests import support

V, DRAWS, BATCH = 16, 40_000, 4000
PROMPT = [3, 1, 4]
SHAPE = Shape(width=3, length=2)


@pytest.fixture(scope="module")
def models():
    config = TargetConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    target = Target(jax.random.key(1), config)
    target.lm_head[...] = target.lm_head[...] * 1.5
    return target, Drafter(jax.random.key(2), full(V, 16))


@functools.cache
def next_token_probabilities(target, prefixes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    state = support.started(target, [list(prefix) for prefix in prefixes], 1, 0)
    return np.asarray(jax.nn.softmax(target.unembed(state.h), axis=-1), np.float64)


def joint(target) -> np.ndarray:
    """The exact probabilities ``[V, V]`` of the second and third new token together: the ones that rounds decide."""
    first = next_token_probabilities(target, (tuple(PROMPT),))[0]
    second = next_token_probabilities(target, tuple((*PROMPT, a) for a in range(V)))
    third = next_token_probabilities(target, tuple((*PROMPT, a, b) for a in range(V) for b in range(V))).reshape(V, V, V)
    return np.einsum("a,ab,abc->bc", first, second, third)


def p_value(pairs: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's chi-square of drawn pairs ``[n, 2]``; cells that expect fewer than 5 are pooled. The p-value is by the
    Wilson-Hilferty approximation."""
    counts = np.bincount(pairs[:, 0] * V + pairs[:, 1], minlength=V * V).astype(float)
    expected = expected.ravel() * len(pairs)
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(expected) - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    return float(jax.scipy.stats.norm.sf(z))


LOOKUP = Lookup(2, 1, 2, 2)


WAYS = {
    "the head": lambda target, head: Recurrent(head, SHAPE),
    "the head and a lookup": lambda target, head: Union(Recurrent(head, SHAPE), LOOKUP),
    "medusa": lambda target, head: Medusa(support.medusa_heads(target.config, 2), ((0,), (1,), (2,), (0, 0), (1, 0), (0, 1))),
    "a small model": lambda target, head: SmallModel(other_model(target), SHAPE),
    "a small model's chain": lambda target, head: SmallModel(other_model(target), Shape(1, 2)),
    "a small model's chains": lambda target, head: SmallModel(other_model(target), Shape(3, 2, tree="chains")),
    "the head's chains": lambda target, head: Recurrent(head, Shape(3, 2, tree="chains")),
    "chains of a head with candidates": lambda target, head: Recurrent(few_of(target, head), Shape(3, 2, tree="chains")),
    "a chain of a head with candidates": lambda target, head: Recurrent(few_of(target, head), Shape(1, 2)),
    "a search of a head with candidates": lambda target, head: Recurrent(few_of(target, head), SHAPE),
    "chains of a draft vocabulary": lambda target, head: Recurrent(cut_head(target), Shape(3, 2, tree="chains")),
}


def other_model(target) -> Target:
    """The target with other weights, that are near enough to be right now and then."""
    leaves, structure = jax.tree.flatten(target)
    return structure.unflatten([leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])


def few_of(target, head) -> Drafter:
    """The head with six candidates of its sixteen tokens."""
    return support.with_candidates(head, target, count=6, rank=4)


def cut_head(target) -> Drafter:
    ids = jnp.array([0, 2, 3, 5, 7, 8, 11, 15])
    config = dataclasses.replace(full(V, 16), draft_vocab=len(ids))
    return Drafter(jax.random.key(2), config, ids=ids)


@pytest.mark.parametrize(
    "rule, way",
    [
        ("coupled", "the head"),
        ("independent", "the head"),
        ("coupled", "the head and a lookup"),
        ("coupled", "medusa"),
        pytest.param("rejection", "a small model's chain", marks=pytest.mark.slow),
        ("rejection", "the head's chains"),
        pytest.param("coupled", "a small model", marks=pytest.mark.slow),
        pytest.param("rejection", "a small model's chains", marks=pytest.mark.slow),
        pytest.param("rejection", "chains of a draft vocabulary", marks=pytest.mark.slow),
        ("rejection", "a chain of a head with candidates"),
        pytest.param("rejection", "chains of a head with candidates", marks=pytest.mark.slow),
        pytest.param("coupled", "a search of a head with candidates", marks=pytest.mark.slow),
    ],
)
def test_the_second_and_third_token_are_distributed_as_the_target_says(models, rule, way):
    pairs, accepted = draw_pairs(models, rule, way)
    assert accepted > DRAWS / 10  # speculation took part
    assert p_value(pairs, joint(models[0])) > 1e-4


def draw_pairs(models, rule: str, way: str) -> tuple[np.ndarray, int]:
    """The second and third new tokens of `DRAWS` replies, and how many drafts were accepted."""
    target, drafter = models
    proposer = WAYS[way](target, drafter)
    pairs, accepted = [], 0
    for first in range(0, DRAWS, BATCH):
        how = support.policy(BATCH, 1.0, rule=rule, seeds=np.arange(first, first + BATCH))
        state = support.started(target, [PROMPT] * BATCH, 3, SHAPE.length, how, proposer=proposer)
        state = loop.run(target, proposer, state, 10)
        pairs.append(np.asarray(support.texts(state))[:, 1:3])
        accepted += int((np.asarray(state.histogram) @ np.arange(3)).sum())
    return np.concatenate(pairs), accepted


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p_BV, q_BV: p_BV,
        pytest.param(lambda p_BV, q_BV: normalised(jnp.where(p_BV > q_BV, p_BV, 0)), marks=pytest.mark.slow),
    ],
    ids=["as if nothing was rejected", "without the difference"],
)
def test_rejection_with_a_wrong_residual_is_noticed(models, monkeypatch, wrong):
    jax.clear_caches()
    monkeypatch.setattr(reject, "residual", wrong)
    assert p_value(draw_pairs(models, "rejection", "the head's chains")[0], joint(models[0])) < 1e-6
    jax.clear_caches()


def normalised(p_BV: jax.Array) -> jax.Array:
    return p_BV / jnp.sum(p_BV, axis=-1, keepdims=True)


@pytest.mark.slow
def test_rejection_of_drafts_that_see_the_noise_of_the_target_is_noticed(models, monkeypatch):
    jax.clear_caches()
    monkeypatch.setattr(sample, "draft_noise", shared_noise)
    assert p_value(draw_pairs(models, "rejection", "the head's chains")[0], joint(models[0])) < 1e-6
    jax.clear_caches()


def shared_noise(policy, position_B, width: int, count: int) -> jax.Array:
    return jnp.broadcast_to(sample.noise(policy, position_B, 1, count), (len(position_B), width, count))


def test_rows_beside_rows_that_sample_otherwise_are_distributed_as_the_target_says(models):
    """Every batch mixes four kinds of rows. The greedy ones all have the target's likeliest tokens; the typical ones, whose rule
    changes the distribution, are the control: the test rejects them."""
    target, drafter = models
    proposer = Recurrent(drafter, SHAPE)
    temperatures, rules = [0.0, 1.0, 1.0, 1.0], ["coupled", "coupled", "independent", "typical"]
    pairs: list[list[np.ndarray]] = [[], [], [], []]
    for first in range(0, DRAWS, BATCH):
        seeds = np.arange(first, first + BATCH)
        how = support.policy(BATCH, np.tile(temperatures, BATCH // 4), rule=np.tile(rules, BATCH // 4), seeds=seeds)
        state = support.started(target, [PROMPT] * BATCH, 3, SHAPE.length, how)
        text = np.asarray(support.texts(loop.run(target, proposer, state, 10)))[:, 1:3]
        for kind in range(4):
            pairs[kind].append(text[kind::4])
    greedy, coupled, independent, typical = (np.concatenate(drawn) for drawn in pairs)
    expected = joint(target)
    likeliest = support.texts(loop.run(target, Recurrent(drafter, SHAPE), support.started(target, [PROMPT], 3, SHAPE.length), 10))[
        0
    ]
    assert (greedy == likeliest[1:]).all()
    assert p_value(coupled, expected) > 1e-4 and p_value(independent, expected) > 1e-4
    assert p_value(typical, expected) < 1e-6


def test_a_wrong_distribution_is_noticed(models):
    expected = joint(models[0])
    tilted = expected**1.1 / (expected**1.1).sum()
    drawn = np.random.default_rng(0).choice(V * V, DRAWS, p=tilted.ravel())
    assert p_value(np.stack([drawn // V, drawn % V], axis=1), expected) < 1e-6


def test_the_published_rule_on_beam_candidates_is_rejected(models):
    target, drafter = models
    rng = np.random.default_rng(0)
    first_p = next_token_probabilities(target, (tuple(PROMPT),))[0]
    second_p = next_token_probabilities(target, tuple((*PROMPT, a) for a in range(V)))
    third_p = next_token_probabilities(target, tuple((*PROMPT, a, b) for a in range(V) for b in range(V))).reshape(V, V, V)
    h = support.started(target, [PROMPT] * V, 1, 0).h
    g = support.put(np.arange(V), np.int32)
    tokens, _ = search.sequences(recurrent.draft(target, drafter, h, g, SHAPE.width, SHAPE.length))
    q = draft_probabilities(target, drafter, h, g, tokens)
    pairs = np.empty((DRAWS, 2), int)
    for draw, a in enumerate(rng.choice(V, DRAWS, p=first_p / first_p.sum())):
        pairs[draw] = published_round(rng, np.asarray(tokens[a]), q[a], (second_p[a], third_p[a]))
    assert p_value(pairs, joint(target)) < 1e-6


def draft_probabilities(target, drafter, h, g, tokens) -> np.ndarray:
    """The draft's distributions ``[V, W, L, V]`` along each candidate."""
    W, L = tokens.shape[1:]
    h_BWD = jnp.broadcast_to(h[:, None], (V, W, h.shape[-1]))
    state, read, found = jnp.zeros_like(h_BWD), jnp.broadcast_to(g[:, None], (V, W)), []
    for step in range(L):
        state = drafter.advance(state, target.embed(read))
        found.append(np.asarray(jax.nn.softmax(drafter.unembed(drafter.exit(drafter.context(h_BWD), state), target)), np.float64))
        read = tokens[:, :, step]
    return np.stack(found, axis=2)


def published_round(rng, candidates_WL, q_WLV, p) -> tuple[int, int]:
    """Accept each candidate's tokens with min(1, p/q), take the candidate that gets farthest, draw the next token from
    max(0, p - q) after a rejection, then from p."""
    best: list[int] = []
    row = 0
    for w, candidate in enumerate(candidates_WL):
        taken: list[int] = []
        for step, token in enumerate(candidate):
            chance = (p[0] if step == 0 else p[1][taken[0]])[token] / q_WLV[w, step, token]
            if rng.random() >= chance:
                break
            taken.append(int(token))
        if len(taken) > len(best):
            best, row = taken, w
    while len(best) < 2:
        left = p[0] if not best else p[1][best[0]]
        rest = np.maximum(left - q_WLV[row, len(best)], 0)
        best.append(int(rng.choice(V, p=rest / rest.sum())))
        if len(best) < 2:
            best.append(int(rng.choice(V, p=p[1][best[0]] / p[1][best[0]].sum())))
    return best[0], best[1]


PENALISED = Sampling(1.0, repetition_penalty=1.8, presence_penalty=0.9, frequency_penalty=0.6)


def penalised_joint(target) -> np.ndarray:
    """As `joint`, of the penalised target."""

    def probabilities(texts: list[tuple[int, ...]]) -> np.ndarray:
        logits = np.array(target.unembed(support.started(target, list(map(list, texts)), 1, 0).h), np.float64)
        for row, text in zip(logits, texts, strict=True):
            reply = text[len(PROMPT) :]
            for token in range(V):
                if token in text:
                    row[token] *= PENALISED.repetition_penalty ** (-1 if row[token] > 0 else 1)
                row[token] -= reply.count(token) * PENALISED.frequency_penalty + (token in reply) * PENALISED.presence_penalty
        return np.asarray(jax.nn.softmax(logits, axis=-1))

    first = probabilities([tuple(PROMPT)])[0]
    second = probabilities([(*PROMPT, a) for a in range(V)])
    third = probabilities([(*PROMPT, a, b) for a in range(V) for b in range(V)]).reshape(V, V, V)
    return np.einsum("a,ab,abc->bc", first, second, third)


def draw_penalised(models, shape: Shape) -> np.ndarray:
    target, proposer, pairs = models[0], Recurrent(models[1], shape), []
    for first in range(0, DRAWS // 2, BATCH):
        how = make_policy([PENALISED] * BATCH, np.arange(first, first + BATCH))
        state = loop.run(target, proposer, support.started(target, [PROMPT] * BATCH, 3, shape.length, how), 10)
        pairs.append(np.asarray(support.texts(state))[:, 1:3])
    return np.concatenate(pairs)


def test_penalised_tokens_are_distributed_as_the_penalised_target_says(models):
    expected = penalised_joint(models[0])
    drawn = draw_penalised(models, SHAPE)
    assert p_value(drawn, expected) > 1e-4
    assert p_value(drawn, joint(models[0])) < 1e-6


@pytest.mark.slow
def test_penalties_without_the_path_to_a_node_are_noticed(models, monkeypatch):
    monkeypatch.setattr(adjust, "paths", lambda tokens, parent, depth, length: jnp.full((*tokens.shape, length), -1))
    drawn = draw_penalised(models, Shape(width=3, length=2, budget=6))  # a program of its own
    assert p_value(drawn, penalised_joint(models[0])) < 1e-6
