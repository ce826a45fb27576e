"""Same seed, same text: what is drafted, and what else is in the batch, never changes what comes out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode import pack, verify
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.medusa import PUBLISHED, Medusa
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.scripted import Scripted, scripted
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.files import weights
from redrafter_jax.model import attention
from tests import support
from tests.support import MODELS, PROMPTS, put

SHAPES = [
    Shape(1, 3),
    Shape(4, 4),
    Shape(4, 4, budget=9, tree="beams"),
    Shape(3, 2, tree="beams"),
    Shape(8, 5, budget=24),
]
GREEDY = [Sampling()]
SAMPLED = [Sampling(t) for t in (0.5, 1.0, 1.5)]
FILTERED = [Sampling(0.5, 20), Sampling(1.0, 0, 0.9), Sampling(1.5, 50, 0.8), Sampling(1.0, 5, 0.95)]
NEW = 100


@pytest.fixture(scope="module")
def plain(mha):
    """What plain decoding gives for every way of sampling, each prompt alone."""
    engine = Engine(mha[0])
    ways = GREEDY + SAMPLED + FILTERED
    return {way: [r.token_ids for r in engine.generate(PROMPTS, way, Limits(NEW), batch=1)] for way in ways}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_speculation_changes_no_token(mha, plain, shape):
    """All ways of sampling side by side, in rows that are refilled."""
    engine = Engine(mha[0], Recurrent(mha[1], shape))
    ways, seeds = [way for way in plain for _ in PROMPTS], list(range(len(PROMPTS))) * len(plain)
    found = [reply.token_ids for reply in engine.generate(PROMPTS * len(plain), ways, Limits(NEW), seeds, batch=8)]
    assert found == [text for texts in plain.values() for text in texts]
    assert sum(map(len, found)) >= 2000  # five shapes: 10,000 tokens and more


@pytest.mark.parametrize("number", range(3))
def test_nor_does_it_in_a_batch_of_one_way_or_alone(mha, plain, number):
    engine, way = Engine(mha[0], Recurrent(mha[1], SHAPES[number])), list(plain)[3 * number]
    for rows in (1, 5):
        assert [reply.token_ids for reply in engine.generate(PROMPTS, way, Limits(NEW), batch=rows)] == plain[way]


def right_half_the_time(head, texts: list[list[int]]) -> Scripted:
    """The known replies, at half of the places."""
    tokens = np.zeros((len(PROMPTS), 32 + NEW), np.int32)
    for row, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        tokens[row, : len(prompt) + NEW] = prompt + text
    return scripted(Recurrent(head, Shape(2, 3)), tokens, [0.5] * 3)


def with_candidates(head):
    """The head with few candidates of a low rank, which are often wrong."""
    return support.with_candidates(head, support.load_target("mha"), count=16, rank=8)


WAYS = {
    "plain": lambda head, texts: Plain(),
    "lookup": lambda head, texts: Lookup(3, 1, 4, 2),
    "union": lambda head, texts: Union(Recurrent(head, Shape(2, 3)), Lookup(4, 1, 5)),
    "a part of a union": lambda head, texts: Union(Lookup(2, 1, 3, 2), Recurrent(head, Shape(3, 2, tree="beams")), nodes=6),
    "medusa": lambda head, texts: Medusa(support.medusa_heads(support.load_target("mha").config, scale=0.05), PUBLISHED[:15]),
    "medusa, 64 nodes": lambda head, texts: Medusa(support.medusa_heads(support.load_target("mha").config, scale=0.05)),
    "a small model's chain": lambda head, texts: SmallModel(support.small_model(), Shape(1, 4)),
    "a small model's search": lambda head, texts: SmallModel(support.small_model(), Shape(3, 3)),
    "a small model's beams": lambda head, texts: SmallModel(support.small_model(), Shape(3, 3, budget=6, tree="beams")),
    "a small model's chains": lambda head, texts: SmallModel(support.small_model(), Shape(2, 3, tree="chains")),
    "a small model beside a lookup": lambda head, texts: Union(SmallModel(support.small_model(), Shape(1, 2)), Lookup(3, 1, 4, 2)),
    "a head with parts and a fit": lambda head, texts: Recurrent(support.with_parts(head), Shape(4, 4, budget=9)),
    "a head with candidates": lambda head, texts: Recurrent(with_candidates(head), Shape(4, 4)),
    "a head with candidates, parts and a fit": lambda head, texts: Recurrent(
        with_candidates(support.with_parts(head)), Shape(4, 4, budget=9)
    ),
    "the chains of a head with candidates": lambda head, texts: Recurrent(with_candidates(head), Shape(2, 3, tree="chains")),
    "the head's chains": lambda head, texts: Recurrent(head, Shape(2, 3, tree="chains")),
}


SLOW = (  # the others' parts, in other combinations
    "medusa, 64 nodes",
    "a small model's search",
    "a small model's beams",
    "a small model's chains",
    "a small model beside a lookup",
    "the head's chains",
    "a head with candidates",
    "the chains of a head with candidates",
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in WAYS])
def test_no_way_to_propose_changes_a_token(mha, plain, name):
    ways = [Sampling(), Sampling(1.0, 5, 0.95)]
    ways.append(dataclasses.replace(ways[1], rule="independent"))
    engine = Engine(mha[0], WAYS[name](mha[1], plain[ways[0]]))
    given = (PROMPTS * 3, [way for way in ways for _ in PROMPTS], Limits(NEW), list(range(len(PROMPTS))) * 3)
    replies = list(engine.generate(*given, batch=6))
    expected = [plain[way] for way in (ways[0], ways[1], ways[1])]
    assert [reply.token_ids for reply in replies] == [text for texts in expected for text in texts]
    assert (sum(sum(reply.drafted) for reply in replies) > 100) == (name != "plain")
    assert [reply.token_ids for reply in engine.generate(PROMPTS[:2], ways[1], Limits(NEW), batch=1)] == plain[ways[1]][:2]


@pytest.mark.parametrize("way", [Sampling(), Sampling(1.0, 5, 0.95)], ids=["greedy", "filtered"])
def test_scripted_drafts_change_no_token(mha, plain, way):
    engine = Engine(mha[0], right_half_the_time(mha[1], plain[way]))  # which has a script for the five rows of one batch
    replies = list(engine.generate(PROMPTS, way, Limits(NEW), batch=5))
    assert [reply.token_ids for reply in replies] == plain[way]
    assert sum(sum(reply.drafted) for reply in replies) > 100


def test_the_independent_rule_gives_the_same_text_with_other_drafts(mha, plain):
    engine, way = Engine(mha[0], Recurrent(mha[1], Shape(4, 3))), Sampling(1.0)
    replies = list(engine.generate(PROMPTS, dataclasses.replace(way, rule="independent"), Limits(NEW), batch=5))
    assert [reply.token_ids for reply in replies] == plain[way]


def test_a_row_alone_in_a_batch_and_in_another_order_gives_the_same_tokens(mha, plain):
    engine, way = Engine(mha[0], Recurrent(mha[1], SHAPES[1])), Sampling(1.0)
    alone = [reply.token_ids for reply in engine.generate(PROMPTS[:2], way, Limits(NEW), seeds=[0, 1], batch=1)]
    assert alone == plain[way][:2]
    order = [3, 0, 4, 2, 1]
    mixed = list(engine.generate([PROMPTS[i] for i in order], way, Limits(NEW), seeds=order, batch=5))
    assert [reply.token_ids for reply in mixed] == [plain[way][i] for i in order]


def test_another_seed_gives_another_text(mha):
    engine = Engine(mha[0])
    first, second = engine.generate([PROMPTS[0]] * 2, Sampling(1.0), Limits(30), seeds=[0, 1], batch=2)
    assert first.token_ids != second.token_ids


def test_the_coupled_drafter_sees_the_noise_and_the_independent_one_does_not(mha):
    """At a temperature of 100 the noise alone decides: who sees it drafts the very token, who does not can only guess."""
    engine = Engine(mha[0], Recurrent(mha[1], Shape(1, 3)))
    rates = {}
    for rule in ("coupled", "independent"):
        replies = list(engine.generate(PROMPTS, Sampling(100.0, rule=rule), Limits(NEW), batch=5))
        rates[rule] = np.mean([reply.tokens_per_step for reply in replies])
    assert rates["coupled"] > 3 and rates["independent"] < 1.3


def test_a_reply_ends_at_a_stop_id_a_limit_or_the_context(mha):
    free = next(Engine(mha[0], Recurrent(mha[1])).generate([PROMPTS[0]], limits=Limits(40)))
    stop = free.token_ids[10]
    stopped = next(Engine(mha[0], Recurrent(mha[1]), stop_ids=[stop]).generate([PROMPTS[0]], limits=Limits(40)))
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    short = next(Engine(mha[0], Recurrent(mha[1])).generate([PROMPTS[0]], limits=Limits(40, length=10)))
    assert short.token_ids == free.token_ids[:7] and short.finish_reason == "length"


def test_dead_slots_and_unused_nodes_never_reach_a_logit(mha):
    target, drafter = mha
    state = support.started(target, [[5, 9, 200, 3], [7, 7]], 20, 3)
    scores = put([[[-1.0, -2.0, -np.inf]] * 2] * 2, np.float32)
    tree = pack.pack_sequences(state.g, put([[[5, 6, 7], [5, 8, 7]]] * 2, np.int32), scores, 7)
    assert int(np.asarray(tree.valid).sum()) < tree.valid.size
    clean = verify.score(target, tree, state.cache).hidden
    dead = np.arange(state.cache.slots) >= np.asarray(state.cache.length)[:, None]
    poison = lambda buffer: jnp.where(put(dead)[:, None, :, None], jnp.nan, buffer)  # noqa: E731
    cache = dataclasses.replace(
        state.cache, keys=tuple(map(poison, state.cache.keys)), values=tuple(map(poison, state.cache.values))
    )
    unused_id = 401
    poisoned = jax.tree.map(lambda leaf: leaf, target)
    poisoned.embedding[...] = target.embedding[...].at[unused_id].set(jnp.nan)
    tree = dataclasses.replace(tree, tokens=jnp.where(tree.valid, tree.tokens, unused_id))
    hidden = verify.score(poisoned, tree, cache).hidden
    used = np.asarray(tree.valid)
    np.testing.assert_array_equal(np.asarray(hidden)[used], np.asarray(clean)[used])


def test_bfloat16_differs_only_where_rounding_can_swap_the_two_best_logits(mha, record_property):
    """If two passes, each within e of the exact logits, choose different tokens, then the exact logits of these tokens are
    within 2 e of each other. Exact: the same weights in float32. e: the largest error of any logit at that place in a
    bfloat16 pass over the whole text, doubled because a pass in another order can err more. The control: tokens that
    are wrong rather than tied break that bound."""
    target = weights.load_target(MODELS / "target_mha", "bfloat16")
    drafter = weights.load_drafter(MODELS / "drafter_mha_rnn", "bfloat16")
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), target)
    slow = [r.token_ids for r in Engine(target).generate(PROMPTS, limits=Limits(NEW), batch=5)]
    ties = differing = total = 0
    control = []
    for shape in (Shape(4, 4), Shape(1, 3), Shape(8, 5)):
        fast = [r.token_ids for r in Engine(target, Recurrent(drafter, shape)).generate(PROMPTS, limits=Limits(NEW), batch=5)]
        for prompt, a, b in zip(PROMPTS, fast, slow, strict=True):
            logits, errors = rounding(target, exact, prompt, a)
            first = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
            total += NEW if first is None else first + 1
            second = np.argsort(logits, axis=1)[:, -2]
            gaps = logits.max(axis=1) - logits[np.arange(NEW), second]
            ties += int((gaps <= 4 * errors).sum())
            wrong = (np.asarray(a) + 1) % logits.shape[1]
            control += (logits[np.arange(NEW), a] - logits[np.arange(NEW), wrong] > 4 * errors).tolist()
            if first is not None:
                differing += 1
                assert abs(logits[first, a[first]] - logits[first, b[first]]) <= 4 * errors[first]
    record_property("bfloat16_tokens_that_differ", f"{differing} of {total}")
    record_property("bfloat16_tokens_within_the_bound", f"{ties} of {15 * NEW}")
    assert np.mean(control) > 0.9 and ties < 0.25 * 15 * NEW


@jax.jit
def logits_of(model, row: jax.Array, positions: jax.Array) -> jax.Array:
    hidden = model(row, positions, attention.causal(row >= 0)).hidden
    return model.unembed(hidden)


def rounding(target, exact, prompt: list[int], reply: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """At each token of a reply: the exact logits ``[n, V]`` and the largest error of a bfloat16 logit ``[n]``."""
    longest = max(map(len, PROMPTS)) + NEW  # one shape for all: the mask is causal, so what is behind the reply doesn't matter
    row = put([[*prompt, *reply, *[0] * (longest - len(prompt) - len(reply))]], np.int32)
    positions = put([list(range(longest))], np.int32)
    scored = []
    for model in (exact, target):
        scored.append(np.asarray(logits_of(model, row, positions))[0, len(prompt) - 1 :][: len(reply)])
    return scored[0], np.abs(scored[0] - scored[1]).max(axis=1)
