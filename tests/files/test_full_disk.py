"""A full disk gives one sentence and exit code 2, wherever it occurs; what was saved before stays."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
import safetensors.numpy

from infer.generate import session
from infer.generate.__main__ import main as generate
from infer.replies import Owner, ReplyFile
from redrafter_jax.errors import BadInput
from redrafter_jax.files import checkpoint
from redrafter_jax.model.drafter import Drafter
from tests.damaged import HEAD, NO_ROOM, full, full_in_safetensors, full_in_tensorstore
from tests.support import MODELS, load_target
from tests.training import examples, idle, recipe
from train import main
from train.data import datasets
from train.demo import corpus
from train.run import log, loop, shapes, step

OWNER = Owner.of_runs({0: "run"})
TARGET = MODELS / "target_mha"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1, 2, 3, 4, 5, 6, 7, 8], "prompt_tokens": 1}\n')
    paths = ["--target", TARGET, "--token-ids", tmp_path / "ids.jsonl", "--output", tmp_path / "run"]
    return [*map(str, paths), "--held-out", "0", "--steps", "2"]


def sentence(capsys) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize("place", ["_split_generators", "_read"])
def test_while_a_dataset_is_built(place, arguments, monkeypatch, capsys):
    monkeypatch.setattr(datasets.TokenIdsBuilder, place, full)
    assert main.command(arguments) == 2
    assert sentence(capsys) == f"error: {NO_ROOM}"


def test_while_the_configuration_the_log_or_the_head_is_written(arguments, monkeypatch, capsys):
    head = Drafter(jax.random.key(0), shapes.make_head_config(load_target("mha").config, recipe(2)))
    monkeypatch.setattr(loop, "train_pair", lambda *_, **__: step.HeadState(jax.numpy.int32(2), head, None))
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", full_in_safetensors)
        assert main.command(arguments) == 2 and sentence(capsys) == f"error: {NO_ROOM}"
    monkeypatch.setattr(loop, "train_pair", full)  # as where a line of the log is written
    assert main.command(arguments) == 2 and sentence(capsys) == f"error: {NO_ROOM}"


def test_while_a_line_of_the_log_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "step", idle)
    monkeypatch.setattr(log.Log, "_write", full)
    with pytest.raises(OSError, match="No space left"):  # which the command's wrapper turns into a sentence
        loop.train_head(load_target("mha"), examples(), recipe(2), tmp_path)


@pytest.mark.parametrize("place", ["save_checkpointables_async", "close"])
def test_while_a_checkpoint_is_written_in_the_background(place, tmp_path, monkeypatch):
    """The writing thread's error is raised at the next save or at the end."""
    with checkpoint.Checkpoints(tmp_path) as kept:
        kept.save(1, head=HEAD)
    with pytest.raises(BadInput) as found, checkpoint.Checkpoints(tmp_path) as kept:
        real = kept._checkpointer
        kept._checkpointer = _Fails(real, place)
        kept.save(2, head=HEAD)
    real.close()
    assert str(found.value) == f"a checkpoint in {tmp_path} cannot be written: {NO_ROOM}"
    assert checkpoint.find_newest_sound(tmp_path, head=HEAD)[0] in (1, 2)


class _Fails:
    """A checkpointer with one method that fails with a full disk."""

    def __init__(self, checkpointer, name: str):
        self.checkpointer, self.name = checkpointer, name

    def __getattr__(self, name: str):
        return full_in_tensorstore if name == self.name else getattr(self.checkpointer, name)


def test_while_a_corpus_is_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pathlib.Path, "write_text", full)
    assert corpus.command(["--output", str(tmp_path / "corpus")]) == 2
    assert sentence(capsys) == f"error: --output: {tmp_path / 'corpus'} cannot be written (No space left on device)"


def test_while_replies_are_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"token_ids": [1, 2]}) + "\n")
    monkeypatch.setattr(session, "run", lambda task, _: ReplyFile(task.destination.file, OWNER).write([{"run": "run"}]))
    monkeypatch.setattr(os, "fsync", full)
    assert generate(["--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert sentence(capsys) == f"error: {NO_ROOM}"


@pytest.mark.slow
@pytest.mark.parametrize("room", [50_000, 200_000])
def test_a_process_that_may_not_write_large_files(room, tmp_path):
    """The dataset's file exceeds the first limit, a checkpoint's file the second."""
    line = json.dumps({"token_ids": [n % 500 for n in range(4000)], "prompt_tokens": 1})
    (tmp_path / "ids.jsonl").write_text(f"{line}\n" * 5)
    limit = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    code = f"{limit}; from train import main; sys.exit(main.command())"
    given = ["--target", TARGET, "--token-ids", tmp_path / "ids.jsonl", "--output", tmp_path / "run", "--held-out", 0]
    given += ["--steps", 4, "--save-every", 1, "--batch", 2, "--row-length", 32]
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, given)], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.strip().splitlines()[-1].endswith(NO_ROOM)


def test_a_closed_pipe_ends_the_configurations_printing_quietly(arguments):
    """As `train.main --config | head -1` does."""
    read, write = os.pipe()
    os.close(read)
    shell = [sys.executable, "-m", "train.main", *arguments, "--config"]
    with os.fdopen(write, "w") as closed:
        ended = subprocess.run(shell, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (141, "")
