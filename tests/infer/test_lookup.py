"""Prompt lookup as its user meets it: `--drafter lookup`, `--with lookup`, and the same from Python."""

import json
import shutil

import pytest

import infer
from infer import drafting, proposers
from infer.benchmark import __main__ as benchmark
from infer.generate import __main__ as generate
from infer.generate import session
from redrafter_jax import Limits, Shape
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.proposer import Round
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.devices import mesh_choice
from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from tests.jsonl import replies, write_prompts
from tests.options import PAIR, asked_for

TARGET, HEAD = PAIR[1], PAIR[3]
ALONE = ["--target", TARGET, "--drafter", "lookup"]
BESIDE = [*PAIR, "--with", "lookup", "--beam-width", "2", "--beam-length", "2"]
PLAIN = ["--target", TARGET, "--decoding", "autoregressive"]
REPEATS = "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef add2(a, b):\n    return"
IDS = [[5, 6, 7, 8] * 5, [1, 5, 9, 77]]


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path, IDS)


@pytest.fixture
def command(cache, prompts, capsys):
    """Runs infer.generate on two prompts; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        given = ["--prompts", prompts, "--max-new-tokens", 48, "--cache-dir", cache, *arguments]
        return generate.main(list(map(str, given))), *capsys.readouterr()

    return run


def prepared(*arguments) -> session.Prepared:
    return session.prepare(generate.task_of(generate.read_options(generate.Options, "infer.generate", list(map(str, arguments)))))


@pytest.mark.parametrize("how", [["--ignore-eos"], ["--temperature", "1", "--ignore-eos", "--batch-size", "2"]], ids=" ".join)
def test_the_replies_are_those_of_plain_decoding(command, how):
    code, out, _ = command(*PLAIN, "--json", *how)
    plain = replies(out)
    assert code == 0
    for way in (ALONE, BESIDE):
        code, out, err = command(*way, "--json", *how)
        lines = replies(out)
        assert code == 0 and "passes of " in err
        assert [line["token_ids"] for line in lines] == [line["token_ids"] for line in plain]
        assert all(line.keys() == plain[0].keys() for line in lines)


def test_a_reply_that_repeats_its_prompt_takes_fewer_passes():
    """Greedy text of the embedded target, which goes round in circles here; the golden ones have random weights and do not."""
    pair = infer.load(drafter="lookup")
    ids = pair.tokenizer(REPEATS)["input_ids"]
    (fast,), (slow,) = (list(engine.generate([ids], limits=Limits(64))) for engine in (pair.engine, pair.engine.autoregressive()))
    assert fast.token_ids == slow.token_ids
    assert fast.tokens_per_step > 1.5


@pytest.mark.parametrize("way", [ALONE, BESIDE], ids=["alone", "beside a head"])
def test_compare_finds_the_tokens_identical(command, way):
    code, out, _ = command(*way, "--decoding", "compare")
    assert code == 0 and "of 2 prompts are identical (float32)" in out


def test_an_output_belongs_to_the_lookup_that_it_was_begun_with(command, tmp_path):
    path = tmp_path / "out.jsonl"
    assert command(*ALONE, "--output", path)[0] == 0
    begun = path.read_text()
    path.write_text(begun[: begun.index("\n") + 20])
    assert command(*ALONE, "--output", path)[0] == 0
    ids = [[json.loads(line)["token_ids"] for line in text.splitlines()] for text in (begun, path.read_text())]
    assert ids[0] == ids[1]
    for other in (["--lookup-length", "5"], ["--lookup-match", "4", "2"]):
        code, _, err = command(*ALONE, *other, "--output", path)
        assert code == 2 and f"--output: {path}:1 belongs to another run" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*ALONE, "--with", "lookup"], "--with lookup goes beside a head, and --drafter lookup has none; leave out one of them"),
        (["--target", TARGET, "--with", "lookup"], "--drafter is missing"),
        ([*PLAIN, "--with", "lookup"], "--with lookup drafts beside a head, and --decoding autoregressive drafts nothing"),
        (["--lookup-length", "4"], "--lookup-length goes with --drafter lookup or --with lookup"),
        (["--lookup-match", "4", "2"], "--lookup-match goes with --drafter lookup or --with lookup"),
        ([*ALONE, "--lookup-length", "0"], "--lookup-length should be from 1 to 64, not 0"),
        ([*ALONE, "--lookup-match", "17", "2"], "--lookup-match should be from 1 to 16, not 17 2"),
        ([*ALONE, "--lookup-match", "2", "3"], "--lookup-match should be the longest and then the shortest match, not 2 3"),
        ([*ALONE, "--beam-width", "2"], "--beam-width is for the search of a head; leave it out with --drafter lookup"),
        ([*ALONE, "--tree", "beams"], "--tree is for the search of a head"),
        ([*ALONE, "--draft-top-k", "50"], "--draft-top-k is for the search of a head"),
        (
            [*BESIDE[:6], "--beam-width", "63", "--beam-length", "64", "--lookup-length", "64"],
            "--beam-width 63 and --beam-length 64, with --lookup-length 64, make 4097 nodes, over 4096",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_options_that_do_not_go_together_are_one_sentence(command, arguments, sentence):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {sentence}") and err.count("\n") == 1


def test_a_folder_that_is_called_lookup_is_reached_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(HEAD, "lookup")
    alone, by_path = (prepared("--target", TARGET, "--drafter", name) for name in ("lookup", "./lookup"))
    assert alone.resolved.drafter is None and alone.shape is None and alone.lookup == Lookup()
    assert by_path.resolved.drafter.samefile("lookup") and by_path.lookup is None
    assert drafting.has_head(tmp_path / "lookup")


def test_the_mesh_and_the_room_are_for_the_rounds_of_the_lookup(monkeypatch):
    loads = []
    monkeypatch.setattr(mesh_choice, "resolve", lambda load, mesh, together, *_: loads.append(load) or ((1, 1), None))
    lengths = []
    monkeypatch.setattr(session.room, "check", lambda resolved, longest, new, rows, length, refills: lengths.append(length))
    for length in (1, 64):
        session.check_room(prepared(*BESIDE, "--lookup-length", length), asked_for(IDS))
    assert lengths == [2, 64] and loads[0].cache < loads[1].cache


def test_the_options_have_the_defaults_of_the_library():
    assert proposers.lookup_of(drafting.wanted_lookup("lookup", None, None, None)) == Lookup()
    assert proposers.lookup_of(drafting.wanted_lookup("head", "lookup", 3, (4, 1))) == Lookup(4, 1, 3)
    assert drafting.wanted_lookup("head", None, None, None) is None


def test_python_looks_up_alone_and_beside_a_head_and_gives_the_same_tokens():
    plain, alone = infer.load(TARGET), infer.load(TARGET, "lookup")
    beside = infer.load(TARGET, HEAD, Shape(2, 2), beside=Lookup(length=5))
    budget = infer.load(TARGET, HEAD, Shape(2, 2, budget=4), beside="lookup")
    assert alone.engine.proposer == Lookup() and isinstance(beside.engine.proposer, Union)
    assert beside.engine.proposer.round == Round(5, 10) and budget.engine.proposer.round == Round(6, 4)
    texts = [pair.complete(IDS[0], max_new_tokens=24).reply.token_ids for pair in (plain, alone, beside, budget)]
    assert texts == [texts[0]] * 4


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"drafter": HEAD, "beside": "look"}, "beside should be 'lookup' or a Lookup, not 'look'"),
        ({"drafter": "lookup", "beside": "lookup"}, "beside goes with a head; a lookup alone is given as the drafter"),
        ({"beside": Lookup()}, "beside goes with a head; a lookup alone is given as the drafter"),
        (
            {"drafter": Lookup(), "shape": Shape(2, 2)},
            "shape is for the search of a head; leave it out with a lookup as the drafter",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_python_refuses_what_does_not_go_together_before_weights_are_read(monkeypatch, named, sentence):
    monkeypatch.setattr(weights, "load_target", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(BadInput) as caught:
        infer.load(TARGET, **named)
    assert str(caught.value) == sentence


@pytest.fixture
def report(prompts, tmp_path, capsys):
    """Runs infer.benchmark; returns its JSON report and the lines that it printed."""

    def run(*arguments):
        file = tmp_path / "report.json"
        given = ["--target", TARGET, "--prompts", prompts, "--max-new-tokens", 24, "--repeats", 1, "--nodes", 1, "--output", file]
        assert benchmark.main(list(map(str, [*given, *arguments]))) == 0
        return json.loads(file.read_text()), capsys.readouterr().out.splitlines()

    return run


def test_the_benchmark_measures_head_lookup_and_both_side_by_side(report):
    result, printed = report("--drafter", HEAD, "--with", "lookup", "--lookup-length", 3, "--beams", "2x2")
    assert [row["shape"] for row in result["rows"]] == ["2x2", "lookup", "2x2 + lookup"]
    assert [row["nodes"] for row in result["rows"]] == [5, 4, 8]
    assert [row["tree"] for row in result["rows"]] == ["search", "lookup", "search"]
    assert all(row["identical"] == row["rows"] == 2 for row in result["rows"])
    assert [set(row["stage_seconds"]) for row in result["rows"][:2]] == [
        {"draft", "pack", "verify", "commit"},
        {"propose", "verify", "commit"},
    ]
    table = [line for line in printed if line.lstrip().startswith(("WxL ", "2x2", "lookup"))]
    assert len(table) == 4 and len({len(line) for line in table}) == 1


def test_the_benchmark_needs_no_head_for_a_lookup(report):
    result, printed = report("--drafter", "lookup")
    assert [row["shape"] for row in result["rows"]] == ["lookup"] and result["head_parameters"] == 0
    assert result["rows"][0]["identical"] == 2 and printed[0].endswith("parameters, no head")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--drafter lookup --beams 2x2", "--beams is for the search of a head; leave it out with --drafter lookup"),
        ("--drafter lookup --plot x.png", "--plot is for the search of a head"),
        ("--drafter lookup --with lookup", "--with lookup goes beside a head"),
        ("--lookup-length 3", "--lookup-length goes with --drafter lookup or --with lookup"),
        ("--with lookup --lookup-length 65", "--lookup-length should be from 1 to 64, not 65"),
        ("--shape demo --with lookup", "--with lookup needs real prompts"),
    ],
)
def test_the_benchmark_refuses_what_does_not_go_together(arguments, sentence, capsys):
    assert benchmark.main(arguments.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {sentence}") and err.count("\n") == 1
