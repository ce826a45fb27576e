"""Small parts of commands at their edges: lines that were cut off anywhere, the last seed, replies that failed at once, loops."""

import codecs
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer import options, terminal
from infer.evaluate import metrics
from infer.replies import Owner, ReplyFile
from infer.text import Detokenizer
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.request import MAX_SEED
from redrafter_jax.errors import BadInput


def reply(ids: list[int], rounds: int = 0) -> Reply:
    drafted, end = [False] * len(ids), "length" if ids else "error"
    return Reply(ids, drafted, end, rounds, accepted_histogram=[rounds], seconds=1.0, seed=0)


LINES = [json.dumps({"run": run, "finish_reason": "length", "token_ids": [5, 6]}) for run in ("first", "second")]


@pytest.mark.parametrize("cut", [1, 5, len('{"run": "second"'), 40, len(LINES[1])])
def test_a_line_may_be_cut_off_anywhere_and_its_reply_is_missing(tmp_path, cut):
    path = tmp_path / "out.jsonl"
    path.write_text(LINES[0] + "\n" + LINES[1][:cut])
    found = ReplyFile(path, Owner.of_runs({0: "first", 1: "second"}))
    assert found.done == {0}
    found.begin()
    assert path.read_text() == LINES[0] + "\n"


@pytest.mark.parametrize("torn", ["x", '{"run": "third', LINES[0][:-1]])
def test_the_beginning_of_no_missing_reply_is_refused(tmp_path, torn):
    path = tmp_path / "out.jsonl"
    path.write_text(LINES[0] + "\n" + torn)
    with pytest.raises(BadInput, match="out.jsonl:2 belongs to another run"):
        ReplyFile(path, Owner.of_runs({0: "first", 1: "second"}))


class Bytes:
    """A tokenizer whose ids are bytes."""

    def decode(self, ids: list[int], **_) -> str:
        return bytes(ids).decode(errors="replace")


codecs.register_error("each byte", lambda error: ("\ufffd" * (error.end - error.start), error.end))


class Fallback:
    """As Llama 2's: each byte of a character that is there in part is shown."""

    def decode(self, ids: list[int], **_) -> str:
        return bytes(ids).decode(errors="each byte")


class Counted(Bytes):
    """One that counts how often it is asked."""

    count = 0

    def decode(self, ids: list[int], **more) -> str:
        self.count += 1
        return super().decode(ids, **more)


@pytest.mark.parametrize("text", ["a", "é", "€", "a😀"])
def test_a_character_that_never_ends_is_shown_at_the_end_from_its_first_byte_on(text):
    whole = list(text.encode())
    for end in range(1, len(whole) + 1):
        detokenizer = Detokenizer(Bytes(), [])
        shown = "".join(map(detokenizer.push, whole[:end]))
        assert shown + detokenizer.flush() == bytes(whole[:end]).decode(errors="replace")


@given(st.text(max_size=30), st.lists(st.integers(1, 9), min_size=40, max_size=40), st.integers(0, 3))
def test_several_tokens_at_once_give_the_text_of_one_by_one(text, sizes, left_out):
    whole = list(text.encode())
    whole = whole[: len(whole) - left_out]
    counted = Counted()
    detokenizer, shown, rest = Detokenizer(counted, []), "", whole
    for size in sizes:
        shown, rest = shown + detokenizer.push_all(rest[:size]), rest[size:]
        assert not shown.endswith("\ufffd") or text.startswith(shown)
    assert not rest or len(whole) > sum(sizes)
    assert shown + detokenizer.push_all(rest) + detokenizer.flush() == bytes(whole).decode(errors="replace")


def test_a_character_that_the_prompt_began_costs_no_text_where_several_tokens_come_at_once():
    prompt, ids = list("€".encode())[:2], [*list("€".encode())[2:], *b" and more"]
    one, many = Detokenizer(Fallback(), prompt), Detokenizer(Fallback(), prompt)
    assert many.push_all(ids) == "".join(map(one.push, ids)) and many.push_all(list(b" text")) == " text"


def test_many_tokens_at_once_are_decoded_once():
    counted = Counted()
    assert Detokenizer(counted, [65]).push_all(list(b"b" * 200)) == "b" * 200 and counted.count == 2


def test_the_last_seed_is_a_seed():
    assert options.read_seeds(MAX_SEED - 1, 2) == [MAX_SEED - 1, MAX_SEED]
    with pytest.raises(BadInput, match=f"--seed should be at most {MAX_SEED - 1}, not {MAX_SEED}"):
        options.read_seeds(MAX_SEED, 2)


def test_a_reply_that_failed_at_once_took_no_token_from_the_prefill():
    totals = terminal.Totals()
    totals.add([reply([5, 6, 7, 8, 9], 2), reply([])])
    assert totals.tokens_per_step == (5 - 1) / 2


def test_a_loop_is_in_the_last_tokens_of_a_reply_that_is_long_enough():
    looped, ended, free = reply([1, 2, 3] * 8), reply([4] * 7), reply(list(range(24)))
    assert metrics.loop_share([looped, ended, free, free], last=12, longest_period=3) == 0.25
    assert metrics.loop_share([looped], last=12, longest_period=2) == 0
    assert metrics.is_loop([1, 2, 1, 2], 2) and not metrics.is_loop([1, 2, 1, 3], 2)
