"""A file is replaced in one step or not at all, and no file of a similar name is touched."""

import pytest

from infer.replies import Owner, ReplyFile
from redrafter_jax.files import weights
from redrafter_jax.files.atomic import replacing
from tests.support import load_pair
from tests.training import recipe
from train.run import configuration, log


def test_a_file_is_replaced_at_the_end_and_an_error_leaves_it_alone(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as new:
        new.write_text("one")
        assert not path.exists() and new.name.startswith(".")
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), replacing(path) as new:
            new.write_text("two")
            raise error
    with pytest.raises(OSError), replacing(path):  # nothing was written
        pass
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_files_of_others_beside_what_is_written_are_kept(tmp_path):
    names = ("config.tmp", "log.tmp", "model.safetensors.incomplete", "config.json.incomplete", "own.jsonl.settings.json.draft")
    for name in names:
        (tmp_path / name).write_text("mine")
    configuration.save(tmp_path, {"rate": 0.1}, "auto")
    log.Log(tmp_path, recipe(4), 0, 1.0)
    ReplyFile(tmp_path / "own.jsonl", Owner.of_settings({"prompts": "x"}, [])).begin()
    weights.save_drafter(load_pair("mha_rnn")[1], tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in names)
    written = {"config.json", "checkpoints", "log.jsonl", "own.jsonl", "own.jsonl.settings.json", "model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {*names, *written}
