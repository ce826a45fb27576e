"""Incremental detokenisation and what a terminal shows."""

import dataclasses
import os
import sys
import time

import pytest
import transformers

from infer import terminal
from infer.text import Detokenizer, text_of
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
    detokenizer = Detokenizer(tokenizer, [])
    pieces = [detokenizer.push(token) for token in ids]
    assert [piece for piece in pieces if piece] == list(text)
    assert len(ids) == len(text.encode())
    assert detokenizer.flush() == ""


def test_pieces_join_to_the_whole_even_where_bytes_are_no_text(tokenizer):
    ids = tokenizer("ok漢")["input_ids"][:-1] + tokenizer("é!")["input_ids"]
    detokenizer = Detokenizer(tokenizer, [])
    joined = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
    assert joined == tokenizer.decode(ids)


def test_an_unfinished_character_is_shown_at_the_end(tokenizer):
    assert text_of(tokenizer, [], tokenizer("a漢")["input_ids"][:-1]) == "a\ufffd"


def test_special_tokens_are_not_text(tokenizer):
    assert text_of(tokenizer, [], [*tokenizer("a")["input_ids"], 256]) == "a"


def test_a_character_that_the_prompt_began_does_not_spoil_the_text(tokenizer):
    ids = tokenizer("漢x")["input_ids"]
    assert text_of(tokenizer, ids[:1], ids[1:]).endswith("x")


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


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "a␛[2J\n\t␍␈\ufffdé"), (False, "a\x1b[2J\n\t\r\b\x9bé")])
def test_a_text_cannot_steer_a_terminal_and_goes_into_a_file_as_it_is(tokenizer, capsys, monkeypatch, is_terminal, shown):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    ids = tokenizer("a\x1b[2J\n\t\r\b\x9bé")["input_ids"]
    stream = terminal.Stream(tokenizer, [], coloured=False)
    stream.show(Reply(ids, [False] * len(ids)))
    stream.close()
    assert capsys.readouterr().out == shown + "\n"


def test_the_closing_line_counts_what_was_delivered():
    totals = terminal.Totals(tokens=4, rounds=0, prefills=4, seconds=1.0)
    assert str(totals) == "4 replies, 4 tokens: 1 each, no pass was needed; 4.00 tokens/s"
    two = terminal.Totals(tokens=6, rounds=2, prefills=2, seconds=1.0)
    assert "then 2 passes of 2.00;" in str(two) and two.tokens_per_step_in_words == "2.00 tokens per step"


def test_the_closing_line_adds_up_in_sight_and_counts_one_as_one():
    one = terminal.Totals(tokens=6, rounds=1, prefills=1, seconds=0.5, first_token_seconds=0.04)
    assert str(one) == "6 tokens: first in 40 ms, then 1 pass of 5.00 tokens; 12.0 tokens/s"
    assert str(terminal.Totals(1, 0, 1, 0, 2.0, 1.5)) == "1 token: first in 1.50 s, no pass was needed; 0.50 tokens/s"


@pytest.mark.parametrize("replies", [1, 2, 80, 1000])
@pytest.mark.parametrize("each", [1, 2, 100, 1000, 99_999])
def test_the_closing_line_fits_a_terminal_of_80_columns(replies, each):
    tokens = min(replies * each, 999_999)
    totals = terminal.Totals(tokens, tokens - replies, replies, 0, seconds=tokens / 1234.5, first_token_seconds=123.4)
    assert len(str(totals)) <= 80, str(totals)


def test_compiling_is_said_at_once_with_its_folder_and_its_time(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with terminal.compiling(kept_in=os.path.expanduser("~/.cache/redrafter_jax")):
        time.sleep(0.1)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "compiling for this shape, once (kept in ~/.cache/redrafter_jax) ..." and last.startswith("compiled in ")


def test_nothing_is_said_of_compiling_that_is_over_at_once(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with terminal.compiling():
        pass
    assert capsys.readouterr().err == ""


def test_the_colour_is_explained_once_where_there_is_one(capsys):
    plain, green = Reply([1], [False]), Reply([1, 2], [False, True])
    for coloured, replies, count in ((True, [plain], 0), (True, [plain, green, green], 1), (False, [green], 0)):
        legend = terminal.Legend(coloured)
        for reply in replies:
            legend.see([reply])
            legend.print()
        assert capsys.readouterr().err.count("accepted by the target") == count
