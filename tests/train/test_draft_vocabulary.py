"""Training with a draft vocabulary: which tokens it takes, and runs that are resumed."""

import json

import numpy as np
import pytest

from redrafter_jax.errors import BadInput
from tests.support import load_target
from tests.training import examples, recipe, same, stops_after
from train.data import rows
from train.run import configuration as configurations
from train.run import log, loop


def test_the_most_frequent_labelled_tokens_are_taken_and_ties_fall_to_the_smaller_id():
    text = [
        {"tokens": np.array([9, 9, 9, 9, 2]), "labelled": np.array([0, 0, 0, 0, 1], bool)},
        {"tokens": np.array([7, 7, 5, 4, 6]), "labelled": np.ones(5, bool)},
    ]
    assert rows.find_most_frequent(text, 10, 3).tolist() == [2, 4, 7]
    assert rows.find_most_frequent(text, 10, 7).tolist() == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["full", "slim"])
def test_a_head_learns_in_its_vocabulary_and_a_stopped_run_goes_on(head, tmp_path, monkeypatch):
    target, how = load_target("mha"), recipe(20, head=head, rate=1e-2, head_vocab=12, save_every=10, evaluate_every=20)
    whole = loop.train_head(target, examples(), how, tmp_path / "whole_", examples(5))
    assert whole.ids[...].tolist() == rows.find_most_frequent(examples(), 503, 12).tolist()
    lines = [line for line in log.read(tmp_path / "whole_") if "loss" in line]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    monkeypatch.setattr(loop, "read_batches", stops_after(rows.read_batches, 11))
    with pytest.raises(KeyboardInterrupt):
        loop.train_head(target, examples(), how, tmp_path / "cut_", examples(5))
    monkeypatch.undo()
    monkeypatch.setattr(loop, "find_most_frequent", None)  # the table comes from the checkpoint
    same(loop.train_head(target, examples(), how, tmp_path / "cut_", examples(5)), whole)


def test_more_tokens_than_the_target_has_are_refused(tmp_path):
    with pytest.raises(BadInput, match="--head-vocab should be at most the target's vocabulary of 503, not 504"):
        loop.train_head(load_target("mha"), examples(), recipe(2, head_vocab=504), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_the_option_existed_goes_on(tmp_path):
    configuration = {"steps": 4, "head_vocab": 0}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "2").mkdir()
    (tmp_path / "checkpoints" / "config.json").write_text(json.dumps({"steps": 4}))
    configurations.save(tmp_path, configuration, "auto")
    with pytest.raises(BadInput, match="head_vocab was 0 and is 8"):
        configurations.save(tmp_path, configuration | {"head_vocab": 8}, "auto")
