"""One writer at a time: a second start gets one sentence, and a killed process leaves no lock behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import filelock
import pytest

from infer.generate import __main__ as generate
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import lock
from tests.support import MODELS
from train import main
from train.demo import __main__ as demo
from train.distill import __main__ as distill

HOLDER = """
import pathlib, sys, time
from redrafter_jax.files import lock
with lock.file(pathlib.Path(sys.argv[1]), "--output"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    path = tmp_path / "out.jsonl"
    with lock.file(path, "--output"):
        told = f"--output: {path} is being written by another process .pid {os.getpid()} on host .*; wait for it"
        with pytest.raises(BadInput, match=told), lock.file(path, "--output"):
            pass
        with lock.file(tmp_path / "other.jsonl", "--output"):
            pass
        assert [each.name for each in tmp_path.iterdir()] == [".out.jsonl.lock"]
    with lock.file(path, "--output"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_file_has_the_files_lock(tmp_path):
    (tmp_path / "out.jsonl").touch()
    (tmp_path / "link").symlink_to(tmp_path / "out.jsonl")
    refused = pytest.raises(BadInput, match="link is being written")
    with lock.file(tmp_path / "out.jsonl", "--output"), refused, lock.file(tmp_path / "link", "--output"):
        pass


def test_a_folder_that_was_made_for_its_lock_is_removed_where_nothing_was_put_into_it(tmp_path):
    run = tmp_path / "deep" / "run"
    for file in (None, "config.json"):
        with lock.folder(run, "--output"):
            with pytest.raises(BadInput, match="run is being written"), lock.folder(run, "--output"):
                pass
            if file:
                (run / file).touch()
        assert (tmp_path / "deep").exists() == bool(file)
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    path = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, cwd=pathlib.Path(__file__).parents[2]
    )
    try:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(BadInput, match=f"another process .pid {process.pid} on host"), lock.file(path, "--output"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [each.name for each in tmp_path.iterdir()] == [".out.jsonl.lock"]
    with lock.file(path, "--output"):
        assert json.loads((tmp_path / ".out.jsonl.lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def acquire(self, *_, **__):
        raise OSError(lock.errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with lock.file(tmp_path / "out.jsonl", "--output"):
        pass
    assert "out.jsonl has no lock" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(BadInput, match="--output: there is no folder"), lock.file(tmp_path / "no" / "x", "--output"):
        pass
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(BadInput, match="--output: the folder .* cannot be made"), lock.folder(path, "--output"):
            pass


@pytest.mark.parametrize("command", ["generate", "main"])
def test_a_lock_that_the_first_process_does_not_get_is_said_to_the_others(command, tmp_path, monkeypatch, capsys):
    """The others would wait until it counts as lost."""
    (tmp_path / "text.txt").write_text("Some words.")
    run, said = tmp_path / "run", []
    start, taken, arguments = {
        "generate": (generate.main, lock.file(run, ""), ["--prompt", "x", "--output", run]),
        "main": (main.command, lock.folder(run, ""), ["--target", "x", "--text", tmp_path / "text.txt", "--output", run]),
    }[command]
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "broadcast_text", lambda text: said.append(text) or said[0])
    with taken:
        for is_first in (True, False):
            monkeypatch.setattr(processes, "is_first", lambda is_first=is_first: is_first)
            assert start(list(map(str, arguments))) == 2
    told = capsys.readouterr().err.splitlines()
    assert "is being written by another process" in told[0] and told[0] == told[1] == f"error: {json.loads(said[0])}"
    assert said[1:] == ['""'] and not run.exists()


@pytest.mark.parametrize("command", ["generate", "distill", "main", "main --checkpoints", "demo"])
def test_a_second_start_is_one_sentence(command, tmp_path, capsys):
    model, out, run = MODELS / "target_mha", tmp_path / "out.jsonl", tmp_path / "run"
    (tmp_path / "text.txt").write_text("Some words.")
    text = ["--target", model, "--text", tmp_path / "text.txt"]
    start, taken, arguments = {
        "generate": (generate.main, lock.file(out, ""), ["--prompt", "x", "--output", out]),
        "distill": (distill.command, lock.file(out, ""), [*text, "--output", out]),
        "main": (main.command, lock.folder(run, ""), [*text, "--output", run]),
        "main --checkpoints": (
            main.command,
            lock.folder(run / "checkpoints", ""),
            [*text, "--output", tmp_path / "new", "--checkpoints", run / "checkpoints"],
        ),
        "demo": (demo.command, lock.folder(run, ""), ["--work", run]),
    }[command]
    with taken:
        before = sorted(tmp_path.rglob("*"))
        assert start(list(map(str, arguments))) == 2
        assert sorted(tmp_path.rglob("*")) == before
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "is being written by another process (pid" in told and told.startswith("error: --")
