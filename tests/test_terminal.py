"""Incremental detokenisation and what a terminal shows."""

import dataclasses
import sys

import pytest
import transformers

from infer import terminal
from tests.texts import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(503), eos_token="<end>")


@dataclasses.dataclass
class Reply:
    token_ids: list[int]
    drafted: list[bool]


def test_a_character_is_given_out_once_it_is_whole(tokenizer):
    text = "aé漢🙂b"
    ids = tokenizer(text)["input_ids"]
    detokenizer = terminal.Detokenizer(tokenizer, [])
    pieces = [detokenizer.push(token) for token in ids]
    assert [piece for piece in pieces if piece] == list(text)
    assert len(ids) == len(text.encode())
    assert detokenizer.flush() == ""


def test_pieces_join_to_the_whole_even_where_bytes_are_no_text(tokenizer):
    ids = tokenizer("ok漢")["input_ids"][:-1] + tokenizer("é!")["input_ids"]
    detokenizer = terminal.Detokenizer(tokenizer, [])
    joined = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
    assert joined == tokenizer.decode(ids)


def test_an_unfinished_character_is_shown_at_the_end(tokenizer):
    assert terminal.text_of(tokenizer, [], tokenizer("a漢")["input_ids"][:-1]) == "a\ufffd"


def test_special_tokens_are_not_text(tokenizer):
    assert terminal.text_of(tokenizer, [], [*tokenizer("a")["input_ids"], 256]) == "a"


def test_a_character_that_the_prompt_began_does_not_spoil_the_text(tokenizer):
    ids = tokenizer("漢x")["input_ids"]
    assert terminal.text_of(tokenizer, ids[:1], ids[1:]).endswith("x")


def test_accepted_drafts_are_coloured(tokenizer, capsys):
    reply = Reply(tokenizer("abc")["input_ids"], [False, True, False])
    stream = terminal.Stream(tokenizer, [], coloured=True)
    stream.show(Reply(reply.token_ids[:1], reply.drafted[:1]))
    stream.show(reply)
    stream.close()
    assert capsys.readouterr().out == f"a{terminal.GREEN}b{terminal.PLAIN}c\n"


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "variable", "expected"),
    [(True, False, "", True), (False, False, "", False), (True, True, "", False), (True, False, "1", False)],
)
def test_colours_are_for_terminals_that_want_them(monkeypatch, is_terminal, no_color, variable, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("NO_COLOR", variable)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.coloured(no_color) is expected
