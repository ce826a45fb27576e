"""Which settings a command takes from a file, what it says, and what it reads for that."""

import dataclasses
import functools

import pytest

from infer import pair, settings, tuned
from infer.generate import __main__ as generate
from infer.settings import Conditions, Machine, SettingsFile
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import fingerprint
from tests.measured import CHOICE, ENTRY, HERE, keep
from tests.options import PAIR


@pytest.fixture
def file(tmp_path):
    """Writes entries; returns the file as a command reads it."""
    return functools.partial(keep, tmp_path)


def find(source, conditions=Conditions(4, 128), heads=("h",), target="t", machine=HERE) -> tuned.Found | None:
    return tuned.find(source, machine, lambda: target, lambda: heads, conditions)


def test_the_nearest_entry_is_taken_and_said(file):
    other = dataclasses.replace(ENTRY, conditions=Conditions(16, 128))
    source = file(ENTRY, other)
    assert find(source, Conditions(4, 100)).says == f"settings of {source.path}"
    found = find(source, Conditions(12, 4096, 0.7))
    assert found.entry == other
    assert found.says.endswith("batch 16, not 12; context 128, not 4096; temperature 0, not 0.7)")
    assert find(source, Conditions(4, 0)).entry == ENTRY


def test_of_several_heads_the_fastest_is_taken(file):
    faster = dataclasses.replace(ENTRY, head="i", choice=dataclasses.replace(CHOICE, tokens_per_second=130.0))
    source = file(ENTRY, faster)
    assert find(source, heads=("h", "i")).entry == faster
    assert find(source).entry == ENTRY


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Machine)])
def test_an_entry_of_another_machine_is_not_used_and_that_is_said(file, field):
    found = find(file(ENTRY), machine=dataclasses.replace(HERE, **{field: "other"}))
    assert found.entry is None
    assert field in found.says and "and this is other" in found.says and getattr(HERE, field) in found.says


def test_an_entry_of_another_pair_is_not_used_and_that_is_said(file):
    elsewhere = dataclasses.replace(ENTRY, machine=dataclasses.replace(HERE, dtype="bfloat16"))
    for target, head in (("u", "h"), ("t", "i")):
        found = find(file(elsewhere, ENTRY), target=target, heads=(head,))
        assert found.entry is None and "no entry for this pair" in found.says


def test_weights_are_read_only_for_entries_that_they_may_be_of(file, monkeypatch):
    read = []
    monkeypatch.setattr(fingerprint, "fingerprint", lambda folder, *_: read.append(folder.name) or folder.name)
    resolved = pair.find(PAIR[1], PAIR[3], True, "float32")
    here = settings.machine_of(resolved.mesh, resolved.dtype)
    target, head = resolved.target.name, resolved.drafter.name

    def choose(**entry):
        read.clear()
        return tuned.choose(file(dataclasses.replace(ENTRY, **entry)), resolved, [resolved.drafter], Conditions(4, 128))

    assert choose(target=target, head=head, machine=dataclasses.replace(here, jax="0.1")) is None and read == []
    assert choose(target=target, head="other", machine=here) is None and read == [head]
    assert choose(target=target, head=head, machine=here).choice == CHOICE and read == [head, target]


def test_a_damaged_file_ends_a_command_only_if_it_was_asked_for(tmp_path, capsys):
    (tmp_path / "settings.json").write_text("{")
    resolved = pair.find(PAIR[1], PAIR[3], True, "float32")
    source = SettingsFile(tmp_path / "settings.json")
    assert tuned.choose(source, resolved, [resolved.drafter], Conditions(1, 0)) is None
    assert "note: no settings are used: the default --settings: " in capsys.readouterr().err
    with pytest.raises(BadInput, match="^--settings: "):
        tuned.choose(dataclasses.replace(source, is_named=True), resolved, [resolved.drafter], Conditions(1, 0))


@pytest.fixture
def refuse(tmp_path, capsys):
    """Decodes one prompt into a file, where something is the matter; returns the one sentence."""
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1, 5]}\n')

    def run() -> str:
        given = ["--prompts", str(tmp_path / "ids.jsonl"), "--output", str(tmp_path / "out.jsonl")]
        assert generate.main([*PAIR, *given, "--cache-dir", str(tmp_path / "programs")]) == 2
        return capsys.readouterr().err

    return run


def test_settings_that_have_changed_are_named_where_an_output_is_of_another_run(refuse, tmp_path):
    (tmp_path / "out.jsonl").write_text('{"run": "0123", "index": 0}\n')
    assert "infer.tune has found other settings since, which --settings none" in refuse()


def test_settings_are_named_where_processes_are_not_alike(refuse, monkeypatch):
    def differ(_: str, sentence: str) -> None:
        raise BadInput(sentence)

    monkeypatch.setattr(processes, "check_same", differ)
    assert "--settings (or infer.tune's file, which each host has; --settings none reads none)" in refuse()
