"""How a run is asked to end, and with which exit code."""

import signal

import pytest

from redrafter_jax.devices import processes
from tests.support import MODELS
from train import main
from train.data import datasets
from train.run import loop, stop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_asks_and_says_so_and_is_its_old_self_afterwards(number, code, capsys):
    before = signal.getsignal(number)
    with stop.Stop() as asked:
        assert not asked.is_asked(1)
        signal.raise_signal(number)
        assert asked.is_asked(2) and asked.code == code
    assert signal.getsignal(number) == before
    assert ("once more ends it at once" in capsys.readouterr().err) == (number == signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once():
    with stop.Stop(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_sigterm_then_ctrl_c_still_saves():
    with stop.Stop() as asked:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert asked.is_asked(1) and asked.code == 143


def test_in_a_group_ctrl_c_is_passed_on_as_the_signal_that_jax_waits_for(monkeypatch):
    """JAX catches SIGTERM there with its own handler, and tells the other processes."""
    caught = []
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    monkeypatch.setattr(processes, "count", lambda: 2)
    try:
        with stop.Stop() as asked:
            signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGTERM] and asked.code == 130
        with stop.Stop() as asked:  # of a process that another's signal reached through JAX
            assert asked.code == 143
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1, 2, 3, 4, 5, 6, 7, 8], "prompt_tokens": 1}\n')
    paths = ["--target", MODELS / "target_mha", "--token-ids", tmp_path / "ids.jsonl", "--output", tmp_path / "run"]
    return [*map(str, paths), "--held-out", "0"]


@pytest.mark.parametrize("code", [130, 143])
def test_a_run_that_is_not_finished_does_not_look_finished(code, arguments, tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise stop.Stopped(7, code)

    monkeypatch.setattr(loop, "train_pair", stopped)
    assert main.command([*arguments, "--steps", "9"]) == code
    assert f"stopped; the same command goes on from step 7 of 9, which is in {tmp_path / 'run'}" in capsys.readouterr().out
    assert not (tmp_path / "run" / "head").exists()


def test_ctrl_c_before_the_first_update_says_how_to_go_on(arguments, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "build", interrupted)
    assert main.command(arguments) == 130
    assert capsys.readouterr().err.endswith(f"\ninterrupted; the same command goes on from what is saved in {tmp_path / 'run'}\n")
