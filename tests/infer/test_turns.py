"""Lines of Spec-Bench and MT-bench: questions that are asked in order, and ids that come back with the replies."""

import dataclasses
import json
import re

import pytest

from infer import prompts, templates
from infer.generate import compare, session
from infer.generate.__main__ import main
from infer.prompts import Prompt
from infer.turns import Turns
from redrafter_jax.decode.reply import Progress
from redrafter_jax.errors import BadInput
from tests.fakes import REPLY, Fake
from tests.options import PAIR, SHORT
from tests.texts import with_tokenizer

LINES = [
    {"question_id": 81, "category": "writing", "turns": ["hi", "more"]},
    {"prompt": "a", "id": "x"},
    {"turns": ["one", "two", "three"], "question_id": 82},
]
NUMBERS = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (2, 0): 3, (2, 1): 4, (2, 2): 5}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


class Echo(Fake):
    """An engine whose reply is a function of the prompt, so that a test sees which prompt it was given."""

    def stream(self, prompts, *_, **__):
        replies = [dataclasses.replace(REPLY, token_ids=[97 + sum(ids) % 20, 65 + len(ids) % 20]) for ids in prompts]
        yield Progress(replies, [True] * len(prompts))


@pytest.fixture
def command(cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session.pair, "fill", lambda resolved, tokenizer, *_: session.pair.Pair(Echo(), tokenizer))
    target = with_tokenizer(tmp_path / "target", template=True)
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))

    def run(*arguments, file="bench.jsonl", decoding="autoregressive"):
        pair = ["--target", target, *PAIR[2:], "--max-new-tokens", 6, "--decoding", decoding]
        code = main([*map(str, [*pair, "--prompts", tmp_path / file, "--cache-dir", cache, *arguments])])
        printed = capsys.readouterr()
        return code, [json.loads(line) for line in printed.out.splitlines()] if "--json" in arguments else printed.out, printed.err

    return run


def place(line):
    return line["index"], line.get("turn", 0)


def test_questions_are_asked_behind_the_replies_to_those_before_them(command, tmp_path):
    code, lines, _ = command("--json")
    assert code == 0 and [place(line) for line in lines] == sorted(NUMBERS)
    texts = {place(line): line["text"] for line in lines}
    said = []
    for turn, question in enumerate(LINES[2]["turns"]):
        said.append({"role": "user", "content": question})
        (tmp_path / "messages.jsonl").write_text('{"token_ids": [1]}\n' * 2 + json.dumps({"messages": said}) + "\n")
        assert command("--json", file="messages.jsonl")[1][2]["text"] == texts[2, turn]
        said.append({"role": "assistant", "content": texts[2, turn]})


def test_a_batch_asks_the_same_and_what_else_a_line_has_comes_back(command):
    alone, together = command("--json")[1], command("--json", "--batch-size", 2)[1]
    assert {place(line): line["token_ids"] for line in alone} == {place(line): line["token_ids"] for line in together}
    assert [line.get("metadata") for line in alone[:3]] == [{"question_id": 81, "category": "writing"}] * 2 + [{"id": "x"}]
    assert "turn" not in alone[2] and [line["turn"] for line in alone[3:]] == [0, 1, 2]


def test_a_conversation_that_was_cut_off_goes_on_behind_its_replies(command, tmp_path):
    path = tmp_path / "out.jsonl"
    assert command("--output", path)[0] == 0
    whole = path.read_text().splitlines(keepends=True)
    for kept in (1, 4, 5):
        path.write_text("".join(whole[:kept]))
        assert command("--output", path)[0] == 0
        again = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["token_ids"] for line in again] == [json.loads(line)["token_ids"] for line in whole]
    (tmp_path / "bench.jsonl").write_text((tmp_path / "bench.jsonl").read_text().replace("three", "four"))
    assert "belongs to another run" in command("--output", path)[2]


def test_another_id_is_the_same_run_and_later_lines_have_it(command, tmp_path):
    path, bench = tmp_path / "out.jsonl", tmp_path / "bench.jsonl"
    assert command("--output", path)[0] == 0
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:4]))
    bench.write_text(bench.read_text().replace("82", "83").replace('"x"', '"y"'))
    code, _, err = command("--output", path)
    again = path.read_text().splitlines(keepends=True)
    assert code == 0 and "4 of 6 replies are in" in err
    assert again == [*whole[:4], *(line.replace("82", "83") for line in whole[4:])]


LONG = [
    {"turns": ["hi", "x" * 1200, "more"], "id": "a"},
    {"turns": ["one", "two"], "id": "b"},
    {"turns": ["hi", "you", "y" * 1200], "id": "c"},
]
LONG_NOTES = [
    "1, turn 2 has N tokens; at most 511 fit in a context of 512 with a reply; its reply and those to later turns are empty",
    "3, turn 3 has N tokens; at most 511 fit in a context of 512 with a reply; its reply is empty",
]


def notes_of(err: str) -> list[str]:
    notes = [line.partition("jsonl:")[2] for line in err.splitlines() if line.startswith("note: --prompts ")]
    return [re.sub(r"\d+ tokens", "N tokens", note) for note in notes]


@pytest.mark.parametrize("more", [(), ("--batch-size", 2)])
def test_a_conversation_that_outgrows_the_context_ends_and_the_others_go_on(command, tmp_path, more):
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LONG))
    path = tmp_path / "out.jsonl"
    code, _, err = command("--output", path, *more, file="long.jsonl")
    assert code == 0 and notes_of(err) == LONG_NOTES
    whole = path.read_text().splitlines(keepends=True)
    lines = {place(line): line for line in map(json.loads, whole)}
    empty = {at for at, line in lines.items() if not line["token_ids"]}
    assert len(lines) == 8 and empty == {(0, 1), (0, 2), (2, 2)}
    assert {(line["finish_reason"], line["text"], line["rounds"]) for line in map(lines.get, empty)} == {("length", "", 0)}
    for kept in range(8):
        path.write_text("".join(whole[:kept]))
        assert command("--output", path, *more, file="long.jsonl")[0] == 0
        assert sorted(path.read_text().splitlines(keepends=True)) == sorted(whole)


def test_a_turn_that_the_chat_template_refuses_ends_its_conversation(command, tmp_path):
    refuses = "{% for m in messages %}{% if m.content == 'two' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(refuses)
    code, lines, err = command("--json", "--chat-template", tmp_path / "own.jinja")
    assert code == 0 and [place(line) for line in lines if not line["token_ids"]] == [(2, 1), (2, 2)]
    said = "3, turn 2: the chat template refuses these messages (no); its reply and those to later turns are empty"
    assert notes_of(err) == [said]
    assert command("--chat-template", tmp_path / "own.jinja", "--batch-size", 2)[1].count("\n---") == 5
    assert command("--json", "--chat-template", tmp_path / "own.jinja", decoding="compare")[0] == 0


def test_both_kinds_of_decoding_agree_on_every_turn(command):
    code, lines, _ = command("--json", "--batch-size", 2, decoding="compare")
    assert code == 0 and [place(line) for line in lines] == sorted(NUMBERS) and all(line["identical"] for line in lines)
    assert {place(line): line["token_ids"] for line in lines} == {place(line): line["token_ids"] for line in command("--json")[1]}


def test_a_comparison_counts_prompts_and_turns_apart_and_names_the_turn_that_differs(command, monkeypatch):
    out = command(decoding="compare")[1]
    assert out.startswith("tokens          all 12 tokens of 6 turns of 3 prompts are identical (float32)")
    monkeypatch.setattr(compare, "_first_difference", lambda replies: (4, 1))
    code, out, _ = command(decoding="compare")
    assert code == 1 and "bench.jsonl:3, turn 2 of 3 differs from new token 1 on (float32)" in out


def test_a_persons_screen_names_the_turns(command):
    assert "bench.jsonl:3, turn 2 of 3\n" in command()[1]


def test_every_question_comes_behind_the_one_before_it_and_one_process_has_them_all():
    given = [Prompt("p", "turns", ["a", "b"]), Prompt("q", "token_ids", [1]), Prompt("r", "turns", ["a", "b", "c"])]
    turns = Turns(given, lambda prompt: [1, 2])
    assert turns.batches(range(6), 1) == [[number] for number in range(6)]
    assert turns.batches(range(6), 2) == [[0, 2], [3], [1, 4], [5]]
    assert turns.shares(1, 2) == [[0, 1, 3, 4, 5], [2]]
    assert turns.longest(10, 100) == 2 + 2 * (10 + 2) and turns.longest(10, 20) == 19


def test_a_real_pair_answers_the_turns_as_it_answers_the_same_messages(cache, tmp_path, capsys):
    target, said = with_tokenizer(tmp_path / "target", template=True), []
    given = ["--target", target, *PAIR[2:], *SHORT, "--json", "--cache-dir", cache, "--prompts"]
    (tmp_path / "turns.jsonl").write_text(json.dumps({"turns": ["hi", "more"]}))
    assert main([*map(str, [*given, tmp_path / "turns.jsonl"])]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, question in zip(lines, ["hi", "more"], strict=True):
        said.append({"role": "user", "content": question})
        (tmp_path / "messages.jsonl").write_text(json.dumps({"messages": said}))
        assert main([*map(str, [*given, tmp_path / "messages.jsonl"])]) == 0
        assert json.loads(capsys.readouterr().out)["token_ids"] == line["token_ids"]
        said.append({"role": "assistant", "content": line["text"]})


def test_messages_without_a_template_are_vicunas_and_that_is_said(tmp_path, cache, capsys, monkeypatch):
    monkeypatch.setattr(session.pair, "fill", lambda resolved, tokenizer, *_: session.pair.Pair(Echo(), tokenizer))
    target = with_tokenizer(tmp_path / "target")
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}')
    given = ["--target", str(target), *PAIR[2:], *SHORT, "--cache-dir", str(cache), "--json"]
    assert main([*given, "--prompts", str(tmp_path / "chat.jsonl")]) == 0
    printed = capsys.readouterr()
    assert "note: the tokenizer has no chat template; Vicuna's is used" in printed.err
    assert main([*given, "--prompts", str(tmp_path / "chat.jsonl"), "--chat-template", "vicuna"]) == 0
    named = capsys.readouterr()
    assert "note" not in named.err and json.loads(named.out)["token_ids"] == json.loads(printed.out)["token_ids"]


def test_a_template_in_a_file_takes_the_place_of_the_tokenizers_own(tmp_path):
    from infer.text import load_tokenizer

    tokenizer = load_tokenizer(with_tokenizer(tmp_path / "target", template=True))
    (tmp_path / "own.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    asked = Prompt("x", "turns", ["hi"])
    ids = prompts.encode(asked, tokenizer, 503, 512, templates.read(str(tmp_path / "own.jinja")))
    assert tokenizer.decode(ids) == "[hi]" and tokenizer.decode(prompts.encode(asked, tokenizer, 503, 512)) == "<user>hi<assistant>"


@pytest.mark.parametrize("turns", [[], "a", [1], [["a"]]])
def test_turns_that_are_no_texts_are_named(tmp_path, turns):
    (tmp_path / "bad.jsonl").write_text(json.dumps({"turns": turns}))
    with pytest.raises(BadInput, match="bad.jsonl:1: turns should be a list of strings, at least one"):
        prompts.read((), str(tmp_path / "bad.jsonl"))
