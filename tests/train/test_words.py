"""What a person sees while a dataset is made and a head trains."""

import dataclasses
import logging
import pathlib

import pytest

from infer import pair, text_files
from infer.text import load_tokenizer
from redrafter_jax.errors import BadInput
from tests.training import recipe
from train import plot
from train.data import datasets, questions
from train.run import log

TARGET = str(pair.EMBEDDED / "target")
PICTURE = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@pytest.fixture
def notes(tmp_path) -> pathlib.Path:
    """A folder as people have it: text, code, and two pictures."""
    folder = tmp_path / "notes"
    (folder / "images").mkdir(parents=True)
    for name in ("a.md", "b.md", "c.py"):
        (folder / name).write_text(f"x = {name!r}\n" * 4)
    for name in ("one.png", "two.png"):
        (folder / "images" / name).write_bytes(PICTURE)
    return folder


def test_a_dataset_is_built_in_our_words_and_pictures_are_counted_and_passed_over(notes, tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        built = datasets.build(datasets.Source("text", (notes,), TARGET, held_out=0.0), tmp_path / "sets")
    out, err = capfd.readouterr()
    assert out.splitlines() == ["2 binary files are passed over (one.png, two.png)"]
    assert "building the dataset" in err and err.count("\n") <= 1
    assert not any(word in out + err + caplog.text for word in ("ownload", "Variant", "Generating", "Shuffling", "absl"))
    assert len(datasets.open_split(built, "train")) == 3


def test_a_picture_that_is_named_and_a_folder_of_pictures_are_mistakes(notes, tmp_path):
    with pytest.raises(BadInput, match="one.png"):
        datasets.build(datasets.Source("text", (notes / "images" / "one.png",), TARGET), tmp_path / "sets")
    with pytest.raises(BadInput, match="there is no text in .*images: every file is binary, such as one.png"):
        text_files.texts([notes / "images"])


class CountedPath(type(pathlib.Path())):
    """A path that counts how often paths are compared."""

    compared = 0

    def __eq__(self, other):
        CountedPath.compared += 1
        return super().__eq__(other)

    __hash__ = pathlib.Path.__hash__


def test_files_are_not_compared_each_with_each(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_bytes(PICTURE if number % 2 else b"text")
    found = text_files.texts([CountedPath(tmp_path / f"{number}.txt") for number in range(0, 200, 2)] + [CountedPath(tmp_path)])
    assert (len(found.files), len(found.binary)) == (200, 100) and CountedPath.compared < 2000


def test_patterns_choose_among_the_files_of_folders_and_make_another_dataset(notes):
    assert [file.name for file in text_files.texts([notes], ("*.md",)).files] == ["a.md", "b.md"]
    assert [file.name for file in text_files.texts([notes, notes / "c.py"], ("*.md",)).files] == ["a.md", "b.md", "c.py"]
    assert text_files.texts([notes], ("*.md",)).note() is None
    with pytest.raises(BadInput, match=r"neither empty nor hidden and matches \*.txt or \*.rst"):
        text_files.files([notes], ("*.txt", "*.rst"))
    names = [datasets.Source("text", (notes,), TARGET, patterns=patterns).fingerprint() for patterns in ((), ("*.md",), ("*",))]
    assert names[0] != names[1] and names[0] == names[2]


def test_the_questions_of_a_conversation_are_asked_behind_what_was_said_before_them(tmp_path, capsys):
    tokenizer = load_tokenizer(pathlib.Path(TARGET))
    talk = tmp_path / "talk.jsonl"
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    talk.write_text('{"messages": [' + ", ".join(f'{{"role": "{role}", "content": "{text}"}}' for role, text in said) + "]}")

    def asked(turns):
        found = questions.read([talk], [], questions.Pieces(8, 8), tokenizer, 400, 10**6, turns)
        return [tokenizer.decode(ids).partition("questions.")[2] for ids in found]

    assert len(asked(1)) == 1
    assert "asked: the first question of each conversation; 1 of them go on (--turns asks more)" in capsys.readouterr().err
    assert asked(5) == asked(2) and len(asked(2)) == 2
    assert asked(2)[0].endswith("USER: a ASSISTANT:") and asked(2)[1].endswith("USER: c ASSISTANT:") and "b" in asked(2)[1]


def test_the_lines_of_a_run_fit_80_columns_and_say_what_they_count(tmp_path, capsys):
    positions = 5
    line = {"loss": 45.99, "accuracy": [[0.634]], "tokens_per_second": 12345.7}
    shown = log.BAR_FORMAT.format(
        desc="full", percentage=50.0, bar="#" * 4, n_fmt="500", total_fmt="1000", elapsed="10:19", remaining="10:13",
        postfix=f", {log.describe_step(line, positions)}",
    )  # fmt: skip
    assert "loss 9.20, first 63%" in shown and len(shown) <= 80
    figures = {"loss": 26.19, "accuracy": [[0.036]], "tokens_per_step_1x4": 1.016, "tokens_per_step_4x4": 1.086}
    said = f"step 100000, held out: {log.describe_evaluation(figures, positions)}"
    assert said == "step 100000, held out: loss 5.24, first 4%; tokens per step 1.02 1x4, 1.09 4x4" and len(said) <= 80
    with log.Log(tmp_path, recipe(4), 0, 1.0):
        pass
    with log.Log(tmp_path, dataclasses.replace(recipe(4), method="medusa"), 0, 1.0):
        pass
    said = capsys.readouterr().err
    assert said.count(log.LEGEND.format(2)) == 2 and len(log.LEGEND.format(64)) < 100
    assert said.count(f"{recipe(4).head}   0%") == said.count("medusa   0%") > 0


def test_a_plot_has_the_mean_loss_of_a_drafted_position():
    lines = [{"step": 1, "loss": 8.0, "loss_per_position": [3.0, 5.0]}, {"step": 1, "held_out_loss": 6.0}]
    assert plot._mean_loss(lines, "loss") == ([1], [4.0]) and plot._mean_loss(lines, "held_out_loss") == ([1], [3.0])
