"""A candidate head: retrieval and rescoring against loops in NumPy, full rank against the head without, files, refusals, bytes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose import chains, recurrent, shortlist
from redrafter_jax.decode.propose.proposer import View
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.devices import placement
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, weights
from redrafter_jax.model import candidates, vocabulary
from redrafter_jax.model.drafter import DrafterConfig, slim
from redrafter_jax.slices import roofline
from tests.draft_vocabularies import random_head
from tests.support import load_pair, load_target, policy, put, with_candidates, with_parts
from tests.training import same

V, RANK, COUNT = 503, 12, 40
HEADS = {
    "golden": lambda: load_pair("mha_rnn"),
    "slim": lambda: (load_target("mha"), random_head(load_target("mha"), "slim")),
    "of a tied target": lambda: (load_target("tied"), random_head(load_target("tied"), "slim")),
    "with a bigram term": lambda: (load_target("mha"), with_parts(random_head(load_target("mha"), "slim"))),
}


def drawn(shape, seed, kind="normal"):
    return put(getattr(np.random.default_rng(seed), kind)(size=shape), np.float32)


def searched(target, head, noise=None, width=4, length=3, cut=0):
    h, g = drawn((2, target.config.hidden_size * (1 + len(head.config.depths))), 1), put([17, 400], np.int32)
    divisor = None if noise is None else put([0.7, 1.3], np.float32)
    run = jax.jit(recurrent.draft, static_argnames=("width", "length", "draft_top_k"))
    return run(target, vocabulary.as_decoded(head, target), h, g, width, length, divisor, noise, cut)


@pytest.mark.parametrize("kind", HEADS)
def test_of_full_rank_and_with_all_tokens_as_candidates_the_drafts_are_those_of_the_head_without(kind):
    target, head = HEADS[kind]()
    all_tokens = target.config.vocab_size
    noise = drawn((2, 3, all_tokens), 2, "gumbel")
    for given in (None, noise):
        found = searched(target, with_candidates(head, target, all_tokens, head.config.exit_size + head.config.bigram), given)
        expected = searched(target, head, given)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.parents, expected.parents)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_with_few_candidates_and_a_cut_that_they_hold_the_drafts_are_those_of_the_head_without():
    """The matrix is of the rank of its copy, so the likeliest tokens are all among the candidates."""
    target, head = HEADS["golden"]()
    left, values, right = np.linalg.svd(np.asarray(head.lm_head[...]), full_matrices=False)
    matrix = left[:, :RANK] @ (values[:RANK, None] * right[:RANK])
    head = vocabulary._rebuilt(head, head.config, {".lm_head.value": matrix})
    found, expected = (searched(target, each, cut=10) for each in (with_candidates(head, target, COUNT, RANK), head))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    fewer = searched(target, with_candidates(head, target, 10, 2), cut=10)  # the control
    assert not np.array_equal(fewer.tokens, expected.tokens)


@pytest.mark.parametrize("kind", HEADS)
def test_candidates_are_the_largest_of_rough_logits_and_noise_and_their_logits_are_exact(kind):
    target, head = HEADS[kind]()
    few = vocabulary.as_decoded(with_candidates(head, target, COUNT, RANK), target)
    exit_, noise = drawn((2, 3, head.config.exit_size + head.config.bigram), 3), drawn((2, head.config.vocab_size), 4, "gumbel")

    @jax.jit
    def picked(few, exit_, noise):
        return shortlist.pick(shortlist.of_head(few, exit_, target), noise)

    logits, ids = map(np.asarray, picked(few, exit_, noise))
    down, up = np.asarray(few.candidates.down[...]), np.asarray(few.candidates.up[...])
    for row in range(2):
        for beam in range(3):
            z = np.asarray(exit_)[row, beam]
            rough = z @ down @ up + np.asarray(noise)[row]
            expected = sorted(np.argsort(-rough)[:COUNT])
            assert ids[row, beam].tolist() == expected
            for token, logit in zip(expected, logits[row, beam], strict=True):
                column = np.asarray(head.columns(target))[:, token]
                if head.bigram is not None:
                    column = np.concatenate([column, np.asarray(head.bigram.columns)[:, token]])
                assert logit == pytest.approx(float(z @ column), abs=1e-4)


def test_the_noise_decides_what_is_a_candidate():
    """A token that the head finds unlikely, and that the noise will choose, is drafted."""
    target, head = HEADS["golden"]()
    noise = np.zeros((2, 3, V), np.float32)
    noise[:, :, 321] = 1e4
    few = with_candidates(head, target, 10, RANK)
    assert not np.any(np.asarray(searched(target, few).tokens)[:, :, 0] == 321)
    assert np.all(np.asarray(searched(target, few, put(noise)).tokens)[:, :, 0] == 321)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_values_of_a_split_vocabulary_are_taken_and_spread_by_id(mesh):
    jax.set_mesh(make_mesh(*mesh))
    rng = np.random.default_rng(0)
    values, ids = rng.normal(size=(2, 3, 16)).astype(np.float32), np.stack([[rng.permutation(16)[:5] for _ in range(3)]] * 2)
    taken = jax.jit(candidates.take)(put(values), put(ids, np.int32))
    np.testing.assert_array_equal(taken, np.take_along_axis(values, ids, axis=2))
    np.testing.assert_array_equal(
        jax.jit(candidates.take)(put(values[:, 0]), put(ids, np.int32)), np.take_along_axis(values[:, :1], ids, axis=2)
    )
    wide = np.full((2, 3, 16), -np.inf, np.float32)
    np.put_along_axis(wide, ids, np.asarray(taken), axis=2)
    np.testing.assert_array_equal(jax.jit(candidates.spread, static_argnums=2)(taken, put(ids, np.int32), 16), wide)


def test_a_drawn_chain_tells_the_distribution_that_it_was_drawn_from():
    """Candidates by rough logits alone, for the noise of the draw would make the draw likelier than it says."""
    target, head = HEADS["golden"]()
    few = vocabulary.as_decoded(with_candidates(head, target, COUNT, RANK), target)
    h, g = drawn((2, target.config.hidden_size), 1), put([17, 400], np.int32)

    @jax.jit
    def chain(few, seeds_policy):
        length = put([5, 9], np.int32)
        view = View(g, h, put(np.zeros((2, 16)), np.int32), length, seeds_policy)
        step, state = recurrent.steps(target, few, h, 3)
        return chains.draw(step, state, view, 3, 2).tree(g, V).drawn

    drafts = [chain(few, policy(2, temperature=1.0, rule="rejection", seeds=[seed, seed + 1])) for seed in range(0, 8, 2)]
    logits = np.asarray(drafts[0].logits)[:, :, 0]
    for other in drafts[1:]:  # the same distribution whatever is drawn from it
        np.testing.assert_array_equal(np.asarray(other.logits)[:, :, 0], logits)
    assert np.all(np.isfinite(logits).sum(-1) == COUNT)
    tokens = np.stack([np.asarray(each.tokens)[:, :, 0] for each in drafts])
    assert np.all(np.isfinite(np.take_along_axis(logits[None], tokens[..., None], axis=3))) and len(np.unique(tokens)) > 2


# On disk, in decoding, and in numbers


@pytest.mark.parametrize("kind", HEADS)
def test_a_candidate_head_travels_through_a_folder(kind, tmp_path):
    target, head = HEADS[kind]()
    few = vocabulary.cast(with_candidates(head, target, COUNT, RANK), jnp.bfloat16)
    weights.save_drafter(few, tmp_path)
    again = weights.load_drafter(tmp_path, "bfloat16")
    assert again.config == few.config and (again.config.candidates, again.config.candidate_rank) == (COUNT, RANK)
    same(again, few)


def test_a_head_without_candidates_is_written_as_ever_and_comes_back_from_one_with_them(tmp_path):
    target, head = HEADS["with a bigram term"]()
    weights.save_drafter(head, tmp_path)
    assert not {"candidates", "candidate_rank"} & set(json.loads((tmp_path / "config.json").read_text()))
    back = vocabulary.without_candidates(with_candidates(head, target, COUNT, RANK))
    assert back.config == head.config
    same(back, head)
    assert vocabulary.without_candidates(head) is head


def test_the_rows_are_the_targets_embedding_where_that_is_tied_and_are_copied_once_where_not():
    for kind, is_shared in (("of a tied target", True), ("slim", False)):
        target, head = HEADS[kind]()
        few = with_candidates(head, target, COUNT, RANK)
        ready = Engine(target, Recurrent(few)).proposer.head
        assert (ready.candidates.rows is None) == is_shared and ready.config.tied == is_shared
        np.testing.assert_array_equal(ready.candidates.rows_of(target), np.asarray(target.lm_head[...]).T)
        assert Engine(target, Recurrent(ready)).proposer.head is ready


def test_apples_format_refuses_candidates(tmp_path):
    target, head = HEADS["slim"]()
    with pytest.raises(BadInput, match="the head has a candidate head, and Apple's architecture has no place for that"):
        weights.save_drafter(with_candidates(head, target, COUNT, RANK), tmp_path / "head", target=target)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"candidates": 504}, "candidates in config.json should be from 1 to the vocabulary of 503, not 504"),
        ({"candidates": 0}, "candidates in config.json should be a whole number from 1"),
        ({"candidate_rank": 65}, "candidate_rank in config.json should be from 1 to 64, the rank of the LM head's matrix, not 65"),
        ({"candidate_rank": None}, "candidate_rank"),
        ({"draft_vocab_size": 48}, "candidates in config.json are of all tokens, and this head has a draft vocabulary of 48"),
    ],
)
def test_wrong_numbers_are_one_sentence(fields, sentence, tmp_path):
    target, head = HEADS["slim"]()
    weights.save_drafter(with_candidates(head, target, COUNT, RANK), tmp_path)
    with pytest.raises(BadInput, match=sentence):
        config.drafter_config(json.loads((tmp_path / "config.json").read_text()) | fields)


@pytest.mark.parametrize("numbers", [(504, 8), (8, 65), (8, 0), (0, 8)])
def test_a_config_of_wrong_numbers_is_not_made(numbers):
    with pytest.raises(ValueError, match="candidate head"):
        dataclasses.replace(slim(V, 64), candidates=numbers[0], candidate_rank=numbers[1])


def test_more_beams_than_candidates_are_refused():
    target, head = HEADS["slim"]()
    few = with_candidates(head, target, 8, RANK)
    with pytest.raises(BadInput, match="width should be at most the number of the head's candidates, 8, not 9"):
        Engine(target, Recurrent(few, Shape(9, 2)))
    with pytest.raises(BadInput, match="draft_top_k should be at most the number of the head's candidates, 8, not 20"):
        Engine(target, Recurrent(few, Shape(4, 2, draft_top_k=20)))


def test_what_a_step_reads_is_the_factors_and_the_rows_of_the_candidates():
    shapes = load_target("mha").config
    D = shapes.hidden_size
    head = DrafterConfig(vocab_size=V, hidden_size=D, exit_size=D, tied=True)
    few = dataclasses.replace(head, candidates=COUNT, candidate_rank=RANK)
    setting = roofline.Setting(shapes, head, 1, 1, 2, 64, 4)
    plain, cheap = (roofline.draft(dataclasses.replace(setting, head=each), 3, 5) for each in (head, few))
    rows, factors = 2 * 3 * COUNT * D, RANK * (D + V)
    assert plain.bytes - cheap.bytes == 4 * 5 * (D * V - factors - rows)
    assert plain.flops - cheap.flops == 2 * 5 * (2 * 3 * (D * V - factors) - rows)
    size = lambda each: placement.bytes_of_head(vocabulary.materialised_config(each, shapes), "float32")  # noqa: E731
    assert size(few) - size(head) == 4 * (factors + V * D)  # and the target's LM head by token
    tied = dataclasses.replace(shapes, tie_word_embeddings=True)
    assert placement.bytes_of_head(vocabulary.materialised_config(few, tied), "float32") - size(head) == 4 * factors
