"""`infer.load` and `Pair.complete` refuse what the commands refuse, before anything is loaded or decoded."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import infer
from infer.generate import __main__ as generate
from redrafter_jax import Reply, Shape
from redrafter_jax.decode.reply import Progress
from redrafter_jax.decode.request import Limits
from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from tests.support import MODELS
from tests.texts import TEMPLATE, THINKING, with_tokenizer

TARGET, HEAD = str(MODELS / "target_mha"), str(MODELS / "drafter_mha_rnn")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return infer.load(str(with_tokenizer(tmp_path_factory.mktemp("pair") / "target")), HEAD)


def refusal(call, *given, **named) -> str:
    with pytest.raises(BadInput) as caught:
        call(*given, **named)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    return str(caught.value)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        *(
            ({"temperature": value}, "temperature should be 0 (greedy) or from 0.01 to 100, not")
            for value in (-1, float("nan"), 1e-30)
        ),
        *(({"top_p": value}, "top_p should be above 0 and at most 1, not") for value in (0, 5)),
        ({"top_k": -3}, "top_k should be from 0 to 1000000, not -3"),
        ({"top_k": 10**6}, "top_k should be at most the target's vocabulary of 503, not 1000000"),
        ({"acceptance": np.array([1, 2])}, "acceptance should be coupled, independent, rejection or typical, not array([1, 2])"),
        ({"acceptance": "exact"}, "acceptance should be coupled, independent, rejection or typical, not 'exact'"),
        *(({"max_new_tokens": value}, "max_new_tokens should be from 1 to 10000000, not") for value in (0, 1.5, None)),
        ({"max_new_tokens": 513}, "max_new_tokens should be at most the target's context of 512, not 513"),
        ({"max_length": 1}, "max_length should be from 2 to 10000000, not 1"),
        ({"max_length": 513}, "max_length should be at most the target's context of 512, not 513"),
        ({"batch_size": 0}, "batch_size should be from 1 to 4096, not 0"),
        *(({"seed": value}, "seed should be from 0 to 4294967295, not") for value in (-1, 2**32, "1")),
    ],
    ids=str,
)
def test_numbers_and_rules_out_of_range_are_refused(pair, named, words):
    assert words in refusal(pair.complete, [1, 2], **named)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt is empty"),
        ("a\ud800", "prompt should be UTF-8 text, and '\\ud800' is half a surrogate pair"),
        (["def a", ""], "prompt 1 is empty"),
        ([[1, 2], [5000]], "prompt 1: token id 5000 is outside the target's vocabulary (0 to 502)"),
        ([1, "def a"], "prompt should hold token ids, which are whole numbers, not 'def a'"),
        ([], "prompt is empty"),
        ([{"role": "user"}], "prompt: messages should be a list of objects with the strings role and content"),
        ([{"role": "user", "content": "a"}, "b"], "prompt: messages should be a list of objects"),
        (None, "prompt should be a list of token ids, not None"),
        (b"def a", "prompt should be a list of token ids, not b'def a'"),
        ([1.5], "whole numbers, not 1.5"),
        ([1, 5000], "prompt: token id 5000 is outside the target's vocabulary (0 to 502)"),
        ([-5], "prompt: token id -5 is outside"),
        ([2**40], "is outside the target's vocabulary"),
        (np.ones(512, int), "prompt has 512 tokens; at most 511 fit in a context of 512"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_prompt_that_is_no_text_and_no_ids_is_refused(pair, prompt, words):
    assert words in refusal(pair.complete, prompt)


def test_an_array_of_ids_is_a_prompt_like_a_list_of_them(monkeypatch, pair):
    given = []
    reply = Reply([104], [False], "length", 0, [0, 0, 0], 0.0, 0)
    progress = Progress([reply], [True])
    monkeypatch.setattr(pair.engine, "stream", lambda prompts, *_, **__: given.extend(prompts) or iter([progress]))
    assert pair.complete(np.asarray([100, 101], np.uint16)).text == pair.complete([100, 101]).text
    assert given == [[100, 101]] * 2 and all(type(token) is int for prompt in given for token in prompt)


def test_a_list_of_prompts_of_any_kind_gets_a_list_of_the_same_replies(pair):
    given = ["def a", [100, 101], [{"role": "user", "content": "hi"}]]
    how = {"max_new_tokens": 5, "temperature": 0.9}
    alone = [pair.complete(prompt, seed=7 + number, **how) for number, prompt in enumerate(given)]
    together = pair.complete(given, seed=7, **how)
    assert [str(each) for each in together] == [each.text for each in alone] and len(set(map(str, alone))) == 3
    in_words = pair.complete("<user>hi<assistant>", seed=9, **how)
    assert str(in_words) == pair.complete(given[2], seed=9, chat_template=TEMPLATE, **how).text
    assert [each.text for each in pair.complete(["def a"], seed=7, **how)] == [alone[0].text]


def test_variables_of_the_chat_template_are_the_calls(pair):
    talk, written = [{"role": "user", "content": "hi"}], "<user>hi<end><assistant><think>\n\n</think>\n\n"
    how = {"chat_template": THINKING, "chat_template_kwargs": {"enable_thinking": False}}
    quick = pair.complete(written, max_new_tokens=5)
    assert pair.complete(talk, max_new_tokens=5, **how).reply.token_ids == quick.reply.token_ids
    assert "".join(pair.stream(talk, max_new_tokens=5, **how)) == str(quick)
    assert "chat_template_kwargs should be a JSON object" in refusal(pair.complete, talk, chat_template_kwargs="x")


def test_pieces_of_a_stream_join_to_the_text(pair):
    pieces = list(pair.stream("def a", max_new_tokens=24))
    assert "".join(pieces) == pair.complete("def a", max_new_tokens=24).text
    assert "temperature should be" in refusal(pair.stream, "a", temperature=-1)
    no_tokenizer = dataclasses.replace(pair, tokenizer=None)
    assert "there is no text to stream" in refusal(no_tokenizer.stream, [1])
    assert str(no_tokenizer.complete([100], max_new_tokens=2)).replace(" ", "").isdigit()


def test_limits_and_the_end_of_a_text_are_a_matter_of_the_call(pair, monkeypatch):
    given = []
    reply = Reply([104], [False], "length", 0, [0, 0, 0], 0.0, 0)
    progress = Progress([reply], [True])
    monkeypatch.setattr(pair.engine, "stream", lambda *positional, **named: given.append((positional, named)) or iter([progress]))
    pair.complete([1], 4, max_length=9, ignore_eos=True)
    pair.complete([1])
    (first, named), (second, usual) = given
    assert first[2] == Limits(4, 9) and named["stop_ids"] == ()
    assert second[2] == Limits(128) and usual["stop_ids"] is None


def test_a_reply_ends_at_a_stop_string_and_a_stream_shows_nothing_behind_it(pair):
    free = pair.complete("x = 1\n", 24)
    stop = free.text[5:8]
    end = free.text.index(stop)
    cut = pair.complete("x = 1\n", 24, stop=stop)
    assert cut.text == free.text[:end] and (cut.reply.finish_reason, cut.reply.stop_reason) == ("stop", stop)
    assert pair.complete("x = 1\n", 24, stop=["never there", stop], include_stop=True).text == free.text[: end + 3]
    assert "".join(pair.stream("x = 1\n", 24, stop=stop)) == cut.text
    assert pair.complete("x = 1\n", 24, stop=stop, min_new_tokens=24).text == free.text


def test_several_replies_to_a_prompt_are_a_list_whose_first_is_that_of_one(pair):
    alone = [pair.complete(text, 12, temperature=9.0, seed=3 + i) for i, text in enumerate(["a", "b"])]
    three = pair.complete(["a", "b"], 12, temperature=9.0, seed=3, n=3, batch_size=4)
    assert [len(each) for each in three] == [3, 3]
    assert [each[0].text for each in three] == [each.text for each in alone]
    assert len({tuple(each.reply.token_ids) for each in three[0]}) == 3
    assert [each.reply.sample for each in pair.complete("a", 4, temperature=1.0, n=2)] == [0, 1]


def test_penalties_and_logprobs_reach_the_engine(pair):
    plain, other = pair.complete("aaa", 16, logprobs=2), pair.complete("aaa", 16, repetition_penalty=5.0)
    assert len(plain.reply.logprobs) == 16 and all(len(place) == 2 for place in plain.reply.top_logprobs)
    assert other.reply.token_ids != plain.reply.token_ids and other.reply.logprobs is None
    assert "n should be 1 at temperature 0" in refusal(pair.complete, "a", n=2)
    assert "min_new_tokens should be at most" in refusal(pair.complete, "a", 4, min_new_tokens=5)
    assert "stop should be" in refusal(pair.complete, "a", stop=3) and "at least one" in refusal(pair.complete, "a", stop="")


def test_a_pair_is_shown_in_a_line(pair):
    assert repr(pair).startswith("Pair(target of 0.") and len(repr(pair)) < 120 and "Recurrent with" in repr(pair)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"shape": (2, 2)}, "shape should be a Shape, such as Shape(2, 2), not (2, 2)"),
        ({"shape": Shape(504, 2)}, "width should be at most the target's vocabulary of 503, not 504"),
        ({"dtype": "float16"}, "dtype should be float32 or bfloat16, not 'float16'"),
        *(({"mesh": mesh}, "mesh should be two whole numbers") for mesh in (3, (1,), (0, 1), (1.5, 1), None, "11")),
    ],
    ids=str,
)
def test_what_a_pair_cannot_be_loaded_with_is_refused_before_weights_are_read(monkeypatch, named, words):
    monkeypatch.setattr(weights, "load_target", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(weights, "load_drafter", lambda *_: pytest.fail("weights were read"))
    assert words in refusal(infer.load, TARGET, HEAD, **named)


def test_beams_wider_than_a_heads_own_vocabulary_are_refused_from_python_and_by_the_command(tmp_path, capsys):
    head = shutil.copytree(HEAD, tmp_path / "head")
    fields = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps(fields | {"draft_vocab_size": 3}))
    words = "should be at most the head's draft vocabulary of 3, not 4"
    assert refusal(infer.load, TARGET, str(head), Shape(4, 2)) == f"width {words}"
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1, 2]}')
    given = ["--target", TARGET, "--drafter", str(head), "--prompts", str(tmp_path / "ids.jsonl"), "--json"]
    for options, said in (
        (["--beam-width", "4"], f"--beam-width {words}"),
        (["--beam-width", "2", "--draft-top-k", "11"], f"--draft-top-k {words.replace('not 4', 'not 11')}"),
    ):
        assert generate.main([*given, *options, "--cache-dir", str(tmp_path / "programs")]) == 2
        assert said in capsys.readouterr().err


def test_a_command_names_a_tensor_of_nan_and_writes_nothing(tmp_path, capsys):
    target = shutil.copytree(TARGET, tmp_path / "target")
    tensors = load_file(target / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, target / "model.safetensors")
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1, 2]}')
    given = ["--target", str(target), "--drafter", HEAD, "--prompts", str(tmp_path / "ids.jsonl"), "--json"]
    assert generate.main([*given, "--cache-dir", str(tmp_path / "programs")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: --target: model.norm.weight in {target}") and err.count("\n") == 1
