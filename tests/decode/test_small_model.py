"""A small model as the drafter: what it drafts against a slow form, also behind rounds that accepted less or other drafts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode import loop
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.errors import BadInput
from redrafter_jax.model import attention
from tests import support

PROMPTS = [[5, 9, 200, 3], [7]]


@jax.jit
def all_logits(model, tokens_BT: jax.Array) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return model.unembed(model(tokens_BT, positions_BT, attention.causal(tokens_BT >= 0)).hidden)


def next_logits(model, text: list[int]) -> np.ndarray:
    padded = support.put([text + [0] * (64 - len(text))], np.int32)
    return np.asarray(all_logits(model, padded))[0, len(text) - 1]


def slow_search(model, text: list[int], width: int, length: int) -> list[dict[tuple[int, ...], float]]:
    """What each step of a beam search behind a text keeps, path by path: every path is read anew."""
    beams, kept = {(): 0.0}, []
    for _ in range(length):
        grown = {}
        for path, score in beams.items():
            logits = next_logits(model, text + list(path)).astype(np.float64)
            logs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            grown |= {(*path, int(token)): score + logs[token] for token in np.argsort(-logs)[:width]}
        beams = dict(sorted(grown.items(), key=lambda item: -item[1])[:width])
        kept.append(beams)
    return kept


def paths_of(tree, row: int) -> dict[tuple[int, ...], float]:
    tokens, parent, valid, scores = (np.asarray(part)[row] for part in (tree.tokens, tree.parent, tree.valid, tree.scores))
    paths = {0: ()}
    for node in range(1, len(tokens)):
        paths[node] = (*paths[int(parent[node])], int(tokens[node]))
    return {paths[node]: float(scores[node]) for node in range(1, len(tokens)) if valid[node]}


@pytest.mark.parametrize(
    "shape",
    [Shape(1, 4, draft_top_k=0), pytest.param(Shape(3, 3, draft_top_k=0), marks=pytest.mark.slow)],
    ids=["chain", "search"],
)
def test_each_round_drafts_what_a_slow_search_behind_the_same_text_finds(mha, shape):
    target, model = mha[0], support.small_model()
    proposer = SmallModel(model, shape)
    propose = jax.jit(proposer.propose)
    state = support.started(target, PROMPTS, 24, shape.length, proposer=proposer)
    accepted = []
    for _ in range(4):
        tree, _ = propose(target, state.view(), state.memory)
        for row, prompt in enumerate(PROMPTS):
            text = prompt + support.texts(state)[row]
            expected = {path: score for step in slow_search(model, text, shape.width, shape.length) for path, score in step.items()}
            found = paths_of(tree, row)
            assert set(found) == set(expected)
            np.testing.assert_allclose([found[path] for path in expected], list(expected.values()), atol=2e-4)
        before = np.asarray(state.count)
        state = loop.run(target, proposer, state, 1)
        accepted += (np.asarray(state.count) - before - 1).tolist()
    assert min(accepted) < shape.length and max(accepted) > 0  # rounds that kept some of the drafts, and rounds that did not


def test_beside_another_proposer_it_reads_what_that_one_got_accepted(mha):
    """Drafts that are accepted are not always its own, so it must not draft behind its own."""
    target, model, prompts = mha[0], support.small_model(), [[3, 4, 5, 6] * 5]
    union = Union(SmallModel(model, Shape(1, 2)), Lookup(2, 1, 4, 2))
    engine = Engine(target, union)
    union = engine.proposer
    assert union.one.reread == 6  # of four accepted tokens, the root and g
    propose = jax.jit(union.one.propose)
    state = support.started(target, prompts, 30, union.round.length, proposer=union)
    for _ in range(6):
        memory = state.memory[0]
        tree, _ = propose(target, state.view(), memory)
        text = prompts[0] + support.texts(state)[0]
        (only,) = slow_search(model, text, 1, 1)
        assert next(iter(only)) in paths_of(tree, 0)
        state = loop.run(target, union, state, 1)


@pytest.mark.slow
def test_the_target_itself_as_the_draft_model_is_always_right(mha):
    replies = list(Engine(mha[0], SmallModel(mha[0], Shape(1, 3))).generate(PROMPTS, Sampling(1.0), Limits(41), batch=2))
    assert [reply.rounds for reply in replies] == [10, 10]


def test_a_model_that_cannot_draft_for_the_target_is_refused(mha):
    target, config = mha[0], mha[0].config
    for change, words in [({"vocab_size": 400}, "vocabulary"), ({"max_position_embeddings": 16}, "context")]:
        other = dataclasses.replace(config, num_hidden_layers=1, **change)
        model = jax.eval_shape(lambda other=other: type(target)(jax.random.key(0), other))
        with pytest.raises(BadInput, match=f"the draft model should .*{words}"):
            SmallModel(model).prepare(target)


def test_a_search_of_no_length_is_plain_decoding(mha):
    assert isinstance(SmallModel(support.small_model(), Shape(1, 0)).prepare(mha[0]), Plain)


def test_rejection_refuses_what_was_not_drawn(mha):
    for proposer in (SmallModel(support.small_model(), Shape(2, 2)), Lookup(2, 1, 2, 1)):
        with pytest.raises(BadInput, match="drawn from a distribution"):
            list(Engine(mha[0], proposer).generate(PROMPTS, Sampling(1.0, rule="rejection"), Limits(4), batch=2))


def test_chains_are_not_cut():
    with pytest.raises(BadInput, match="budget 3 would cut"):
        Shape(2, 2, budget=3, tree="chains")
