"""`python -m infer.generate`: where replies end, how many there are to a prompt, and what is said of their tokens."""

import json

import pytest

from infer.generate import batches
from infer.generate.__main__ import main
from infer.text import load_tokenizer
from redrafter_jax.decode.engine import Engine
from tests.options import IDS, PAIR, SHORT
from tests.texts import with_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_tokenizer(tmp_path_factory.mktemp("pair") / "target")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in IDS))
    return path


@pytest.fixture
def command(folder, cache, capsys, prompts):
    """Runs the command on the prompts; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        given = ["--prompts", prompts, "--cache-dir", cache, "--batch-size", 3, *arguments]
        code = main(["--target", str(folder), *PAIR[2:], *SHORT, "--ignore-eos", *map(str, given)])
        return code, *capsys.readouterr()

    return run


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_where_there_are_many_replies_the_way_to_draft_adapts_and_no_text_changes(folder, cache, prompts, capsys, monkeypatch):
    made, real = [], Engine.scheduler
    monkeypatch.setattr(Engine, "scheduler", lambda *given, **how: made.append(real(*given, **how)) or made[-1])
    given = ["--target", folder, *PAIR[2:], "--prompts", prompts, "--cache-dir", cache, "--batch-size", 2, "--max-new-tokens", 20]

    def decoded(*more) -> list[list[int]]:
        assert main(list(map(str, [*given, "--ignore-eos", "--json", *more]))) == 0
        return [line["token_ids"] for line in lines(capsys.readouterr().out)]

    few = decoded()
    monkeypatch.setattr(batches, "ADAPTS_FROM", 1)
    assert decoded() == decoded("--decoding", "autoregressive") == few
    assert [scheduler.picker is not None for scheduler in made] == [False, True, False] and len(made[1].picker.evidence) > 1


def test_a_stop_string_cuts_text_and_tokens_also_when_resumed_and_shown(command, folder, tmp_path):
    free = lines(command("--json")[1])
    stop = free[0]["text"][8:11]
    cut = lines(command("--json", "--stop", stop, "--stop", "nowhere")[1])
    assert (cut[0]["finish_reason"], cut[0]["stop_reason"]) == ("stop", stop)
    for one, whole in zip(cut, free, strict=True):
        assert one["text"] == whole["text"].split(stop)[0]
        assert one["token_ids"] == whole["token_ids"][: len(one["token_ids"])]
        assert load_tokenizer(folder).decode(one["token_ids"]).startswith(one["text"])
        assert sum(one["accepted_histogram"]) == one["rounds"]
    path = tmp_path / "out.jsonl"
    assert command("--output", path, "--stop", stop, "--include-stop")[0] == 0
    kept = path.read_text()
    assert [line["text"] for line in lines(kept)] == [line["text"] + (line["stop_reason"] or "") for line in cut]
    path.write_text("".join(kept.splitlines(keepends=True)[1:]))
    assert command("--output", path, "--stop", stop, "--include-stop")[0] == 0
    times = ("seconds", "run")
    resumed = sorted(lines(path.read_text()), key=lambda line: line["index"])
    assert [{k: line[k] for k in line if k not in times} for line in resumed] == [
        {k: line[k] for k in line if k not in times} for line in lines(kept)
    ]
    code, _, err = command("--output", path, "--stop", stop)
    assert code == 2 and "belongs to another run" in err
    shown = command("--stop", stop)[1]
    assert shown == "".join(f"--- {line}\n{one['text']}\n" for line, one in zip(headers(shown), cut, strict=True))


def headers(shown: str) -> list[str]:
    return [line.removeprefix("--- ") for line in shown.splitlines() if line.startswith("--- ")]


@pytest.mark.slow
def test_both_ways_of_decoding_stop_at_the_same_place(command):
    free = lines(command("--json")[1])
    code, out, _ = command("--decoding", "compare", "--json", "--stop", free[1]["text"][6:9])
    assert code == 0 and all(line["identical"] for line in lines(out))
    assert lines(out)[1]["finish_reason"] == "stop"


def test_more_replies_to_each_prompt_are_added_to_an_output_and_the_first_are_those_of_one(command, tmp_path):
    path, how = tmp_path / "out.jsonl", ("--temperature", 1, "--seed", 5, "--logprobs", 2, "--frequency-penalty", 0.5)
    assert command("--output", path, *how)[0] == 0
    first = path.read_text()
    code, _, err = command("--output", path, *how, "--n", 3)
    assert code == 0 and "3 of 9 replies are in" in err
    assert set(first.splitlines()) < set(path.read_text().splitlines())
    found = sorted(lines(path.read_text()), key=lambda line: (line["index"], line["sample"]))
    assert [(line["index"], line["sample"], line["seed"]) for line in found] == [(i, j, 5 + i) for i in range(3) for j in range(3)]
    assert len({tuple(line["token_ids"]) for line in found}) > 6
    for line in found:
        assert len(line["logprobs"]) == len(line["top_logprobs"]) == len(line["token_ids"]) == 20
        assert all(len(place) == 2 and max(place.values()) <= 0 for place in line["top_logprobs"])
        likeliest = zip(line["token_ids"], line["logprobs"], line["top_logprobs"], strict=True)
        assert all(place.get(str(token), value) == value <= max(place.values()) + 1e-5 for token, value, place in likeliest)


@pytest.mark.slow
def test_a_person_reads_which_reply_to_which_prompt_it_is(command):
    shown = command("--temperature", 1, "--n", 2)[1]
    assert [line.rpartition(", ")[2] for line in headers(shown)] == ["reply 1 of 2", "reply 2 of 2"] * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--stop", ""], "--stop should be a text of at least one character, not ''"),
        (["--include-stop"], "--include-stop goes with --stop"),
        (["--n", "0"], "--n should be from 1 to 1024, not 0"),
        (["--n", "2"], "--n should be 1 at --temperature 0, where all replies are the same, not 2"),
        (["--n", "2", "--temperature", "1", "--decoding", "compare"], "--decoding compare decodes one reply to each prompt"),
        (["--n", "2", "--temperature", "1", "--interactive"], "--interactive shows one reply to each turn; --n should be 1, not 2"),
        (["--min-new-tokens", "-1"], "--min-new-tokens should be from 0 to 10000000, not -1"),
        (["--min-new-tokens", "21"], "--min-new-tokens should be at most --max-new-tokens, 20, not 21"),
        (["--repetition-penalty", "0"], "--repetition-penalty should be from 0.01 to 100, not 0"),
        (["--repetition-penalty", "nan"], "--repetition-penalty should be from 0.01 to 100, not nan"),
        (["--presence-penalty", "2.1"], "--presence-penalty should be from -2 to 2, not 2.1"),
        (["--frequency-penalty", "-3"], "--frequency-penalty should be from -2 to 2, not -3"),
        (["--logprobs", "101", "--json"], "--logprobs should be from 0 to 100, not 101"),
        (["--logprobs", "2"], "--logprobs are written into JSON lines; give --json or --output"),
        (["--stop", "a", "--prompt", "x"], "--stop needs text, but the target's folder has no tokenizer"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_sentence(given, words, capsys):
    assert main([*PAIR, *SHORT, *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {words}") and err.count("\n") == 1
