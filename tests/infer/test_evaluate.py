"""`infer.evaluate` with methods: the whole command on a golden pair, and on engines that decode nothing."""

import dataclasses
import json

import pytest

from infer.evaluate import __main__ as evaluate
from infer.evaluate import checks, contest, entrants, refilled, session
from infer.evaluate.entrants import Entrant
from infer.text import load_tokenizer
from redrafter_jax.decode.reply import Progress
from redrafter_jax.files import medusa, weights
from tests import support
from tests.fakes import REPLY, Fake
from tests.texts import with_tokenizer

TARGET, HEAD = str(support.MODELS / "target_mha"), str(support.MODELS / "drafter_mha_rnn")
LINES = [
    {"category": "a", "token_ids": [1, 5, 9], "question_id": 81},
    {"category": "b", "token_ids": [4, 8, 100, 200, 7, 7]},
    {"category": "a", "token_ids": [3] * 20},
    {"category": "b", "token_ids": [9, 8]},
]
METHOD = f"recurrent:{HEAD}:2x3"
NAME = "recurrent:drafter_mha_rnn:2x3"


def write(path, lines=LINES) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def run(capsys, *arguments, code=0):
    given = ["--target", TARGET, "--mesh", "1", "1", "--max-new-tokens", "12", *arguments]
    if "--drafter" not in arguments:
        given += ["--cache-dir", run.cache]
    assert evaluate.main(list(map(str, given))) == code
    return capsys.readouterr()


@pytest.fixture(autouse=True)
def programs(cache):
    run.cache = cache


def test_methods_and_suites_become_rows_replies_and_files(tmp_path, capsys, monkeypatch):
    real, compiled = contest.run, []

    def watched(*given):
        with support.compilations() as found:
            real(*given)
        compiled.extend(found)

    monkeypatch.setattr(contest, "run", watched)
    given = ["--suite", write(tmp_path / "suite.jsonl"), "--method", METHOD, "--method", f"recurrent:{HEAD}:1x2@rejection"]
    given += ["--temperature", 0, 1, "--json", "--ignore-eos", "--output", tmp_path / "out"]
    result = json.loads(run(capsys, *given).out)
    assert compiled == []  # before anything was timed
    assert [each["name"] for each in result["methods"]] == ["plain", NAME, "recurrent:drafter_mha_rnn:1x2@rejection"]
    assert [(each["nodes"], each["length"], bool(each["drafter_bytes"])) for each in result["methods"]] == [
        (1, 0, False), (7, 3, True), (3, 2, True),
    ]  # fmt: skip
    assert result["differences"] == [] and result["dtype"] == "float32" and result["target_bytes"] > 0
    rows = {(row["temperature"], row["category"], row["method"]): row for row in result["rows"]}
    assert len(rows) == 2 * 3 * 3
    for (temperature, category, name), row in rows.items():
        size = 4 if category is None else 2
        assert (row["conversations"], row["replies"]) == (size, size) and row["tokens"] == 12 * size
        assert row["same_text"] == (temperature == 0 or "rejection" not in name) and row["exact"]
        assert row["identical_replies"] == size or not row["same_text"]
        assert row["rounds"] == sum(row["accepted_histogram"]) and row["tokens_per_second"] > 0 and row["round_over_plain"] > 0
    whole = rows[0.0, None, NAME]
    assert whole["tokens_per_step"] == 44 / whole["rounds"] > 1 and whole["tokens_per_step_error"] > 0
    assert rows[0.0, None, "plain"]["tokens_per_step"] == 1 and rows[0.0, None, "plain"]["speedup"] == 1
    lines = [line for line in result["replies"] if line["method"] == NAME and line["temperature"] == 0]
    assert [(line["index"], line["category"]) for line in lines] == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
    assert lines[0]["metadata"] == {"category": "a", "question_id": 81} and lines[0]["identical"]
    assert lines[0]["metrics"]["speculative_decoding"]["num_spec_steps"] == lines[0]["rounds"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {checks.RESULTS, checks.REPORT, *checks.PLOTS}
    assert json.loads((tmp_path / "out" / checks.RESULTS).read_text()) == result
    report = (tmp_path / "out" / checks.REPORT).read_text()
    assert f"| {NAME} | {whole['tokens_per_step']:.2f} ± " in report and f"![acceptance by position]({checks.PLOTS[2]})" in report
    for name in checks.PLOTS:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    checks.check_output(tmp_path / "out")  # its own files may be replaced


def test_several_are_decoded_in_rows_that_are_refilled_and_nothing_is_compiled_meanwhile(tmp_path, capsys, monkeypatch):
    real, compiled, decoded, decode = contest.run, [], [], refilled.decode

    def watched(*given):
        with support.compilations() as found:
            real(*given)
        compiled.extend(found)

    monkeypatch.setattr(contest, "run", watched)
    monkeypatch.setattr(refilled, "decode", lambda *given: decoded.append(decode(*given)) or decoded[-1])
    lines = [line | {"category": "a"} for line in LINES + LINES[:2]]
    given = ["--suite", write(tmp_path / "suite.jsonl", lines), "--method", METHOD, "--batch-size", 2, "--ignore-eos", "--json"]
    result = json.loads(run(capsys, *given).out)
    assert compiled == [] and len(decoded) == 2
    whole = {row["method"]: row for row in result["rows"] if row["category"] is None}
    for (replies, spent), row in zip(decoded, (whole["plain"], whole[NAME]), strict=True):
        rounds = [reply.rounds for reply in replies]
        assert row["rounds"] == sum(rounds) and row["tokens"] == 72 and row["identical_replies"] == 6
        assert sum(rounds) / 2 <= spent.passes < sum(rounds)  # of two rows, filled three times each
        assert 0 < spent.round_seconds < spent.seconds and row["tokens_per_second"] == pytest.approx(72 / spent.seconds)
        assert row["round_seconds"] == pytest.approx(spent.round_seconds / spent.passes)
    assert whole[NAME]["tokens_per_step"] == 66 / whole[NAME]["rounds"] > 1


class Echo(Fake):
    """An engine whose reply is a function of the prompt; it remembers the prompts."""

    target = None

    def __init__(self, wrong=False):
        super().__init__()
        self.wrong, self.prompts = wrong, []

    def reply(self, ids):
        return dataclasses.replace(REPLY, token_ids=[97 + sum(ids) % 20, 65 + len(ids) % 20 + self.wrong])

    def stream(self, prompts, *_, **__):
        yield Progress([self.reply(ids) for ids in prompts], [True] * len(prompts))

    def generate(self, prompts, *_, **__):
        self.prompts += prompts
        return [self.reply(ids) for ids in prompts]


@pytest.fixture
def engines(monkeypatch):
    """Engines that answer at once in place of the real ones; by name."""
    made = {}

    def fill(entries, *_):
        made.update({entry.name: Echo(entry.name == "lookup@independent") for entry in entries})
        return [Entrant(entry, made[entry.name], 0) for entry in entries]

    monkeypatch.setattr(entrants, "fill", fill)
    monkeypatch.setattr(refilled, "warm", lambda *_: None)
    monkeypatch.setattr(session.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return made


def test_an_exact_method_that_differs_fails_the_run_and_is_named(tmp_path, capsys, engines):
    given = ["--suite", write(tmp_path / "suite.jsonl"), "--method", "lookup", "--method", "lookup@independent"]
    printed = run(capsys, *given, "--temperature", 1, code=1)
    assert printed.err.splitlines()[-1] == (
        f"error: lookup@independent at temperature 1 differs from plain decoding at --suite {tmp_path / 'suite.jsonl'}:1 from new"
        " token 1 on (float32)"
    )
    assert "4/4 |" in printed.out and "0/4 |" in printed.out
    assert "note: lookup@independent" in run(capsys, *given, "--dtype", "bfloat16").err
    assert "error" not in run(capsys, *given[:-2]).err


def test_a_busy_machine_is_noted(tmp_path, capsys, engines, monkeypatch):
    monkeypatch.setattr(session.os, "getloadavg", lambda: (session.os.cpu_count() * 0.6, 0.0, 0.0))
    given = ["--suite", write(tmp_path / "suite.jsonl"), "--method", "lookup"]
    assert run(capsys, *given).err.startswith("note: this machine is busy (load average ")


def test_a_rule_whose_text_may_differ_does_not_fail_the_run(tmp_path, capsys, engines, monkeypatch):
    suite = write(tmp_path / "suite.jsonl")
    monkeypatch.setattr(
        Echo, "reply", lambda self, ids: dataclasses.replace(REPLY, token_ids=[5, 6 + (self is engines["lookup@typical"])])
    )
    printed = run(capsys, "--suite", suite, "--method", "lookup@typical", "--temperature", 1)
    assert "0/4 ** |" in printed.out and "this rule changes the distribution" in printed.out


TALK = [
    {"category": "a", "turns": ["hi", "more", "end"]},
    {"category": "b", "turns": ["one", "x" * 1200]},
    {"category": "a", "prompt": "a"},
]


@pytest.mark.parametrize("batch", [1, 2])
def test_later_questions_stand_behind_plain_replies_and_all_methods_read_the_same(tmp_path, capsys, engines, batch):
    target = with_tokenizer(tmp_path / "target", template=True)
    given = ["--target", target, "--suite", write(tmp_path / "talk.jsonl", TALK), "--method", "lookup@independent", "--json"]
    printed = run(capsys, *given, "--temperature", 1, "--batch-size", batch, code=1)
    tokenizer = load_tokenizer(target)
    asked = [tokenizer.decode(ids) for ids in engines["lookup@independent"].prompts]
    first = "<user>hi<assistant>"
    told = tokenizer.decode(Echo().reply(tokenizer(first)["input_ids"]).token_ids)
    second = f"<user>hi<assistant>{told}<user>more<assistant>"
    assert first in asked and second in asked and asked.index(first) < asked.index(second)
    assert sum("<user>end" in each for each in asked) == 1 and len(asked) == 5 and not any("xxx" in each for each in asked)
    assert engines["plain"].prompts.count(tokenizer(second)["input_ids"]) == 2  # once untimed, for the question behind it
    lines = json.loads(printed.out)["replies"]
    places = [(line["index"], line.get("turn")) for line in lines if line["method"] == "plain"]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (2, None)]
    assert "talk.jsonl:2, turn 2 has 12" in printed.err and "it and those behind it are left out" in printed.err


MISUSE = [
    (["--method", f"medusa:{HEAD}:64"], f"--method medusa:{HEAD}:64: {HEAD} holds a recurrent head; write recurrent:{HEAD}"),
    (["--method", f"recurrent:{support.MODELS / 'drafter_gqa_proj'}:2x2"], "the head is for a target with hidden_size"),
    (["--method", "recurrent:/nowhere:2x2"], "--method recurrent:/nowhere:2x2: its folder"),
    (["--method", f"recurrent:{HEAD}:600x2"], "width should be at most the target's vocabulary of 503, not 600"),
    (["--max-new-tokens", "513"], "--max-new-tokens should be at most the target's context of 512"),
    (["--limit", "0"], "--limit should be from 1 to"),
    (["--temperature", "0", "0"], "--temperature should name each once"),
    (["--temperature", "-1"], "--temperature should be 0 (greedy) or from"),
    (["--beams", "2x2"], "--beams is for the heads of --drafter; leave out one of them"),
    (["--drafter", HEAD, "--method", "lookup"], "--mesh is for methods and suites, and --drafter names heads"),
    (["--glob", "*.md"], "--glob goes with --text"),
    (["--text", "README.md"], "--text needs what drafts along it"),
]


@pytest.mark.parametrize(("given", "said"), MISUSE, ids=lambda part: part[-1] if isinstance(part, list) else "")
def test_bad_input_is_one_sentence(given, said, tmp_path, capsys):
    err = run(capsys, "--suite", write(tmp_path / "suite.jsonl"), *given, code=2).err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_files_of_others_are_kept(tmp_path, capsys):
    suite = write(tmp_path / "suite.jsonl")
    for name in (checks.RESULTS, checks.REPORT, checks.PLOTS[1]):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
        err = run(capsys, "--suite", suite, "--output", tmp_path / "out", code=2).err
        assert err.startswith("error: --output: ") and name in err and "is kept" in err
        (tmp_path / "out" / name).unlink()


@pytest.mark.slow
def test_beside_methods_a_text_gives_their_tokens_per_step_along_it(tmp_path, capsys):
    target = with_tokenizer(tmp_path / "target")
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}. " for n in range(200)))
    given = ["--target", target, "--suite", write(tmp_path / "suite.jsonl"), "--limit", 1, "--method", "lookup"]
    result = json.loads(run(capsys, *given, "--text", tmp_path / "text.txt", "--contexts", 40, "--json").out)
    along = result["along_text"]
    assert along["contexts"] == 40 and along["tokens_per_step"]["plain"] == 1 <= along["tokens_per_step"]["lookup"] <= 7


def test_the_text_beside_methods_has_to_be_long_enough(tmp_path, capsys):
    target = with_tokenizer(tmp_path / "target")
    (tmp_path / "text.txt").write_text("too short")
    given = ["--target", target, "--suite", write(tmp_path / "suite.jsonl"), "--method", "lookup", "--text", tmp_path / "text.txt"]
    assert "--text: 10 tokens are too few to measure on" in run(capsys, *given, code=2).err


def test_medusas_heads_and_a_small_model_are_of_their_kind_and_no_deeper_than_they_are(tmp_path, capsys, engines):
    medusa.save_medusa(support.medusa_heads(support.load_target("mha").config, heads=2), tmp_path / "heads")
    weights.save_target(support.small_model(), tmp_path / "small")
    suite = write(tmp_path / "suite.jsonl")
    for method, said in {
        f"medusa:{tmp_path / 'heads'}:1x3": "a tree of depth 3 needs as many heads, but there are 2",
        f"medusa:{tmp_path / 'heads'}:64": "the tree of these heads has 39 nodes, fewer than 64",
        f"small:{tmp_path / 'heads'}:1x4": f"holds Medusa's heads; write medusa:{tmp_path / 'heads'}",
        f"recurrent:{tmp_path / 'small'}:1x4": f"holds a small model; write small:{tmp_path / 'small'}",
    }.items():
        err = run(capsys, "--suite", suite, "--method", method, code=2).err
        assert err.startswith(f"error: --method {method}: ") and said in err
    fine = [f"medusa:{tmp_path / 'heads'}:39", f"medusa:{tmp_path / 'heads'}:2x2", f"small:{tmp_path / 'small'}:1x4@rejection"]
    given = [word for method in fine for word in ("--method", method)]
    described = json.loads(run(capsys, "--suite", suite, *given, "--json").out)["methods"]
    assert [each["kind"] for each in described] == ["plain", "medusa", "medusa", "small"]
    assert all(each["drafter_bytes"] > 0 for each in described[1:])
