"""The options that make a command one process of several, and how such a process ends."""

import re

import jax
import pytest

from infer import distributed
from infer.distributed import Group
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput

BY_HAND = Group(coordinator="127.0.0.1:1", num_processes=2, process_id=0)


@pytest.mark.parametrize("saves", [True, False])
def test_only_what_saves_leaves_sigterm_to_jax(saves, monkeypatch):
    said = {}
    monkeypatch.setattr(jax.config, "update", said.__setitem__)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: said.setdefault("joined", True))
    distributed.join(BY_HAND, saves)
    assert said["joined"] and said["jax_enable_preemption_service"] == saves


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Group(coordinator="host:1"), "--coordinator goes with --num-processes and --process-id"),
        (Group(process_id=0), "--process-id goes with --coordinator and --num-processes"),
        (Group(False, "host", 2, 0), "--coordinator should be HOST:PORT of process 0, not host"),
        (Group(False, "host:99999", 2, 0), "--coordinator should be HOST:PORT"),
        (Group(False, "host:1", 0, 0), "--num-processes should be 1 or more, not 0"),
        (Group(False, "host:1", 2, 2), "--process-id should be from 0 to 1"),
        (Group(True, "host:1", 2, 1), "--distributed takes from the environment"),
        (Group(lost_after=0), "--lost-after should be 5 seconds or more, not 0"),
    ],
)
def test_options_of_a_group_that_say_too_little_or_nonsense_are_refused(options, sentence):
    with pytest.raises(BadInput, match=re.escape(sentence)):
        options.check()


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        (BY_HAND, "--coordinator 127.0.0.1:1: the processes did not find each other (no way)"),
        (
            Group(distributed=True),
            "--distributed: the environment names no group of processes (no way); give --coordinator, --num-processes and"
            " --process-id",
        ),
    ],
)
def test_a_group_that_is_not_found_is_refused_with_the_option_that_named_it(group, sentence, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        distributed.join(group)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (BadInput("--x is\nwrong"), 2, "error: --x is wrong\n"),
        (
            jax.errors.JaxRuntimeError("UNAVAILABLE: a heartbeat\nis late"),
            distributed.LOST_EXIT_CODE,
            "UNAVAILABLE: a heartbeat is late\n",
        ),
        (ValueError("UNKNOWN: Gloo AllGather failed"), distributed.LOST_EXIT_CODE, "UNKNOWN: Gloo AllGather failed\n"),
        (KeyError("ours"), 1, "KeyError: 'ours'"),
        (ValueError("ours"), 1, "ValueError: ours"),
    ],
)
def test_a_process_says_why_it_ends_and_its_code_tells_a_lost_process_from_a_wrong_option(error, code, says, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(processes, "wait", lambda place, seconds: waited.append(seconds))
    assert distributed._report(error) == code
    assert says in capsys.readouterr().err
    assert waited == [distributed.SHUTDOWN_SECONDS] * (code == 2)  # the others may have the same error to report


def test_a_group_of_one_process_returns_what_its_command_returns():
    assert distributed.run(Group(), lambda: None) == 0
    assert distributed.run(Group(), lambda: 143) == 143
