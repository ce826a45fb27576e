"""Runs that begin with a head that is there: where they start, what they refuse, and that resuming them is exact."""

import pathlib

import jax
import numpy as np
import pytest

from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from redrafter_jax.model.drafter import Drafter, slim
from tests.support import MODELS, load_target
from tests.training import examples, recipe, same, stops_after
from train import main
from train.run import beginning, card, loop, shapes

PARTS = {"head": "slim", "bigram": 4, "gated": True, "depths": 1, "decay": 0.8, "distance_weight": 0.5}


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> pathlib.Path:
    """A slim head without parts."""
    config, folder = load_target("mha").config, tmp_path_factory.mktemp("begun")
    weights.save_drafter(Drafter(jax.random.key(7), slim(config.vocab_size, config.hidden_size)), folder)
    return folder


def test_a_run_begins_with_the_heads_weights_and_resumes_exactly(begun, tmp_path, monkeypatch):
    target, asked = load_target("mha"), recipe(4, **PARTS)
    config = shapes.make_head_config(target.config, asked)
    head = beginning.load(begun, config)
    grown = beginning.grow(head, config.make(jax.random.key(0)))
    np.testing.assert_array_equal(grown.rnn_w.weight, head.rnn_w.weight)
    assert grown.config == config and np.any(grown.bigram.rows[...] != 0)
    whole = loop.train_head(target, examples(), asked, tmp_path / "whole", begun=head)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "read_batches", stops_after(loop.read_batches, 2))
        with pytest.raises(KeyboardInterrupt):
            loop.train_head(target, examples(), asked, tmp_path / "parts", begun=head)
    same(whole, loop.train_head(target, examples(), asked, tmp_path / "parts", begun=head))
    assert np.abs(np.asarray(whole.rnn_w.weight) - np.asarray(head.rnn_w.weight)).max() < 0.1  # near where it began
    assert np.abs(np.asarray(whole.bigram.columns)).max() > 0 and np.abs(np.asarray(whole.depths.mix.weight)).max() > 0


def test_total_variation_is_in_the_loss_from_its_share_of_the_updates_on(begun, tmp_path):
    for accumulate in (1, 2):
        schedule = loop.make_schedule(recipe(8, batch=2, accumulate=accumulate, distance_weight=0.25, distance_start=0.75))
        last, first = (6 * accumulate - 1, 6 * accumulate)  # parts of updates, counted from 0
        assert float(schedule.distance_share(last)) == 0 and float(schedule.distance_share(first)) == 0.25
    target, found = load_target("mha"), []
    for number, more in enumerate(({"distance_weight": 0.0}, {"distance_start": 1.0}, {"distance_start": 0.75})):
        asked = recipe(4, **PARTS | more)
        head = beginning.load(begun, shapes.make_head_config(target.config, asked))
        found.append(loop.train_head(target, examples(), asked, tmp_path / str(number), begun=head))
    never, at_the_end, late = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(head)]) for head in found)
    np.testing.assert_allclose(at_the_end, never, atol=1e-5)
    assert np.abs(late - never).max() > 1e-4


def test_a_head_of_another_target_is_begun_with_and_that_is_said(tmp_path, capsys):
    config = load_target("mha").config
    head = Drafter(jax.random.key(7), slim(config.vocab_size, config.hidden_size))
    weights.save_drafter(head, tmp_path / "head", trained_for={"weights": ["others"]})
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [' + ", ".join(map(str, range(300))) + "]}\n")
    given = ["--begin-with", tmp_path / "head", "--token-ids", tmp_path / "ids.jsonl", "--output", tmp_path / "run"]
    more = ["--head", "slim", "--steps", "1", "--batch", "2", "--row-length", "32", "--held-out", "0", "--evaluate-every", "0"]
    assert main.command(["--target", str(MODELS / "target_mha"), *map(str, given), *more]) == 0
    assert f"the head in {tmp_path / 'head'} was trained for other weights" in capsys.readouterr().err


def test_a_name_for_several_fields_is_refused_in_python_where_it_would_stand_for_one():
    with pytest.raises(BadInput, match="head should be full or slim in a recipe, and `named` makes one of paper"):
        shapes.make_head_config(load_target("mha").config, recipe(4, head="paper"))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [({"blocks": 3}, "num_blocks 2, and the one that is trained num_blocks 3"), ({"head": "full"}, "exit_size")],
)
def test_another_head_is_refused(other, sentence, begun):
    with pytest.raises(BadInput, match=f"--begin-with: .*{sentence}"):
        beginning.load(begun, shapes.make_head_config(load_target("mha").config, recipe(4, **{"head": "slim"} | other)))


def test_medusas_heads_do_not_begin_with_a_recurrent_one(begun):
    with pytest.raises(BadInput, match="--begin-with: .* another --method"):
        beginning.load(begun, shapes.make_head_config(load_target("mha").config, recipe(4, method="medusa")))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--bigram", "-1"), "--bigram should be from 0 to"),
        (("--gated", "--no-rnn"), "--gated is of a recurrent state; leave out --no-rnn"),
        (("--bigram", "8", "--method", "medusa"), "--bigram is of a recurrent head; leave out --method medusa"),
        (("--depths", "2", "--method", "medusa"), "--depths is of a recurrent head; leave out --method medusa"),
        (("--depths", "-1"), "--depths should be from 0 to"),
        (("--decay", "0.01", "--positions", "21"), "--decay 0.01 to the power of 20, the last of --positions, is below 1e-06"),
        (("--distance-weight", "1.5"), "--distance-weight should be from 0 to 1"),
        (("--distance-weight", "0.5", "--distill-weight", "0"), "give --distill-weight above 0 with it"),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence, capsys):
    assert main.command(["--target", "none", "--text", "none", *options]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("part", [{"bigram": 4}, {"gated": True}, {"depths": 2}])
def test_the_card_says_that_apples_format_has_no_place_for_a_part(part):
    settings = {"bigram": 0, "gated": False, "depths": 0}
    plain, other = (card.compose(MODELS / "target_mha", settings | more, {}, 1) for more in ({}, part))
    assert "no place for" in other and "no place for" not in plain


def test_more_layers_than_the_target_has_before_its_last_are_refused():
    config = load_target("mha").config
    assert shapes.make_head_config(config, recipe(4, head="slim", depths=2)).depths == (0, 1)
    with pytest.raises(BadInput, match="--depths should be below the target's 3 layers, not 3; give --depths 2"):
        shapes.make_head_config(config, recipe(4, depths=3))


def test_a_head_that_reads_other_layers_is_refused_by_their_number(tmp_path):
    config = load_target("mha").config
    asked = shapes.make_head_config(config, recipe(4, head="slim", depths=2))
    weights.save_drafter(asked.make(jax.random.key(0)), tmp_path / "head")
    with pytest.raises(BadInput, match=r"has depths 2 \(layers \[0, 1\]\), and the one that is trained depths 0"):
        beginning.load(tmp_path / "head", shapes.make_head_config(config, recipe(4, head="slim")))
