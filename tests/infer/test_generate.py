"""`python -m infer.generate` as its user meets it: arguments in; standard output, standard error and an exit code out."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from infer import pair as pairs
from infer.generate import compare
from infer.generate.__main__ import DEFAULT_PROMPT, main
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from tests import small
from tests.jsonl import replies, write_prompts
from tests.options import IDS, PAIR, SHORT
from tests.support import MODELS, load_pair
from tests.texts import with_tokenizer


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path, IDS)


@pytest.fixture
def command(cache, capsys):
    """Runs the command; returns (exit code, standard output, standard error)."""

    def run(*arguments, pair=PAIR):
        code = main([*pair, *SHORT, "--cache-dir", str(cache), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_json_is_all_that_standard_output_holds_and_equals_the_engine(command, prompts):
    code, out, err = command("--prompts", prompts, "--json", "--seed", 5, "--temperature", 0.7)
    target, head = load_pair("mha_rnn")
    engine = Engine(target, Recurrent(head), stop_ids=[2])
    expected = engine.autoregressive().generate(IDS, Sampling(0.7), Limits(20), [5, 6, 7])
    assert code == 0
    assert [(line["index"], line["seed"], line["token_ids"]) for line in replies(out)] == [
        (index, 5 + index, reply.token_ids) for index, reply in enumerate(expected)
    ]
    assert replies(out)[0]["text"] is None
    assert "passes of " in err


def test_the_line_adds_up(command, prompts):
    line = replies(command("--prompts", prompts, "--json", "--ignore-eos")[1])[0]
    accepted = sum(a * times for a, times in enumerate(line["accepted_histogram"]))
    assert sum(line["accepted_histogram"]) == line["rounds"]
    assert line["tokens_per_step"] == pytest.approx(accepted / line["rounds"] + 1, abs=1e-4)
    assert len(line["token_ids"]) == 20 and line["finish_reason"] == "length"
    assert line["seconds"] > 0
    drafting = line["metrics"]["speculative_decoding"]
    assert drafting["acceptance_histogram"] == line["accepted_histogram"] and drafting["num_spec_tokens"] == 3
    assert (drafting["num_accepted_draft_tokens"], drafting["num_draft_tokens"]) == (accepted, 6 * line["rounds"])


def test_the_text_does_not_depend_on_batch_tree_or_decoding(command, prompts):
    ways = [(), ("--batch-size", 2), ("--tree", "beams", "--node-budget", 4), ("--decoding", "autoregressive")]
    found = [replies(command("--prompts", prompts, "--json", "--temperature", 1.0, *way)[1]) for way in ways]
    texts = [[line["token_ids"] for line in lines] for lines in found]
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert [line["metrics"]["speculative_decoding"] for line in found[3]] == [None] * 3


def test_a_run_that_was_cut_off_goes_on_behind_its_last_whole_line(command, prompts, tmp_path):
    path = tmp_path / "out.jsonl"
    command("--prompts", prompts, "--output", path)
    whole = path.read_text()
    first, second, _ = whole.splitlines(keepends=True)
    path.write_text(first + second[:40])
    code, out, err = command("--prompts", prompts, "--output", path)
    kept = path.read_text()
    assert (code, out) == (0, "")
    assert "1 of 3 replies are in" in err
    assert kept.startswith(first)
    assert [line["token_ids"] for line in replies(kept)] == [line["token_ids"] for line in replies(whole)]


def test_a_finished_output_is_left_alone(command, prompts, tmp_path):
    path = tmp_path / "out.jsonl"
    command("--prompts", prompts, "--output", path)
    before = path.read_bytes()
    assert command("--prompts", prompts, "--output", path)[0] == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", [("--seed", 1), ("--temperature", 0.5), ("--max-new-tokens", 19), ("--ignore-eos",)])
def test_an_output_of_another_run_is_refused_and_kept(command, prompts, tmp_path, other):
    path = tmp_path / "out.jsonl"
    command("--prompts", prompts, "--output", path)
    before = path.read_bytes()
    code, out, err = command("--prompts", prompts, "--output", path, *other)
    assert (code, out) == (2, "") and f"--output: {path}:1 belongs to another run" in err
    assert path.read_bytes() == before


def test_compare_finds_the_tokens_identical_and_prints_both_speeds(command, prompts):
    code, out, _ = command("--prompts", prompts, "--decoding", "compare", "--temperature", 0.8)
    assert code == 0
    assert "of 3 prompts are identical (float32)" in out
    assert [line.split()[0] for line in out.splitlines()] == ["tokens", "speculative", "plain", "speed-up"]


@pytest.mark.parametrize(("dtype", "code"), [("float32", 1), ("bfloat16", 0)])
def test_compare_names_the_first_difference_and_fails_in_float32(command, prompts, monkeypatch, dtype, code):
    def wrong(replies):
        replies[1][1].token_ids[7] += 1
        return found(replies)

    found = compare._first_difference
    monkeypatch.setattr(compare, "_first_difference", wrong)
    result = command("--prompts", prompts, "--decoding", "compare", "--ignore-eos", "--dtype", dtype)
    assert result[0] == code
    assert f"--prompts {prompts}:2 differs from new token 7 on ({dtype})" in result[1]


def test_compare_with_json_keeps_standard_output_pure(command, prompts):
    _, out, err = command("--prompts", prompts, "--decoding", "compare", "--json")
    assert all(line["identical"] and line["autoregressive_seconds"] > 0 for line in replies(out))
    assert "speed-up" in err


def test_a_second_start_compiles_nothing(prompts, tmp_path, capsys):
    def start():
        jax.clear_caches()
        assert main([*PAIR, *SHORT, "--prompts", str(prompts), "--json", "--cache-dir", str(tmp_path / "programs")]) == 0
        capsys.readouterr()
        return {path.name for path in (tmp_path / "programs").iterdir() if path.name.endswith("-cache")}

    first = start()
    assert any(name.startswith("redrafter-") for name in first)
    assert start() == first


def test_text_streams_to_the_same_text_as_json(command, tmp_path):
    pair = ["--target", str(with_tokenizer(tmp_path / "target")), *PAIR[2:]]
    _, out, _ = command("--prompt", "héllo", "--json", pair=pair)
    _, streamed, err = command("--prompt", "héllo", pair=pair)
    assert streamed == replies(out)[0]["text"] + "\n"
    assert "first in" in err and "\x1b" not in streamed


def test_without_arguments_the_embedded_pair_continues_the_default_prompt(command, tmp_path, monkeypatch):
    with_tokenizer(tmp_path / "target")
    shutil.copytree(MODELS / "drafter_mha_rnn", tmp_path / "drafter_slim")
    monkeypatch.setattr(pairs, "EMBEDDED", tmp_path)
    code, out, _ = command(pair=[])
    assert code == 0
    assert out.startswith(DEFAULT_PROMPT) and len(out) > len(DEFAULT_PROMPT) + 1


def test_typical_acceptance_says_that_it_changes_the_distribution(command, prompts):
    assert "changes the distribution" in command("--prompts", prompts, "--acceptance", "typical", "--temperature", 1)[2]
    assert "changes the distribution" not in command("--prompts", prompts, "--acceptance", "typical")[2]


def test_prompts_of_the_command_line_are_told_apart(command, tmp_path):
    pair = ["--target", str(with_tokenizer(tmp_path / "target")), *PAIR[2:]]
    _, out, _ = command("--prompt", "a", "--prompt", "b", pair=pair)
    assert "--- --prompt 1\n" in out and "--- --prompt 2\n" in out


def test_messages_go_through_the_chat_template(command, tmp_path):
    pair = ["--target", str(with_tokenizer(tmp_path / "target", template=True)), *PAIR[2:]]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}))
    _, chat, _ = command("--prompts", path, "--json", pair=pair)
    _, plain, _ = command("--prompt", "<user>hi<assistant>", "--json", pair=pair)
    assert replies(chat)[0]["token_ids"] == replies(plain)[0]["token_ids"]


def test_a_mesh_gives_the_same_tokens(command, prompts):
    one = replies(command("--prompts", prompts, "--json", "--batch-size", 2)[1])
    pair = ["--target", str(MODELS / "target_tied"), "--drafter", str(MODELS / "drafter_tied_nornn")]
    split = replies(command("--prompts", prompts, "--json", "--batch-size", 2, "--mesh", 2, 1)[1])
    assert [line["token_ids"] for line in one] == [line["token_ids"] for line in split]
    code, _, err = command("--prompts", prompts, "--mesh", 1, 2, pair=pair)
    assert code == 2 and "2 does not divide the target's vocab_size 761" in err


def test_the_command_itself_is_quiet_and_exits_as_told(prompts, cache):
    def start(*arguments):
        environment = {**os.environ, "XLA_FLAGS": ""}
        here = pathlib.Path(__file__).parents[2]
        shell = [sys.executable, "-m", "infer.generate", *PAIR, *SHORT, "--cache-dir", str(cache), *arguments]
        return subprocess.run(shell, capture_output=True, text=True, cwd=here, env=environment, stdin=subprocess.DEVNULL)

    good = start("--prompts", str(prompts), "--json")
    assert good.returncode == 0 and len(replies(good.stdout)) == 3
    assert len(good.stderr.splitlines()) == 1  # the closing line
    bad = start("--prompts", "nowhere.jsonl")
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "error: --prompts: there is no file nowhere.jsonl\n")


def test_one_prompt_is_compared_as_a_notebook_does():
    target, head = small.models()
    engine = Engine(target, Recurrent(head, Shape(2, 2)))
    both = compare.compare_prompt(engine, [1, 2, 3], Sampling(1.0), Limits(8), seed=5)
    assert both.first_difference is None and both.speculative.prefills == both.autoregressive.prefills == compare.MIN_RUNS
    (reply,) = engine.generate([[1, 2, 3]], Sampling(1.0), Limits(8), [5])
    assert both.replies[0][0].token_ids == reply.token_ids
    assert "all 8 tokens of 1 prompt are identical (float32)" in both.report("float32")
