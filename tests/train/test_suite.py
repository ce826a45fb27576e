"""The embedded suite of `infer.evaluate`: what the rule gives, and nothing that a target was trained on."""

import json
import platform

import pytest

from infer.evaluate.suites import EMBEDDED_FILE
from redrafter_jax.errors import BadInput
from train.demo import corpus, suite
from train.demo.corpus import SourceFile

LINES = [json.loads(line) for line in EMBEDDED_FILE.read_text().splitlines()]
OF_3_11_7 = pytest.mark.skipif(platform.python_version() != "3.11.7", reason="the suite is of CPython 3.11.7's library")


@OF_3_11_7
def test_the_committed_file_is_what_the_rule_gives_and_files_of_others_are_kept(tmp_path, capsys):
    output = tmp_path / "suite.jsonl"
    output.write_text("mine")
    assert suite.command(["--output", str(output)]) == 2 and "is kept" in capsys.readouterr().err
    output.unlink()
    assert suite.command(["--output", str(output)]) == 0
    assert output.read_bytes() == EMBEDDED_FILE.read_bytes()


@OF_3_11_7
def test_no_prompt_is_in_the_training_text_and_all_are_of_held_out_files():
    text = corpus.read()
    trained = "\0".join(source.text for source in text.train)
    assert not [line["source"] for line in LINES if line["prompt"] in trained]
    held_out = {source.name for source in text.held_out}
    for line in LINES:
        file = line["source"].partition(":")[0]
        assert file.startswith("test/") if line["category"] == "tests" else file in held_out
        assert suite.MIN_CHARACTERS <= len(line["prompt"]) <= suite.MAX_CHARACTERS


LIST = "    'some word of a list',\n" * 20
WORDS = "        A line of forty characters or thereabouts.\n" * 9
STEPS = "        x = x + 1  # and again\n" * 20
SOURCE = f'''import os
import sys

LONG = [
{LIST}]


class Thing:
    def told(self):
        """What is said.

{WORDS}        And so on.
        """

    def short(self):
        return 1

    def bare(self, x):
{STEPS}        return x
'''


def test_pieces_are_told_apart_by_their_kind_and_prompts_are_whole_lines_of_them():
    source = SourceFile("a.py", SOURCE)
    found = {piece.category: suite._prompt(source, piece)[0] for piece in suite._pieces(source) if suite._prompt(source, piece)}
    assert set(found) == {"imports and data", "classes", "docstrings", "functions"}
    assert found["docstrings"].startswith('def told(self):\n    """What is said.\n') and '"""' not in found["docstrings"][30:]
    assert found["functions"].startswith("def bare(self, x):\n    x = x + 1") and found["functions"].endswith("again\n")
    assert found["classes"].startswith("class Thing:\n    def told") and found["imports and data"].startswith("LONG = [\n")
    tests = SourceFile("test/test_a.py", SOURCE.replace("def bare", "def test_bare"))
    assert [piece.category for piece in suite._pieces(tests)] == ["tests"]


def test_a_library_without_tests_is_said():
    with pytest.raises(BadInput, match="has no test package, and 8 are needed"):
        suite._chosen("tests", [], "")
