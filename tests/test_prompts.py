"""Where prompts come from, standard input above all."""

import io
import os
import sys

import pytest

from infer import prompts
from redrafter_jax.errors import BadInput


@pytest.fixture
def piped(monkeypatch):
    """Makes standard input a pipe that holds ``text`` (None: nothing, and its writer stays)."""
    opened = []

    def pipe(text):
        reader, writer = os.pipe()
        if text is not None:
            os.write(writer, text.encode())
            os.close(writer)
        else:
            opened.append(writer)
        monkeypatch.setattr(sys, "stdin", os.fdopen(reader))

    yield pipe
    for writer in opened:
        os.close(writer)


def test_a_piped_text_is_the_prompt_less_its_last_line_break(piped):
    piped("def f():\n    x\n\n")
    assert [prompt.content for prompt in prompts.read((), None)] == ["def f():\n    x\n"]


def test_an_empty_pipe_is_no_prompt(piped):
    piped("")
    assert prompts.read((), None) == []


def test_a_silent_pipe_does_not_hang(piped, monkeypatch, capsys):
    monkeypatch.setattr(prompts, "PATIENCE", 0.05)
    piped(None)
    assert prompts.read((), None) == []
    assert "standard input sent nothing" in capsys.readouterr().err


@pytest.mark.parametrize("stdin", [None, io.StringIO("not a real file")])
def test_a_standard_input_that_is_no_pipe_is_not_read(monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    assert prompts.read((), None) == []


def test_dev_null_is_no_prompt(monkeypatch):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert prompts.read((), None) == []


def test_a_pipe_is_left_alone_where_a_prompt_is_named(piped):
    piped("no")
    assert [prompt.content for prompt in prompts.read(("yes",), None)] == ["yes"]


def test_a_dash_reads_standard_input(piped):
    piped("b\n")
    assert [prompt.content for prompt in prompts.read(("a", "-"), None)] == ["a", "b"]
    piped('{"prompt": "c"}\n{"token_ids": [1]}\n')
    found = prompts.read((), "-")
    assert [(prompt.kind, prompt.content) for prompt in found] == [("prompt", "c"), ("token_ids", [1])]


def test_a_bad_line_of_standard_input_is_named(piped):
    piped('{"prompt": "c"}\nno\n')
    with pytest.raises(BadInput, match="--prompts standard input:2 is not JSON"):
        prompts.read((), "-")
