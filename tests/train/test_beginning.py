"""Runs that begin with a head that is there: where they start, what they refuse, and that resuming them is exact."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from redrafter_jax.model.drafter import Drafter, slim
from tests.support import load_target
from tests.training import examples, recipe, same, stops_after
from train import main
from train.run import beginning, loop, shapes

PARTS = {"head": "slim", "bigram": 4, "gated": True, "decay": 0.8, "distance_weight": 0.5}


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
    unlike = loop.train_head(target, examples(), dataclasses.replace(asked, distance_weight=0.0), tmp_path / "unlike", begun=head)
    moved = [
        float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*map(jax.tree.leaves, (whole, unlike)), strict=True)
    ]
    assert max(moved) > 0  # the second half of the updates has total variation in its loss
    assert np.abs(np.asarray(whole.rnn_w.weight) - np.asarray(head.rnn_w.weight)).max() < 0.1  # near where it began
    assert np.abs(np.asarray(whole.bigram.columns)).max() > 0


@pytest.mark.parametrize(
    ("other", "sentence"), [({"blocks": 3}, "num_blocks 2, and the one that is trained 3"), ({"head": "full"}, "exit_size")]
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
        (("--distance-weight", "1.5"), "--distance-weight should be from 0 to 1"),
        (("--distance-weight", "0.5", "--distill-weight", "0"), "give --distill-weight above 0 with it"),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence, capsys):
    assert main.command(["--target", "none", "--text", "none", *options]) == 2
    assert sentence in capsys.readouterr().err
