"""A fingerprint covers every byte that matters, and large files are read once."""

import json
import shutil

import pytest

from redrafter_jax.files import fingerprint
from tests.damaged import flip
from tests.support import MODELS
from tests.texts import with_tokenizer


@pytest.fixture
def model(tmp_path):
    folder = with_tokenizer(tmp_path / "model", template=True)
    more = ("generation_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model", "merges.txt")
    for name in more:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Records the names of the files that are read."""
    found = []
    hash_of = fingerprint._hash
    monkeypatch.setattr(fingerprint, "_hash", lambda path: found.append(path.name) or hash_of(path))
    return found


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_byte_anywhere_in_the_weights_changes_it(model, at):
    before = fingerprint.fingerprint(model)
    flip(model / "model.safetensors", at)
    assert fingerprint.fingerprint(model) != before
    flip(model / "model.safetensors", at)
    assert fingerprint.fingerprint(model) == before


@pytest.mark.parametrize("name", [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "merges.txt",
    "special_tokens_map.json", "chat_template.jinja",
])  # fmt: skip
def test_whatever_decides_the_text_changes_it(model, name):
    before = fingerprint.fingerprint(model)
    flip(model / name, 0.5)
    changed = fingerprint.fingerprint(model)
    (model / name).unlink()
    assert len({before, changed, fingerprint.fingerprint(model)}) == 3


def test_what_decides_nothing_does_not_change_it(model, tmp_path):
    before = fingerprint.fingerprint(model)
    (model / "README.md").write_text("a card")
    (model / "trainer_state.json").write_text("{}")
    (model / "pytorch_model.bin").write_text("not read")
    assert fingerprint.fingerprint(model) == before
    shutil.copytree(model, tmp_path / "copy")
    assert fingerprint.fingerprint(tmp_path / "copy") == before
    assert fingerprint.fingerprint(None) != before


def test_what_an_earlier_version_kept_is_told_apart():
    assert fingerprint.is_current(fingerprint.fingerprint(None))
    assert not any(map(fingerprint.is_current, ("ab" * 32, None, 5)))


def test_the_files_that_an_index_names_are_the_weights(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("model-1.safetensors", "model-2.safetensors", "other.safetensors"):
        (folder / name).write_bytes(name.encode())
    named = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / fingerprint.WEIGHT_INDEX).write_text(json.dumps({"weight_map": named}))
    before = fingerprint.fingerprint(folder)
    flip(folder / "other.safetensors", 0.5)
    assert fingerprint.fingerprint(folder) == before
    flip(folder / "model-2.safetensors", 0.5)
    assert fingerprint.fingerprint(folder) != before


def test_two_heads_of_the_same_shape_are_told_apart():
    one, other = (fingerprint.fingerprint(MODELS / f"drafter_mha_{kind}") for kind in ("rnn", "rand"))
    assert one != other and one == fingerprint.fingerprint(MODELS / "drafter_mha_rnn")


def test_a_second_start_does_not_read_the_weights_and_a_changed_file_is_read_again(model, reads, monkeypatch):
    monkeypatch.setattr(fingerprint, "MIN_AGE_SECONDS", 0.0)
    before = fingerprint.fingerprint(model)
    assert "model.safetensors" in reads
    reads.clear()
    assert fingerprint.fingerprint(model) == before
    assert "model.safetensors" not in reads
    flip(model / "model.safetensors", 0.5)
    assert fingerprint.fingerprint(model) != before
    assert "model.safetensors" in reads


def test_a_file_that_has_just_been_written_is_not_remembered(model, reads):
    fingerprint.fingerprint(model)
    reads.clear()
    fingerprint.fingerprint(model)
    assert "model.safetensors" in reads


def test_what_is_remembered_can_be_lost_broken_or_impossible_to_write(model, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "MIN_AGE_SECONDS", 0.0)
    before = fingerprint.fingerprint(model)
    for content in ("", "[]", '{"x": 1}', json.dumps({str(model / "model.safetensors"): [1, 2]})):
        fingerprint.CACHE_FILE.write_text(content)
        assert fingerprint.fingerprint(model) == before
    (tmp_path / "file").touch()
    monkeypatch.setattr(fingerprint, "CACHE_FILE", tmp_path / "file" / "fingerprints.json")
    assert fingerprint.fingerprint(model) == before


def test_files_that_are_gone_are_forgotten(model, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "MIN_AGE_SECONDS", 0.0)
    monkeypatch.setattr(fingerprint, "CACHE_FILE", tmp_path / "fingerprints.json")
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    fingerprint.fingerprint(copy)
    shutil.rmtree(copy)
    fingerprint.fingerprint(model)
    assert list(json.loads(fingerprint.CACHE_FILE.read_text())) == [str(model / "model.safetensors")]
