"""Heads that are made of others: what they replace, and what they keep."""

import json

import jax
import pytest

from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, weights
from redrafter_jax.model.drafter import Drafter, slim
from tests.support import MODELS
from train import candidates as command
from train import remade


def a_head(folder, key: int = 1):
    weights.save_drafter(Drafter(jax.random.key(key), slim(503, 64)), folder)
    (folder / "LICENSE").write_text("the head's")
    return folder


def run(head, output, *more) -> int:
    given = ["--target", str(MODELS / "target_mha"), "--drafter", str(head), "--output", str(output)]
    return command.command([*given, "--rank", "8", "--candidates", "32", *more])


def test_the_same_is_made_again_with_other_numbers_and_files_that_are_not_the_heads_are_kept(tmp_path):
    head, output = a_head(tmp_path / "head"), tmp_path / "few"
    output.mkdir()
    (output / "LICENSE").write_text("mine")
    assert run(head, output) == 0 and run(head, output, "--rank", "4") == 0
    assert weights.load_drafter(output).config.candidate_rank == 4
    assert (output / "LICENSE").read_text() == "mine"
    assert sorted(file.name for file in output.iterdir()) == ["LICENSE", "README.md", "config.json", "model.safetensors"]


def test_what_was_interrupted_is_no_head_and_is_made_again(tmp_path, monkeypatch):
    head, output = a_head(tmp_path / "head"), tmp_path / "few"
    assert run(head, output) == 0
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_drafter", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            command.main(command.Options(MODELS / "target_mha", head, output, 4, 32))
    assert not (output / "config.json").exists()
    assert run(head, output) == 0 and weights.load_drafter(output).config.candidate_rank == 8


def test_what_was_made_otherwise_or_of_another_head_is_kept(tmp_path, capsys):
    head, other, output = a_head(tmp_path / "head"), a_head(tmp_path / "other", key=2), tmp_path / "few"
    assert run(head, output) == 0
    before = (output / "model.safetensors").read_bytes()
    assert run(other, output) == 2
    assert f"{output} holds a head that train.candidates did not make of this one" in capsys.readouterr().err
    with pytest.raises(BadInput, match="train.calibrate did not make of this one"):
        remade.check("train.calibrate", head, output)
    trained = a_head(tmp_path / "trained")
    (trained / "README.md").write_text(claims.CARD_SIGNATURE + "of a run")
    assert run(head, trained) == 2 and "did not make of this one" in capsys.readouterr().err
    assert run(head, other) == 2 and "not of an earlier export" in capsys.readouterr().err
    assert (output / "model.safetensors").read_bytes() == before


def test_a_head_of_several_files_becomes_one_of_one(tmp_path):
    head = a_head(tmp_path / "head")
    (head / "model.safetensors").rename(head / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(weights_of(head / "model-00001-of-00001.safetensors"), "model-00001-of-00001.safetensors")
    (head / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert run(head, tmp_path / "few") == 0
    assert weights.load_drafter(tmp_path / "few").config.candidates == 32


def weights_of(file) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        return list(opened.keys())


def test_a_head_of_another_target_gets_candidates_and_that_is_said(tmp_path, capsys):
    weights.save_drafter(Drafter(jax.random.key(1), slim(503, 64)), tmp_path / "head", trained_for={"weights": ["others"]})
    assert run(tmp_path / "head", tmp_path / "few") == 0
    assert "was trained for other weights; acceptance may be low" in capsys.readouterr().err
