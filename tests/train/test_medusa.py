"""`train.main --method medusa`: trained, resumed and exported as the recurrent head is, with a tree of its own."""

import json

import jax
import numpy as np
import pytest

import infer
from redrafter_jax.errors import BadInput
from redrafter_jax.files import medusa as files
from redrafter_jax.model.medusa import MedusaHeads
from tests import support
from tests.training import examples, recipe, same, stops_after
from train.run import card, evaluation, loop
from train.run.recipe import Recipe


@pytest.mark.parametrize("head", ["slim", "full"])
def test_heads_learn_and_a_stopped_run_ends_as_one_that_was_not(head, tmp_path, monkeypatch):
    target = support.load_target("mha")
    how = recipe(6, method="medusa", head=head, blocks=1, decay=0.8, evaluate_every=0)
    whole = loop.train_head(target, examples(), how, tmp_path / "whole")
    assert isinstance(whole, MedusaHeads) and whole.config.num_heads == 2 and whole.config.tied == (head == "slim")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "read_batches", stops_after(loop.read_batches, 4))
        loop.train_head(target, examples(), how, tmp_path / "cut")
    same(loop.train_head(target, examples(), how, tmp_path / "cut"), whole)


def test_the_tree_is_that_of_the_heads_own_accuracies():
    heads = support.medusa_heads(support.load_target("mha").config, 3)
    own = [[0.6, 0.1, 0.05], [0.4, 0.1, 0.1], [0.2, 0.1, 0.05]]
    found = evaluation.with_tree(heads, {"held_out_accuracy": np.cumsum(own, axis=1).tolist()})
    assert found.config.tree[:4] == ((0,), (0, 0), (1,), (0, 1)) and heads.config.tree is None
    assert len(found.config.tree) == 3 + 9 + 27  # as many as three ranks of three heads make, which are fewer than 64
    assert evaluation.with_tree(heads, {}) is heads
    assert "(--evaluate-every, --held-out)" in evaluation.note_of_tree(heads) and evaluation.note_of_tree(found) is None
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), jax.tree.leaves(heads))


def test_a_run_leaves_heads_that_decode(tmp_path):
    target = support.load_target("mha")
    how = recipe(2, method="medusa", head="slim", blocks=1, positions=3, evaluate_every=2, evaluation_rows=2)
    heads = loop.train_head(target, examples(), how, tmp_path, held_out=examples(4))
    last = loop.read_last_evaluation(tmp_path, 2)
    assert len(last["held_out_accuracy"][0]) == 10 and last["held_out_tokens_per_step_1x3"] >= 1
    heads = evaluation.with_tree(heads, last)
    files.save_medusa(heads, tmp_path / "head")
    pair = infer.load(str(support.MODELS / "target_mha"), str(tmp_path / "head"))
    assert len(pair.engine.proposer.paths) == 63
    plain = infer.load(str(support.MODELS / "target_mha"))
    assert pair.complete([3, 1, 4], 16).reply.token_ids == plain.complete([3, 1, 4], 16).reply.token_ids


def test_the_card_says_which_kind_of_head_it_is():
    cards = [card.compose(support.MODELS / "target_mha", {"method": method}, {}, 1) for method in ("medusa", "recurrent")]
    assert "# Medusa heads for target_mha" in cards[0] and "recurrent draft head" not in cards[0]
    assert "# A ReDrafter head for target_mha" in cards[1]


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(BadInput, match="--decay should be above 0 and at most 1"):
        Recipe(decay=0).check()
