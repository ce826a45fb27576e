"""The parts of `infer.evaluate` that decode nothing: methods as they are written, suites as they are read, figures by hand."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from infer.evaluate import figures, methods, suites
from infer.evaluate.methods import Method, WantedTree
from redrafter_jax.decode.propose.lookup_sizes import LookupSizes
from redrafter_jax.decode.reply import Reply
from redrafter_jax.errors import BadInput

WRITTEN = {
    "plain": ("plain",),
    "recurrent:HEAD:8x5": ("recurrent", "HEAD", WantedTree(8, 5)),
    "recurrent:HEAD": ("recurrent", "HEAD", None),
    "recurrent:embedded:2x3:beams@independent": ("recurrent", "embedded", WantedTree(2, 3, 0, "beams"), "beams", "independent"),
    "recurrent:HEAD:chains": ("recurrent", "HEAD", None, "chains"),
    "recurrent:a/b@c/d:4x4/17": ("recurrent", "a/b@c/d", WantedTree(4, 4, 17)),
    "medusa:HEADS:64": ("medusa", "HEADS", WantedTree(0, 0, 64)),
    "medusa:HEADS:4x3/9": ("medusa", "HEADS", WantedTree(4, 3, 9)),
    "small:owner/model:1x4@rejection": ("small", "owner/model", WantedTree(1, 4), "search", "rejection"),
    "small:M@rejection": ("small", "M", None, "search", "rejection"),
    "small:M:3x4:chains@rejection": ("small", "M", WantedTree(3, 4, 0, "chains"), "chains", "rejection"),
    "lookup": ("lookup", None, None, "search", "coupled", LookupSizes()),
    "lookup:2x8@typical": ("lookup", None, None, "search", "typical", LookupSizes(width=2, length=8)),
    "recurrent:H:4x4+lookup": ("recurrent", "H", WantedTree(4, 4), "search", "coupled", LookupSizes()),
    "medusa:H+lookup:1x7": ("medusa", "H", None, "search", "coupled", LookupSizes(length=7)),
    "recurrent:H@typical+lookup:1x7": ("recurrent", "H", None, "search", "typical", LookupSizes(length=7)),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_method_is_read_as_it_is_written(text):
    assert methods.read(text) == Method(text, *WRITTEN[text])


WRONG = {
    "": "a method begins with recurrent, medusa, small, lookup or plain, not ''",
    "eagle:HEAD": "not 'eagle'",
    "recurrent": "the folder of a recurrent head is missing, as in recurrent:FOLDER:1x4",
    "medusa::64": "as in medusa:FOLDER:64",
    "recurrent:H:8": "a shape should be beams and tokens such as 8x5",
    "recurrent:H:8x5/1": "the nodes behind / should be from 2 to",
    "recurrent:H:0x5": "from 1 to 1024 beams of from 1 to 64 tokens, not 0x5",
    "recurrent:H:100x64": "100x64 has 6401 nodes, over 4096",
    "recurrent:H:4x4:trees": "and a tree (search, beams or chains), not 4x4:trees",
    "recurrent:H:4x4/5:chains": "/5 would cut chains that were drawn",
    "medusa:H:1": "the nodes of the tree should be from 2 to",
    "medusa:H:64:beams": "beams is a tree of a beam search, and Medusa's is a constant",
    "medusa:H:64@rejection": "needs drafts that are drawn, and Medusa's heads and lookups draw none",
    "lookup@rejection": "Medusa's heads and lookups draw none",
    "small:M:1x4@rejection+lookup": "Medusa's heads and lookups draw none",
    "recurrent:H:2x4@rejection": "a beam search draws none; give one beam, as 1x4, or :chains",
    "recurrent:H@rejection": "a beam search draws none",
    "recurrent:H@exact": "the rule behind @ should be coupled, independent, rejection or typical, not 'exact'",
    "lookup:8": "the shape of a lookup should be matches and tokens, such as 1x8, not '8'",
    "lookup:1x65": "length should be from 1 to 64, not 65",
    "lookup:1x8:beams": "a lookup has a shape WxL alone, not 1x8:beams",
    "lookup+lookup": "a lookup goes beside a head or a model",
    "plain@typical": "plain decoding drafts nothing, so nothing stands behind it",
    "plain+lookup": "plain decoding drafts nothing",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_method_that_is_none_is_one_sentence(text):
    with pytest.raises(BadInput) as error:
        methods.read(text)
    said = str(error.value)
    assert said.startswith(f"--method {text or repr('')}: ") and WRONG[text] in said


def test_plain_decoding_is_always_one_and_names_stay_apart():
    assert [method.text for method in methods.read_all(["lookup"])] == ["plain", "lookup"]
    assert [method.text for method in methods.read_all(["lookup", "plain"])] == ["lookup", "plain"]
    with pytest.raises(BadInput, match="--method lookup is given twice"):
        methods.read_all(["lookup", "lookup"])
    found = methods.read_all(["recurrent:a/head:4x4", "recurrent:b/head:4x4", "recurrent:a/head:2x2"])
    assert methods.names_of(found) == ["plain", "recurrent:a/head:4x4", "recurrent:b/head:4x4", "recurrent:head:2x2"]


@pytest.fixture
def suite(tmp_path):
    lines = [
        {"turns": ["a", "b"], "category": "x"},
        {"prompt": "c"},
        {"prompt": "d", "category": "x"},
        {"prompt": "e", "category": "y"},
    ]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "suite.jsonl")


def test_a_suite_has_the_categories_of_its_lines(suite):
    whole = suites.read(suite)
    assert whole.distinct == ["x", "(none)", "y"] and whole.of("x") == [0, 2]
    few = suites.read(suite, ["y", "x"], 1)
    assert [prompt.content for prompt in few.given] == [["a", "b"], "e"] and few.categories == ("x", "y")


def test_a_suite_that_is_none_is_one_sentence(suite, tmp_path):
    for name, file in {"list": "[1]\n", "text": "hello\n", "empty": "\n"}.items():
        (tmp_path / name).write_text(file)
        with pytest.raises(BadInput, match=f"--suite {tmp_path / name}"):
            suites.read(str(tmp_path / name))
    (tmp_path / "number").write_text('{"prompt": "a", "category": 3}\n')
    with pytest.raises(BadInput, match="number:1: category should be a text, not 3"):
        suites.read(str(tmp_path / "number"))
    with pytest.raises(BadInput, match="--suite: there is no file nowhere"):
        suites.read("nowhere")
    with pytest.raises(BadInput, match="--categories: .*suite.jsonl has no category 'z'; it has x, .none., y"):
        suites.read(suite, ["x", "z"])


def test_the_embedded_suite_has_five_categories_of_eight_starts():
    embedded = suites.read("embedded")
    assert embedded.distinct == ["docstrings", "classes", "functions", "imports and data", "tests"]
    assert {len(embedded.of(category)) for category in embedded.distinct} == {8}
    assert suites.EMBEDDED_FILE.stat().st_size < 40_000


def test_bad_input_is_said_before_jax_is_there():
    script = "import sys; from infer.evaluate.__main__ import main; print(main(sys.argv[1:]), 'jax' in sys.modules)"
    for option in (
        ["--method", "eagle:H"],
        ["--suite", "nowhere"],
        ["--categories", "poems"],
        ["--method", "recurrent:H:2x4@rejection"],
    ):
        done = subprocess.run([sys.executable, "-c", script, *option], capture_output=True, text=True)
        assert done.stdout == "2 False\n" and done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {option[0]}"), (
            done.stderr
        )


def test_a_ratio_is_that_of_the_sums_with_the_standard_error_that_a_person_counts():
    found = figures.ratio([[3, 5]], [[2, 2]])  # residuals 3 - 2 * 2 and 5 - 2 * 2, over the sum 4
    assert found.value == 2 and math.isclose(found.error, math.sqrt(2 / 1 * ((3 - 4) ** 2 + (5 - 4) ** 2)) / 4)
    assert figures.ratio([[3]], [[2]]) == figures.RatioEstimate(1.5, None)
    assert figures.ratio([[0, 0]], [[2, 2]]) == figures.RatioEstimate(0, None)
    assert figures.ratio([[1, 2]], [[0, 0]]) == figures.RatioEstimate(None, None)
    slow_together = figures.ratio([[10, 10], [2.0, 20.0]], [[1.0, 10.0], [10, 10]])  # the second is ten times as slow for both
    assert math.isclose(slow_together.value, 2) and slow_together.error < 1e-9


def reply(tokens, histogram, seconds, first=1.0):
    rounds = sum(histogram)
    return Reply(tokens, [False] * len(tokens), "length", rounds, histogram, seconds, 0, first, scored=[0] + [3] * rounds)


def test_a_row_has_the_figures_that_a_person_counts():
    """Two conversations, the first of two turns: 4 + 3 tokens in 1 + 2 rounds, and 5 tokens in 2 rounds."""
    own, plain = [figures.Tally([figures.Answers()]) for _ in "ab"], [figures.Tally([figures.Answers()]) for _ in "ab"]
    drafted = [[reply([1, 2, 3, 4], [0, 0, 1], 3.0), reply([5, 6, 7], [2, 0, 0], 5.0)], [reply([1, 2, 3, 4, 5], [1, 0, 1], 5.0)]]
    steps = [[reply([1, 2, 3, 4], [3], 4.0), reply([5, 6, 7], [2], 3.0)], [reply([1, 2, 3, 9, 5], [4], 5.0)]]
    for tallies, done in ((own, drafted), (plain, steps)):
        for tally, replies in zip(tallies, done, strict=True):
            for each in replies:
                tally.add([each], figures.Spent.on_batch([each]))
                tally.conversations[0].replies.append(each)
    row = figures.row(own, plain)
    assert (row["conversations"], row["replies"], row["tokens"], row["rounds"]) == (2, 3, 12, 5)
    assert row["tokens_per_step"] == (3 + 2 + 4) / 5
    assert math.isclose(row["tokens_per_step_error"], math.sqrt(2 * ((5 - 1.8 * 3) ** 2 + (4 - 1.8 * 2) ** 2)) / 5)
    assert row["accepted_histogram"] == [3, 0, 2] and row["acceptance_by_position"] == [2 / 5, 2 / 5]
    assert math.isclose(row["tokens_per_second"], 12 / 13) and math.isclose(row["speedup"], (12 / 13) / (12 / 12))
    assert math.isclose(row["round_seconds"], 10 / 5) and math.isclose(row["round_over_plain"], (10 / 5) / (9 / 9))
    assert (row["identical_replies"], row["identical_tokens"]) == (2, 7)
    block = row["metrics"]["speculative_decoding"]
    assert (block["num_spec_steps"], block["num_accepted_draft_tokens"], block["num_draft_tokens"]) == (5, 4, 10)


def test_a_batch_lasts_until_its_slowest_row():
    tally = figures.Tally([figures.Answers(), figures.Answers()])
    replies = [reply([1, 2, 3], [2], 4.0), reply([1, 2, 3, 4], [3], 5.0)]
    tally.add(replies, figures.Spent.on_batch(replies))
    assert dataclasses.asdict(tally) | {"conversations": 0} == {
        "conversations": 0, "tokens": 7, "seconds": 5.0, "round_seconds": 4.0, "passes": 3
    }  # fmt: skip


def test_where_texts_part():
    assert figures.first_difference([1, 2], [1, 2]) is None
    assert figures.first_difference([1, 2, 3], [1, 4, 3]) == 1 and figures.first_difference([1, 2], [1, 2, 3]) == 2
