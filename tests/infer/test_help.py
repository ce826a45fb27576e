"""`--help` of every command: groups, names of values, examples, and options under their names in other packages."""

import dataclasses
import pathlib
import shlex
from typing import Annotated, ClassVar, Literal

import pytest
import tyro

from infer import help as helps
from infer.benchmark import __main__ as benchmark
from infer.command import read_options
from infer.evaluate import __main__ as evaluate
from infer.generate import __main__ as generate
from infer.serve import __main__ as serve
from train import candidates, drift, export, plot
from train.calibrate import __main__ as calibrate
from train.distill import __main__ as distill
from train.main import parse
from train.run import options as training
from train.run.recipe import PRESETS, Recipe

KINDS = {
    "infer.generate": generate.Options,
    "infer.benchmark": benchmark.Options,
    "infer.evaluate": evaluate.Options,
    "infer.serve": serve.Options,
    "train.main": training.Options,
    "train.distill": distill.Options,
    "train.plot": plot.Options,
    "train.export": export.Options,
    "train.drift": drift.Options,
    "train.calibrate": calibrate.Options,
    "train.candidates": candidates.Options,
}


def printed(kind, capsys, monkeypatch, *arguments, name="x"):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        read_options(kind, name, list(arguments))
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.mark.parametrize("name", KINDS)
def test_every_help_fits_80_columns_names_no_none_and_ends_with_examples_that_parse(name, capsys, monkeypatch):
    kind = KINDS[name]
    code, out, _ = printed(kind, capsys, monkeypatch, "--help", name=name)
    text, _, last = out.partition("\nexamples:\n")
    assert code == 0 and "None" not in text.replace("None:", "") and max(map(len, text.splitlines())) <= 80
    assert max(map(len, last.splitlines())) <= 100 and last
    for group in getattr(kind, "GROUPS", {}):
        assert f"{group.replace('_', '-')} options" in out
    assert {field.name for field in dataclasses.fields(kind)} >= {
        *getattr(kind, "VALUES", {}),
        *getattr(kind, "GROUPS", {}).values(),
    }
    for field in dataclasses.fields(kind):
        assert helps._dataclass_in(field.type) or f"--{field.name.replace('_', '-')}" in out or field.name == "beside"
    for line in last.splitlines():
        command = shlex.split(line)[2:]
        other = KINDS[command[0]]
        assert read_options(other, command[0], command[1:])


def test_a_default_that_depends_is_in_words_and_others_are_numbers(capsys, monkeypatch):
    _, out, _ = printed(generate.Options, capsys, monkeypatch, "--help")
    words = " ".join(out.replace("│", "").split())
    assert "--beam-width W Beams W; by default what infer.tune found, else 8, and on a CPU 2" in words and "(default: 128)" in words
    assert "0 is greedy. (default: 0.0)" in words and "1 is off. (default: 1.0)" in words
    assert "--mesh D M" in words and "--dtype {float32,bfloat16}" in words


@dataclasses.dataclass(frozen=True)
class Inner:
    """What is inside."""

    deep: int = 3
    """A number."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """An example."""

    GROUPS: ClassVar = {"first": "name", "second": "size"}

    name: str
    """A name."""
    files: tuple[pathlib.Path, ...] = ()
    """Files."""
    size: tuple[int, int] | None = None
    """Two numbers."""
    kind: Literal["a", "b"] | None = None
    again: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    inner: tyro.conf.OmitArgPrefixes[Inner] = Inner()


def test_the_options_come_back_as_the_commands_own_type():
    given = ["--name", "n", "--files", "f", "g", "--size", "1", "2", "--kind", "b", "--again", "x", "--again", "y", "--deep", "5"]
    files = (pathlib.Path("f"), pathlib.Path("g"))
    assert read_options(Outer, "x", given) == Outer("n", files, (1, 2), "b", ("x", "y"), Inner(5))
    assert read_options(Outer, "x", ["--name", "n"]) == Outer("n")
    assert read_options(Outer, "x", [], default=Outer("m", size=(3, 4), inner=Inner(9))) == Outer("m", size=(3, 4), inner=Inner(9))


def test_a_preset_gives_defaults_that_options_change():
    found = parse(["--target", "t", "--text", "x", "--preset", "vicuna-7b", "--steps", "7"])
    assert found.recipe == dataclasses.replace(PRESETS["vicuna-7b"](), steps=7)
    assert parse(["--target", "t"]).recipe == Recipe()


@pytest.mark.parametrize(
    ("given", "here"),
    [("--model", "--target"), ("--max_tokens=5", "--max-new-tokens"), ("--prompt-file", "--prompts"), ("--chat", "--interactive")],
)
def test_an_option_by_its_name_in_another_package_is_told_its_name_here(given, here, capsys, monkeypatch):
    code, _, err = printed(generate.Options, capsys, monkeypatch, given)
    assert (code, err) == (2, f"error: there is no {given.partition('=')[0].replace('_', '-')}; here it is {here}\n")


def test_a_name_that_the_command_itself_has_is_its_own():
    from infer.fit import __main__ as fit

    assert helps.named_elsewhere(fit.Options, ["--model", "llama-7b"]) is None
    assert helps.named_elsewhere(generate.Options, ["--prompt", "--model of the world"]) is None
