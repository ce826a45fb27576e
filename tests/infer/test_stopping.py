"""Stop strings: where a text ends, whatever tokens it is made of and however it is decoded."""

import itertools

import numpy as np
import pytest
import transformers

from infer import terminal
from infer.stopping import LOOK_ROUNDS, Stopper, Stops
from infer.text import text_of
from redrafter_jax.decode import reply as replies
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.reply import Reply
from redrafter_jax.errors import BadInput
from tests import small
from tests.texts import byte_tokenizer

ALL_ROUNDS = 1 << 30


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(503), eos_token="<end>")


def pieces(tokenizer, said: str, stops: tuple[str, ...], include=False, min_new=0, ids=()) -> tuple[list[str], str | None, int]:
    """What is given out for each token of a text, and where it ended. Each byte is a token."""
    found = Stopper(tokenizer, Stops(stops, include)).text([], min_new)
    given = [found.push(token) for token in [*tokenizer(said)["input_ids"], *ids]]
    return [*given, found.flush()], found.found, found.count


def cut_by_hand(said: str, stops: tuple[str, ...]) -> str:
    """The text before the stop string that is complete first, and is the longest of these."""
    for end in range(1, len(said) + 1):
        ending = [stop for stop in stops if said[:end].endswith(stop)]
        if ending:
            return said[: end - max(map(len, ending))]
    return said


def test_a_text_is_cut_as_a_search_from_the_left_cuts_it(tokenizer):
    rng, cuts = np.random.default_rng(0), 0
    for _ in range(400):
        said = "".join(rng.choice(list("abé"), 12))
        stops = tuple("".join(rng.choice(list("abé"), rng.integers(1, 5))) for _ in range(rng.integers(1, 4)))
        given, found, count = pieces(tokenizer, said, stops)
        assert "".join(given) == cut_by_hand(said, stops)
        assert (found is not None) == (cut_by_hand(said, stops) != said)
        cuts += found is not None
        if found is not None:
            assert said.encode()[:count].decode().endswith(found)
            assert "".join(pieces(tokenizer, said, stops, include=True)[0]) == cut_by_hand(said, stops) + found
    assert 100 < cuts < 400


def test_nothing_is_given_out_that_may_be_the_beginning_of_a_stop_string(tokenizer):
    assert pieces(tokenizer, "a<stx", ("<stop>",)) == (["a", "", "", "", "<stx", ""], None, 5)
    assert pieces(tokenizer, "a<sto", ("<stop>",)) == (["a", "", "", "", "", "<sto"], None, 5)
    assert pieces(tokenizer, "a<<stop>b", ("<stop>",))[0] == ["a", "", "<", "", "", "", "", "", "", ""]
    for said in map("".join, itertools.product("ab", repeat=7)):
        given = pieces(tokenizer, said, ("abab", "bba"))[0]
        end = len(cut_by_hand(said, ("abab", "bba")))
        assert all(said[:end].startswith("".join(given[:size])) for size in range(len(given) + 1))


def test_a_special_token_ends_a_reply_though_it_is_no_text(tokenizer):
    assert pieces(tokenizer, "ab", ("<end>",), ids=[256, 97]) == (["a", "b", "", "", ""], "<end>", 3)
    assert "".join(pieces(tokenizer, "ab", ("<end>",), include=True, ids=[256, 97])[0]) == "ab<end>"
    assert pieces(tokenizer, "ab", ("x",), ids=[256, 97])[1] is None


def test_what_is_complete_within_the_least_length_ends_nothing(tokenizer):
    assert pieces(tokenizer, "abcabc", ("bc",), min_new=3)[1:] == ("bc", 6)
    assert "".join(pieces(tokenizer, "abcabc", ("bc",), min_new=3)[0]) == "abca"
    assert pieces(tokenizer, "abc", ("bc",), min_new=2)[1:] == ("bc", 3)  # its beginning may lie there
    assert "".join(pieces(tokenizer, "abc", ("bc",), min_new=9)[0]) == "abc"


@pytest.mark.parametrize("stops", [("",), ("a", None), (3,)])
def test_what_is_no_text_is_refused(stops):
    with pytest.raises(BadInput, match="stop should be texts of at least one character, not "):
        Stops(stops)


def test_without_a_tokenizer_there_is_no_text_to_stop_at():
    with pytest.raises(BadInput, match="--stop needs text, but the target's folder has no tokenizer"):
        Stopper(None, Stops(("a",)), "--stop")
    assert Stopper(None).tokenizer is None


PROMPTS, SEEDS, LIMITS = [[1, 5, 9], [4, 8, 33, 20, 7, 7], [3] * 20, [9, 8], [7] * 11], list(range(5)), Limits(100)


@pytest.fixture(scope="module")
def engines():
    target, head = small.models()
    return {"fast": Engine(target, Recurrent(head, Shape(4, 4))), "plain": Engine(target)}


@pytest.fixture(scope="module")
def free(engines):
    """Replies that nothing ends."""
    return list(engines["fast"].generate(PROMPTS, Sampling(1.0), LIMITS, SEEDS, batch=5))


@pytest.fixture(scope="module")
def stops(tokenizer, free):
    """Two strings of several tokens each, that stand in some of the replies, and one that stands in none."""
    texts = [text_of(tokenizer, prompt, reply.token_ids) for prompt, reply in zip(PROMPTS, free, strict=True)]
    return Stops((texts[0][30:36], texts[3][3:13], "nowhere"))


def decoded(engine, tokenizer, stops, rounds: int | None):
    stopper = Stopper(tokenizer, stops)
    *_, last = stopper.stream(engine, PROMPTS, Sampling(1.0), LIMITS, SEEDS, 5, rounds)
    return last, [stopper.text_of(prompt, reply) for prompt, reply in zip(PROMPTS, last.replies, strict=True)]


def outcome(reply) -> tuple:
    return reply.token_ids, reply.drafted, reply.finish_reason, reply.stop_reason, reply.rounds, reply.accepted_histogram


def test_a_reply_ends_where_its_text_does_however_it_is_decoded(engines, tokenizer, free, stops):
    last, texts = decoded(engines["fast"], tokenizer, stops, ALL_ROUNDS)
    assert all(last.done)
    reasons = [reply.stop_reason for reply in last.replies]
    assert (reasons[0], reasons[3]) == stops.strings[:2] and None in reasons
    for reply, text, uncut, prompt in zip(last.replies, texts, free, PROMPTS, strict=True):
        assert reply.token_ids == uncut.token_ids[: len(reply.token_ids)]
        assert text == cut_by_hand(text_of(tokenizer, prompt, uncut.token_ids), stops.strings)
        assert reply.finish_reason == ("length" if reply.stop_reason is None else "stop")
    for rounds in (1, 3, None):
        again, same = decoded(engines["fast"], tokenizer, stops, rounds)
        assert list(map(outcome, again.replies)) == list(map(outcome, last.replies)) and same == texts
    plain, same = decoded(engines["plain"], tokenizer, stops, ALL_ROUNDS)
    assert [reply.token_ids for reply in plain.replies] == [reply.token_ids for reply in last.replies] and same == texts
    kept = decoded(engines["fast"], tokenizer, Stops(stops.strings, include=True), ALL_ROUNDS)[1]
    assert kept == [text + (reply.stop_reason or "") for text, reply in zip(texts, last.replies, strict=True)]


def test_a_batch_decodes_few_rounds_behind_its_last_stop_string(engines, tokenizer, free):
    """And says so itself: the rounds are those of the text, but what the engine saw is kept."""
    first = text_of(tokenizer, PROMPTS[0], free[0].token_ids)[:4]
    seen, stopper = [], Stopper(tokenizer, Stops((first,)))
    engine, stream = engines["fast"], engines["fast"].stream

    def recorded(*given, **named):
        for progress in stream(*given, **named):
            seen.append(progress)
            yield progress

    try:
        engine.stream = recorded
        *_, last = stopper.stream(engine, PROMPTS[:1], Sampling(1.0), LIMITS, SEEDS[:1], 5, ALL_ROUNDS)
    finally:
        del engine.stream
    assert last.replies[0].stop_reason == first and seen[-1].done == [True]
    assert seen[-1].replies[0].finish_reason == "ended"
    assert seen[-1].replies[0].rounds - last.replies[0].rounds <= LOOK_ROUNDS < free[0].rounds


def test_a_cut_reply_has_the_figures_of_one_that_a_limit_ended_there(engines, free):
    engine = engines["fast"]
    for count in (1, 2, 7, 20, 33):
        short = list(engine.generate(PROMPTS, Sampling(1.0), [Limits(count)] * 4 + [LIMITS], SEEDS, batch=5))
        for uncut, limited in zip(free[:4], short[:4], strict=True):
            found = replies.cut(uncut, count, "x")
            assert found.finish_reason == "stop" and found.stop_reason == "x"
            same = (found.token_ids, found.drafted, found.rounds, found.accepted_histogram)
            assert same == (limited.token_ids, limited.drafted, limited.rounds, limited.accepted_histogram)


def test_a_stream_shows_nothing_behind_a_stop_string_and_all_before_it(tokenizer, capsys):
    said = tokenizer("one two sto stop three")["input_ids"]
    text = Stopper(tokenizer, Stops(("stop",))).text([])
    stream, shown = terminal.Stream(tokenizer, [], False, text), ""
    for size in range(0, len(said), 3):
        stream.show(Reply(said[:size], [False] * size, "length", 0, [], 0.0, 0))
        shown += capsys.readouterr().out
        assert "one two sto ".startswith(shown)
    stream.close()
    assert shown + capsys.readouterr().out == "one two sto \n"
