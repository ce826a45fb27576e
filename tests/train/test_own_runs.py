"""A run is recognised by its checkpoints, log, head and configuration, and another run never replaces it."""

import json
import pathlib
import re

import pytest

from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, fingerprint
from train.run import card, folders
from train.run import configuration as configurations

RATE = {"steps": 2, "batch": 2, "rate": 0.1}


def configuration(output: pathlib.Path, checkpoints: pathlib.Path | None = None, **changed) -> dict:
    options = {"output": str(output), "checkpoints": checkpoints and str(checkpoints)}
    return RATE | changed | {configurations.NOT_COMPARED: options}


def begin(output: pathlib.Path, checkpoints: pathlib.Path | None = None, resumes: str = "auto", **changed) -> None:
    """What `train.main` does before it trains."""
    place = str(checkpoints) if checkpoints else None
    with folders.claim(output, place):
        configurations.save(output, configuration(output, checkpoints, **changed), resumes, place)


@pytest.fixture
def finished(tmp_path):
    """A run with a log and a head, and its checkpoints elsewhere."""
    run, saves = tmp_path / "run", tmp_path / "saves"
    begin(run, saves)
    (saves / "2").mkdir()
    (run / "log.jsonl").write_text('{"step": 1}\n')
    (run / "head").mkdir()
    (run / "head" / card.CARD_FILE).write_text(claims.CARD_SIGNATURE)
    return run, saves


@pytest.fixture
def refused(tmp_path):
    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def start(sentence: str, *arguments, **changed) -> None:
        before = contents()
        with pytest.raises(BadInput, match=re.escape(sentence)):
            begin(*arguments, **changed)
        assert contents() == before

    return start


@pytest.mark.parametrize("left", ["log.jsonl", "head", None])
def test_a_finished_run_whose_checkpoints_are_elsewhere_is_not_begun_anew(left, finished, refused, tmp_path):
    run, saves = finished
    if left != "log.jsonl":
        (run / "log.jsonl").unlink()
    if left != "head":
        (run / "head" / card.CARD_FILE).unlink()
        (run / "head").rmdir()
    refused(
        f"--output: {run} holds a run of another configuration: rate was 0.1 and is 0.2; give what it began with to resume it, or",
        run,
        rate=0.2,
    )
    refused(f"--output: {run} holds a run whose checkpoints are in {saves}; name that folder with --checkpoints", run)
    refused("rate was 0.1 and is 0.2", run, tmp_path / "new", rate=0.2)
    begin(run, saves)


def test_a_run_whose_checkpoints_are_its_own_is_not_begun_anew_with_others(refused, tmp_path):
    begin(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2").mkdir()
    saves = tmp_path / "run" / "checkpoints"
    refused(f"holds a run whose checkpoints are in {saves};", tmp_path / "run", tmp_path / "new")
    begin(tmp_path / "run")


def test_a_run_goes_on_from_checkpoints_that_were_moved(finished, tmp_path):
    run, saves = finished
    saves.rename(tmp_path / "moved")
    begin(run, tmp_path / "moved")


def test_a_configuration_alone_binds_nobody(tmp_path):
    begin(tmp_path / "run", tmp_path / "saves")
    begin(tmp_path / "run", rate=0.2)


@pytest.mark.parametrize("left", ["log.jsonl", "head", "checkpoints", "config.json"])
def test_checkpoints_are_not_put_into_the_output_of_a_run(left, finished, refused, tmp_path):
    run, _ = finished
    if left == "checkpoints":
        (run / left).mkdir()
    for name in {"log.jsonl", f"head/{card.CARD_FILE}"} - {left, f"{left}/{card.CARD_FILE}"}:
        (run / name).unlink()
    if left != "head":
        (run / "head").rmdir()
    refused(f"--checkpoints: {run} is the --output of a run ({left}); name a folder", tmp_path / "other", run)
    assert not (tmp_path / "other").exists()


def test_a_folder_of_checkpoints_is_no_output(finished, refused, tmp_path):
    _, saves = finished
    refused(f"--output: {saves} is where a run has its checkpoints; name another folder", saves, rate=0.2)
    refused("is --output itself; leave it out", tmp_path / "new", tmp_path / "new")


def test_a_head_without_its_run_is_not_written_over(finished, refused):
    run, _ = finished
    (run / "config.json").unlink()
    (run / "log.jsonl").unlink()
    refused(f"{run / 'head' / card.CARD_FILE} is not of a run of train.main and is kept", run)


@pytest.mark.parametrize("kept", ["ab" * 32, None])
def test_a_run_of_an_earlier_version_is_not_said_to_have_another_target(kept, tmp_path):
    configurations.save(tmp_path, RATE if kept is None else RATE | {"target": kept}, "auto")
    (tmp_path / "checkpoints" / "2").mkdir()
    now = RATE | {"target": fingerprint.fingerprint(None)}
    with pytest.raises(BadInput, match="made by an earlier version, which did not record all of the target's bytes.*train.export"):
        configurations.save(tmp_path, now, "auto")
    assert json.loads((tmp_path / "config.json").read_text()).get("target") == kept
