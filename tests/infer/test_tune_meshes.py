"""`infer.tune` on several devices: each batch has the mesh that `infer.generate` gives it, and its settings are found there."""

import json

import pytest

from infer.generate import __main__ as generate
from infer.generate import session
from infer.settings import Choice
from infer.tune import __main__ as tune
from infer.tune.acceptance import target_rows
from infer.tune.measure import Measured, Tuner
from redrafter_jax.devices import memory
from tests.options import IDS, PAIR


def measured_at_once(tuner: Tuner, batch: int, context) -> Measured:
    """An outcome in place of a measurement."""
    assert tuner.text_batch <= tuner.most and tuner.text_batch % target_rows(tuner.target) == 0
    choice = Choice(1, 2, 0, 10, 1.5, 2.0, 1.5 * batch, batch)
    return Measured(batch, 64, [], {}, {}, dict.fromkeys(tuner.heads, choice))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Tunes a pair on eight devices that have memory of their own, so that rows are split over them; returns the exit code."""
    monkeypatch.setattr(memory, "of_device", lambda _: 16 << 30)
    monkeypatch.setattr(Tuner, "tune", measured_at_once)
    monkeypatch.setattr("infer.tune.report.table", lambda _: "")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in IDS))
    paths = ["--prompts", str(tmp_path / "prompts.jsonl"), "--cache-dir", str(tmp_path / "programs")]

    def command(*arguments: str) -> int:
        return tune.main([*PAIR, *paths, "--output", str(tmp_path / "s.json"), *arguments])

    return command


def test_generate_finds_the_settings_of_each_batch_on_the_mesh_that_it_plans(run, tmp_path, capsys):
    assert run("--batch", "1", "2", "4", "8") == 0
    for batch in (1, 2, 4, 8):
        options = generate.Options(target=PAIR[1], drafter=PAIR[3], settings=str(tmp_path / "s.json"), batch_size=batch)
        prepared = session.prepare(generate.task_of(options))
        assert prepared.resolved.mesh == (batch, 1)
        capsys.readouterr()
        assert session.tune(prepared, 0).shape.length == 2
        assert f"settings of {tmp_path}/s.json: 1x2 with" in capsys.readouterr().err


def test_texts_are_not_decoded_in_larger_batches_than_are_tuned(run, monkeypatch):
    sizes = []
    monkeypatch.setattr(Tuner, "tune", lambda tuner, *given: sizes.append(tuner.text_batch) or measured_at_once(tuner, *given))
    assert run("--batch", "1", "6", "32") == 0
    assert sizes == [1, 6, 16]  # on meshes of 1, 2 and 8 rows


def test_a_mesh_that_does_not_take_every_batch_is_one_sentence(run, capsys):
    assert run("--batch", "2", "1", "--mesh", "2", "1") == 2
    assert "--mesh 2 1: --batch 1 should be a multiple of the 2 data shards" in capsys.readouterr().err
