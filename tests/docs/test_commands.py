"""Every command of README and docs/ is one that there is; with `pytest -m docs` it is also run."""

import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from infer import command
from infer.pair import EMBEDDED
from tests import adapters
from tests.docs import pages

ROOT = pages.ROOT
COMMANDS = [found for page in pages.PAGES for found in pages.commands_of(page)]
INLINE = [found for page in pages.PAGES for found in pages.inline_commands_of(page)]
ACTIVATE = ". .venv/bin/activate"
RUN = [page for page in pages.PAGES if page.parent.name == "guides" or page.name == "README.md"]


class Parsed(BaseException):
    """Carries the options of a command past everything that would run it."""


def parse(module: str, options: list[str], monkeypatch) -> object:
    """The options of a command, read as the command reads them."""
    real = command.tyro.cli

    def cli(*arguments, **settings):
        raise Parsed(real(*arguments, **settings))

    monkeypatch.setattr(command.tyro, "cli", cli)
    try:
        found = importlib.import_module(module if module_is_a_file(module) else f"{module}.__main__")
        start = getattr(found, "command", None) or found.main
        start(options)
    except Parsed as parsed:
        return parsed.args[0]
    except SystemExit as ended:
        assert ended.code == 0, f"{module} {options}"
        return None
    finally:
        monkeypatch.undo()
    raise AssertionError(f"{module} read no options")


def module_is_a_file(module: str) -> bool:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py").exists()


def placeholders_filled(options: list[str]) -> list[str]:
    """Options with something to read in place of an ellipsis and of a lone D M."""
    return [{"D": "1", "M": "8", "T": "v5e:2x4", "N": "4", "C": "8"}.get(word, word) for word in options if word != "..."]


@pytest.mark.parametrize("found", COMMANDS + INLINE, ids=str)
def test_a_command_of_the_pages_has_the_options_that_are_named(found, monkeypatch):
    for part in found.parts:
        named = pages.module_of(part)
        if named and named[1]:
            parse(named[0], options_that_are_needed(named[0], placeholders_filled(named[1])), monkeypatch)
        for file in re.findall(r"-r (\S+\.txt)", part) if part.startswith("pip install") else []:
            assert (ROOT / file).exists() or file == "lowest.txt", found
        for file in re.findall(r"\btests/[\w/.]+", part) if part.startswith("pytest") else []:
            assert (ROOT / file).exists(), found


NEEDED = {
    "infer.fit": ("--model",),
    "train.calibrate": ("--target", "--drafter", "--text", "--output"),
    "train.candidates": ("--target", "--drafter", "--output"),
    "train.drift": ("--target", "--against", "--text"),
    "train.distill": ("--target", "--output"),
    "train.export": ("--run", "--target", "--output"),
    "train.fit": ("--model",),
    "train.main": ("--target",),
    "train.plot": ("--run",),
}


def options_that_are_needed(module: str, options: list[str]) -> list[str]:
    """With the options without which a command cannot be read, where a page leaves them out of the running text."""
    return options + [word for name in NEEDED.get(module, ()) if name not in options for word in (name, "some")]


def test_an_option_that_there_is_not_is_noticed(monkeypatch):
    with pytest.raises(AssertionError, match="infer.generate"):
        parse("infer.generate", ["--no-such-option", "3"], monkeypatch)


def test_a_line_is_run_but_for_what_would_change_the_environment():
    lines = [
        ". .venv/bin/activate && pip install x && python -m infer.generate",
        'all "python -m train.main"',
        "echo a | python -m infer.generate",
    ]
    run_here = [parts_to_run(pages.Command(ROOT, line)) for line in lines]
    assert run_here == [["python -m infer.generate"], [], ["echo a | python -m infer.generate"]]


def test_the_pages_have_commands_and_the_table_says_which_are_not_run():
    assert len(COMMANDS) > 50 and len(INLINE) > 10
    assert any("infer.generate" in found.line for found in COMMANDS)
    assert pages.why_not_run("gcloud compute tpus") and pages.why_not_run("python -m infer.generate") is None
    unused = [begins for begins in pages.only_parsed() if not any(p.startswith(begins) for c in COMMANDS for p in c.parts)]
    assert not unused, unused


def test_the_two_commands_of_the_readme_are_word_for_word_what_ci_and_users_know():
    lines = [found.line for found in pages.commands_of(ROOT / "README.md")]
    assert "python -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt && python -m infer.generate" in lines
    assert "pip install -r requirements-dev.txt && pytest" in lines


# What makes a command small: options that go behind its own, where the last one counts.
SMALL = {
    "infer.generate": ["--max-new-tokens", "8"],
    "infer.benchmark": ["--repeats", "1", "--max-new-tokens", "8", "--beams", "2x2", "--nodes", "1"],
    "infer.evaluate": ["--limit", "1", "--max-new-tokens", "8"],
    "infer.evaluate --drafter": ["--beams", "2x2", "--trees", "search", "--prompts", "2", "--contexts", "4", "--new-tokens", "48"],
    "infer.fit": ["--batch", "8", "--beams", "2x2", "--unchecked"],
    "train.fit": ["--row-length", "128", "--positions", "2"],
    "train.main": ["--steps", "4", "--batch", "2", "--row-length", "64", "--evaluate-every", "0", "--save-every", "2"],
    "train.distill": ["--max-new-tokens", "8", "--batch-size", "8"],
    "train.calibrate": ["--places", "32", "--beam", "2", "2"],
    "train.drift": ["--rows", "4"],
    "train.demo.draft_model": ["--steps", "4"],
    "train.benchmark": ["--repeats", "1", "--vocab", "500", "--width", "32"],
}


@pytest.mark.docs
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_order(page, tmp_path):
    fill(tmp_path)
    for found in pages.commands_of(page):
        for part in parts_to_run(found):
            run(small(part), tmp_path, found)


@pytest.mark.docs
@pytest.mark.parametrize("page", [page for page in RUN if pages.python_of(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path):
    fill(tmp_path)
    script = tmp_path / "page.py"
    script.write_text(pages.python_of(page))
    with server_of(page):
        run(f"python {script}", tmp_path, page)


@contextlib.contextmanager
def server_of(page: pathlib.Path) -> Iterator[None]:
    """The server that the Python of a page calls, if it calls one."""
    if "http://127.0.0.1:8000" not in pages.python_of(page):
        yield
        return
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    server = subprocess.Popen([sys.executable, "-m", "infer.serve"], cwd=ROOT, env=clean, stderr=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("ready after") for line in server.stderr), "the server did not begin"
        yield
    finally:
        server.terminate()
        assert server.wait(60) == 0


def parts_to_run(found: pages.Command) -> list[str]:
    """The commands of a line that can run here."""
    if found.line.startswith(pages.ON_HOSTS):
        return []
    parts = [part.strip() for part in found.line.split("&&")]
    return [part for part in parts if not (pages.why_not_run(part) or part == ACTIVATE or lacks_compiler(part))]


def lacks_compiler(part: str) -> bool:
    """Whether a command compiles for a TPU, and libtpu is not installed."""
    return ".fit " in part and "--floors" not in part and importlib.util.find_spec("libtpu") is None


def fill(folder: pathlib.Path) -> None:
    """What a reader has at hand: a target, a head, prompts, conversations; and the source, as in a checkout."""
    for name, part in {
        "TARGET": "target",
        "HEAD": "drafter_slim",
        "target-folder": "target",
        "head-folder": "drafter_slim",
    }.items():
        (folder / name).symlink_to(EMBEDDED / part)
    for name in ("infer", "train", "redrafter_jax", "docs"):
        (folder / name).symlink_to(ROOT / name)
    adapters.write(folder / "ADAPTER", EMBEDDED / "target")
    (folder / "held-out.txt").write_text((ROOT / "infer" / "completion.py").read_text())
    prompts = ["import os\n", "def main():\n"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    turns = [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "def add(a, b):\n    return a + b\n" * 8}]
    (folder / "talk.json").write_text(json.dumps([{"conversations": turns}] * 24))


def small(part: str) -> str:
    """A command with less to do."""
    named = pages.module_of(part)
    kind = " --drafter" if named and named[0] == "infer.evaluate" and "--drafter" in named[1] else ""
    more = list(SMALL.get(named[0] + kind, [])) if named else []
    if named and "--floors" in named[1]:
        more = []
    if named and "--interactive" in named[1]:
        part = f"echo 'x = 1' | {part}"
    return " ".join([part, *more])


def run(line: str, folder: pathlib.Path, what: object) -> None:
    """Runs a line of a shell; it has to end with 0."""
    shell = shutil.which("bash")
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PATH": path, "PYTHONPATH": str(folder)}
    ended = subprocess.run([shell, "-c", line], cwd=folder, env=clean, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, f"{what}\n{line}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
