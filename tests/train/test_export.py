"""Which checkpoint `train.export` takes, and what it says where it cannot take one. The runs here were never trained."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import pytest
import safetensors.numpy
from safetensors.numpy import load_file

from redrafter_jax.devices import memory
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import checkpoint, fingerprint
from redrafter_jax.model.drafter import Drafter
from tests.damaged import NO_ROOM, empty_all, flip, full_in_safetensors, largest
from tests.support import MODELS, load_target
from train import export
from train.run import loop, shapes
from train.run.recipe import Recipe

TARGET = MODELS / "target_mha"
LOSSES = {2: 3.0, 4: 2.5, 6: 2.75}  # on held-out examples, by step


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Checkpoints of three heads."""
    jax.set_mesh(make_mesh())
    folder, recipe = tmp_path_factory.mktemp("saved") / "run", Recipe(head="slim")
    with checkpoint.Checkpoints(folder / "checkpoints", keep=3) as kept:
        for step, loss in LOSSES.items():
            head = Drafter(jax.random.key(step), shapes.make_head_config(load_target("mha").config, recipe))
            kept.save(step, {"loss": loss, loop.HELD_OUT_SCORE: loss}, head=head)
    configuration = {**dataclasses.asdict(recipe), "dtype": "float32", "target": fingerprint.fingerprint(TARGET), "data": []}
    (folder / "checkpoints" / "config.json").write_text(json.dumps(configuration))
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture
def exports(folder, tmp_path, capsys):
    """Runs the command and returns its exit code, what it printed, and the one line of its error."""

    def command(*more, target=TARGET):
        arguments = ["--run", folder, "--target", target, "--output", tmp_path / "head", *more]
        code = export.command(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return code, out, err.strip()

    return command


def test_a_head_with_parts_is_not_exported_for_apples_code(folder, exports, tmp_path):
    file = folder / "checkpoints" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bigram": 4, "gated": True}))
    code, _, error = exports("--whole")
    assert code == 2 and "--whole: the head has a bigram term and gates, and Apple's architecture has no place for that" in error
    assert not (tmp_path / "head").exists()


def step_of(head: pathlib.Path) -> int:
    """Which of the saved heads lies in a folder."""
    found = load_file(head / "model.safetensors")["rnn_u.weight"]
    config = shapes.make_head_config(load_target("mha").config, Recipe(head="slim"))
    return next(step for step in LOSSES if (Drafter(jax.random.key(step), config).rnn_u.weight[...] == found.T).all())


def test_the_best_is_that_of_the_lowest_held_out_loss(exports, tmp_path):
    code, out, _ = exports("--best")
    assert code == 0 and "step 4 has the lowest held-out loss, 2.5000, of steps 2, 4, 6" in out
    assert step_of(tmp_path / "head") == 4


def test_without_evaluations_there_is_no_best(exports, folder, tmp_path):
    for step, loss in LOSSES.items():
        (folder / "checkpoints" / str(step) / "metrics" / "metrics").write_text(json.dumps({"loss": loss}))
    code, _, err = exports("--best")
    assert code == 2 and err.startswith("error: --best: ") and "no held-out loss" in err and "\n" not in err
    assert not (tmp_path / "head").exists()


def test_a_target_that_does_not_fit_in_memory_is_not_read_for_a_whole_head(exports, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "of_host", lambda: 100_000)
    code, _, err = exports("--whole")
    assert code == 2 and err.startswith("error: --target, whose LM head --whole takes over, needs 0.0")
    assert err.endswith("an export without --whole would do") and not (tmp_path / "head").exists()
    assert exports()[0] == 0


def test_best_and_step_are_one_too_many(exports):
    assert exports("--best", "--step", 2)[::2] == (2, "error: --best chooses the checkpoint that --step names; give one of them")


@pytest.mark.parametrize(("more", "damaged", "taken"), [((), 6, 4), (("--best",), 4, 6)])
def test_a_damaged_one_is_named_and_the_next_taken(more, damaged, taken, exports, folder, tmp_path):
    broken = folder / "checkpoints" / str(damaged)
    flip(largest(broken / "head"))
    code, out, err = exports(*more)
    assert code == 0 and f"the head of step {taken} is in" in out
    assert err.startswith(f"checkpoint {damaged} in {broken.parent} cannot be read (head") and err.endswith(f"; taking {taken}")
    assert step_of(tmp_path / "head") == taken and broken.exists()


@pytest.mark.parametrize("more", [("--step", 4), (), ("--best",)])
def test_where_none_can_be_taken_it_is_one_sentence(more, exports, folder, tmp_path):
    for step in LOSSES:
        empty_all(folder / "checkpoints" / str(step))
    code, _, err = exports(*more)
    assert code == 2 and err.startswith("error: ") and "\n" not in err and not (tmp_path / "head").exists()
    if more[:1] == ("--step",):
        assert "--step: checkpoint 4 in" in err and err.endswith("others are 2, 6")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"blocks": "two"}, 'config.json: blocks should be a whole number, not "two"'),
        ({"blocks": True}, "config.json: blocks should be a whole number, not true"),
        ({"blocks": 10**9}, "config.json: --blocks should be from 1 to 256, not 1000000000"),
        ({"head": 5}, "config.json: head should be full or slim or paper or best, not 5"),
        ({"head": "best"}, "head should be full or slim in a recipe"),
        ({"rnn": 1}, "config.json: rnn should be true or false, not 1"),
        ({"rate": None}, "config.json: rate should be a number, not null"),
        ({"not_compared": 5}, "config.json should be the JSON object that train.main wrote"),
        ({"not_compared": {"text": [5]}}, "config.json should be the JSON object that train.main wrote"),
        ({"head": "full"}, "does not fit"),
    ],
)
def test_a_configuration_with_wrong_values_is_one_sentence(change, sentence, exports, folder):
    file = folder / "checkpoints" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    code, _, err = exports()
    assert code == 2 and err.startswith("error: ") and sentence in err and "\n" not in err


def test_a_log_with_wrong_values_is_no_traceback(exports, folder, tmp_path):
    (folder / "log.jsonl").write_text('{"step": 2, "held_out_loss": "low", "held_out_accuracy": [[1.0]]}\n')
    assert exports()[0] == 0 and "there was no evaluation" in (tmp_path / "head" / "README.md").read_text()
    (folder / "log.jsonl").write_text('{"step": "two"}\n')
    assert exports()[2].endswith("log.jsonl, line 1 should be a JSON object with a step, as train.main wrote it; remove the line")


def test_a_file_that_is_missing_in_the_scores_is_no_obstacle_to_the_newest(exports, folder, tmp_path):
    os.truncate(folder / "checkpoints" / "2" / "metrics" / "metrics", 0)
    assert exports()[0] == 0 and step_of(tmp_path / "head") == 6


def change(folder: pathlib.Path, **settings) -> None:
    file = folder / "checkpoints" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_an_export_replaces_another_of_the_same_run_and_no_other_runs(exports, folder, tmp_path):
    head = tmp_path / "head"
    assert exports()[0] == 0 and step_of(head) == 6
    change(folder, save_every=7)  # which has no consequence
    assert exports("--step", 2)[0] == 0 and step_of(head) == 2
    change(folder, rate=0.5)
    before = {path: path.read_bytes() for path in head.iterdir()}
    code, _, err = exports()
    assert code == 2 and err == f"error: --output: {head} holds a head of another run (another rate); name another folder"
    assert {path: path.read_bytes() for path in head.iterdir()} == before


@pytest.mark.parametrize("kept", ["ab" * 32, None])
def test_the_head_of_an_earlier_versions_run_is_exported_with_a_note(kept, exports, folder, tmp_path):
    change(folder, target=kept)
    code, _, err = exports()
    assert code == 0 and err.startswith(f"note: {folder} was made by an earlier version, which did not record all of the target's")
    assert step_of(tmp_path / "head") == 6
    code, _, err = exports(target=MODELS / "target_gqa")
    assert code == 2 and err.startswith("error: --target: ") and "does not fit" in err and "\n" not in err


@pytest.mark.parametrize("more", [(), ("--step", 2), ("--best",)])
def test_a_run_that_ended_before_its_first_save_is_one_sentence(more, exports, folder):
    for step in LOSSES:
        shutil.rmtree(folder / "checkpoints" / str(step))
    code, _, err = exports(*more)
    assert code == 2 and err.startswith(f"error: --run: {folder} has no checkpoint, for it ended before its first save; start")


def test_while_a_head_is_exported(exports, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors.numpy, "save_file", full_in_safetensors)
    code, _, err = exports()
    assert code == 2 and err == f"error: {NO_ROOM}"
    assert not (tmp_path / "head" / "model.safetensors").exists()
