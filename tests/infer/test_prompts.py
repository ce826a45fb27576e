"""Where prompts come from, standard input above all."""

import io
import json
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
    monkeypatch.setattr(prompts, "PIPE_WAIT_SECONDS", 0.05)
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


HALF = "\ud800"


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": f"a{HALF}b"},
        {"messages": [{"role": "user", "content": HALF}]},
        {"messages": [{"role": HALF, "content": "a"}]},
        {"messages": [{"role": "user", "content": "a", "tools": [{"b": [HALF]}]}]},
    ],
    ids=str,
)
def test_a_line_with_half_a_surrogate_pair_is_named_before_any_model_is_loaded(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "\\ud83d\\ude00"}\n' + json.dumps(line))
    with pytest.raises(BadInput) as caught:
        prompts.read((), str(path))
    assert str(caught.value) == f"--prompts {path}:2 should be UTF-8 text, and '\\ud800' is half a surrogate pair"


def test_an_option_whose_bytes_are_no_text_is_named():
    with pytest.raises(BadInput, match=r"--prompt 2 should be UTF-8 text, and '\\udcff' is half"):
        prompts.read(("a", os.fsdecode(b"a\xff")), None)


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"prompt": ' * 100_000])
def test_a_line_that_is_nested_too_deeply_is_named(tmp_path, nested):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' + nested)
    with pytest.raises(BadInput, match="prompts.jsonl:2 is not JSON"):
        prompts.read((), str(path))


def test_the_mark_of_a_byte_order_at_the_start_is_no_part_of_the_text(tmp_path, piped):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n', encoding="utf-8-sig")
    assert [prompt.content for prompt in prompts.read((), str(path))] == ["a"]
    piped("\ufeffb")
    assert [prompt.content for prompt in prompts.read(("-",), None)] == ["b"]
