"""`python -m train.demo.suite`: the embedded suite of `infer.evaluate`, starts of held-out Python in five categories.

The rule: of the standard library's held-out files (`corpus.is_held_out`) every piece of a category is a candidate: a function with
a docstring, a class, a function without one, a run of imports or a literal of several lines, and, in files of the library's test
package, which are never trained on, a test. Its prompt is its first lines, up to `MAX_CHARACTERS`, some 64 tokens. What is too
short, or stands in the training text too, is none. The candidates are ordered by a hash of their place, and the first `COUNT`
are taken, at most `PER_FILE` of a file. The same Python makes the same file.
"""

import ast
import dataclasses
import hashlib
import json
import pathlib
import sys
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from infer.command import read_options, run_command
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims
from train.demo import corpus
from train.demo.corpus import SourceFile

CATEGORIES = ("docstrings", "classes", "functions", "imports and data", "tests")
COUNT, PER_FILE = 8, 2  # prompts of a category, and of them from one file
MIN_CHARACTERS, MAX_CHARACTERS = 120, 230  # of a prompt
MIN_PIECE_CHARACTERS = 400  # so that the target has something to continue
LITERALS = (ast.Dict, ast.List, ast.Tuple, ast.Set)


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Lines ``first`` to ``last`` of a file, counted from 1; within: the last line that the prompt may not reach."""

    category: str
    first: int
    last: int
    within: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A prompt, moved to the left and as it stands in its file, where it begins at a line."""

    file: str
    line: int
    prompt: str
    as_it_stands: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def make() -> list[dict[str, str]]:
    """The lines of the suite.

    Raises:
      BadInput: this Python has no test package, or too few pieces.
    """
    text = corpus.read()
    trained = "\0".join(source.text for source in text.train)
    found: dict[str, list[Candidate]] = {category: [] for category in CATEGORIES}
    for source in [*text.held_out, *_test_files()]:
        for piece in _pieces(source):
            prompt = _prompt(source, piece)
            if prompt is not None:
                found[piece.category].append(Candidate(source.name, piece.first, *prompt))
    return [
        {"category": category, "prompt": each.prompt, "source": each.place}
        for category in CATEGORIES
        for each in _chosen(category, found[category], trained)
    ]


def _chosen(category: str, candidates: list[Candidate], trained: str) -> list[Candidate]:
    taken, per_file = [], Counter()
    for each in sorted(candidates, key=lambda each: hashlib.sha256(each.place.encode()).hexdigest()):
        is_wanted = len(taken) < COUNT and per_file[each.file] < PER_FILE
        if is_wanted and each.prompt not in trained and each.as_it_stands not in trained:
            taken.append(each)
            per_file[each.file] += 1
    if len(taken) < COUNT:
        has = "has no test package" if category == "tests" and not taken else f"has {len(taken)} pieces of {category}"
        raise BadInput(f"the standard library of this Python {has}, and {COUNT} are needed; use CPython 3.11.7 from source")
    return taken


def _test_files() -> list[SourceFile]:
    """Those of the test package that the rule of held-out files takes."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(library).as_posix() for path in (library / "test").rglob("test_*.py"))
    return [
        SourceFile(name, (library / name).read_text(encoding="utf-8", errors="ignore"))
        for name in names
        if corpus.is_held_out(name)
    ]


def _pieces(source: SourceFile) -> Iterator[Excerpt]:
    try:
        tree = ast.parse(source.text)
    except SyntaxError:  # of files that test the parser
        return
    if source.name.startswith("test/"):
        tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
        yield from (_piece("tests", node) for node in tests)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_text = ast.get_docstring(node) is not None
            yield _piece("docstrings", node, node.body[0].end_lineno) if has_text else _piece("functions", node)
        elif isinstance(node, ast.ClassDef):
            yield _piece("classes", node)
    yield from _imports_and_data(tree)


def _piece(category: str, node: ast.stmt, within: int | None = None) -> Excerpt:
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    return Excerpt(category, first, node.end_lineno, within or node.end_lineno)


def _imports_and_data(tree: ast.Module) -> Iterator[Excerpt]:
    """The statements from a module's first import on, and each literal of several lines."""
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    if imports:
        yield Excerpt("imports and data", imports[0].lineno, tree.body[-1].end_lineno, tree.body[-1].end_lineno)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, LITERALS):
            yield _piece("imports and data", node)


def _prompt(source: SourceFile, piece: Excerpt) -> tuple[str, str] | None:
    """The first lines of a piece, moved to the left and as they stand; None where it has no prompt."""
    lines = source.text.splitlines(keepends=True)[piece.first - 1 : piece.last]
    if sum(map(len, lines)) < MIN_PIECE_CHARACTERS:
        return None
    whole, count = textwrap.dedent("".join(lines)).splitlines(keepends=True), 0
    while count < len(whole) and sum(map(len, whole[: count + 1])) <= MAX_CHARACTERS:
        count += 1
    prompt = "".join(whole[:count])
    if len(prompt) < MIN_CHARACTERS or piece.first + count > piece.within or not prompt.isascii():
        return None
    return prompt, "".join(lines[:count])


@dataclasses.dataclass(frozen=True)
class Options:
    """Make the embedded suite of infer.evaluate: starts of the running Python's held-out source, in five categories."""

    EXAMPLES: ClassVar = ("python -m train.demo.suite --output suite.jsonl",)

    output: pathlib.Path
    """JSONL file with category, prompt and source in each line."""


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.demo.suite", arguments)))


def main(options: Options) -> None:
    """Writes the file.

    Raises:
      BadInput: as `make`, or the file cannot be written or is another's.
    """
    claims.check_replaceable(options.output, "--output", _is_ours, "a suite of train.demo.suite")
    lines = make()
    options.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{options.output}: {len(lines)} prompts in {len(CATEGORIES)} categories")


def _is_ours(beginning: bytes) -> bool:
    return beginning.startswith(b'{"category": "docstrings", "prompt": ')


if __name__ == "__main__":
    sys.exit(command())
