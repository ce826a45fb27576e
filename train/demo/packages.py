"""Python source of installed packages, as a second origin of the embedded pair's text.

A package is held out as a whole, by a hash of its name, since what a head should draft there is code of libraries that it has never
read. Of a large package some files are taken, by a hash of their paths, so that none is most of the text. Not here: the standard
library, writing the files (`corpus.py`).
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import pathlib
import re
from collections.abc import Mapping

from redrafter_jax.errors import BadInput

SKIPPED_FOLDERS = {"test", "tests", "testing", "site-packages", "dist-packages", "encodings", "pydoc_data", "lib2to3",
                   "idlelib", "turtledemo", "__pycache__", "__phello__", "_vendor", "include", "lib-dynload"}  # fmt: skip
HELD_OUT_ONE_IN = 4  # packages
MAX_PACKAGE_BYTES = 1 << 20  # of one package's text


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file: its path relative to the folder of its library, and its text."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Package:
    """An installed package: the name that it is imported by, version, licence, and the files that are taken of it, which are named
    ``packages/NAME/...``."""

    name: str
    version: str
    licence: str
    files: list[SourceFile]


def is_held_out(name: str) -> bool:
    """Whether a package is held out, by the name that it is imported by."""
    return _hashed(name) % HELD_OUT_ONE_IN == 0


def read_all(names: tuple[str, ...], requirements: tuple[pathlib.Path, ...] = ()) -> list[Package]:
    """The packages of these import names, and those that requirement files name, each once.

    Raises:
      BadInput: one is not installed, or a file cannot be read.
    """
    found = [(name, *_find(name)) for name in dict.fromkeys(names)]
    for file in requirements:
        found += [each for name in _required(file) for each in _imported(name, file) if each[0] not in names]
    return [_read(*each) for each in dict((each[0], each) for each in found).values()]


def read_files(folder: pathlib.Path) -> list[SourceFile]:
    """Every Python file in a folder, less tests and tables of characters."""
    sources = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if SKIPPED_FOLDERS.isdisjoint(name.parts[:-1]):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if text.strip():
                sources.append(SourceFile(name.as_posix(), text))
    return sources


def _read(name: str, folder: pathlib.Path, metadata: Mapping[str, str]) -> Package:
    size, files = 0, []
    for source in sorted(read_files(folder), key=lambda source: _hashed(source.name)):
        size += len(source.text.encode())
        if files and size > MAX_PACKAGE_BYTES:
            break
        files.append(SourceFile(f"packages/{name}/{source.name}", source.text))
    return Package(name, metadata["Version"], _licence(metadata), sorted(files, key=lambda source: source.name))


def _licence(metadata: Mapping[str, str]) -> str:
    """As the metadata say it: an expression, the first line of a text, or the classifiers."""
    classifiers = [
        value.rpartition("::")[2].strip() for key, value in metadata.items() if key == "Classifier" and "License" in value
    ]
    given = metadata.get("License-Expression") or metadata.get("License", "").strip() or ", ".join(classifiers) or "?"
    return given.splitlines()[0].strip()


def _find(package: str) -> tuple[pathlib.Path, Mapping[str, str]]:
    """The folder of a package, by its import name, and the metadata of its distribution."""
    wrong = BadInput(f"--packages: {package!r} is not an installed package; give the name that it is imported by")
    try:
        spec = importlib.util.find_spec(package)
    except Exception:  # it imports the parent packages, which may raise any error
        raise wrong from None
    if spec is None or not spec.submodule_search_locations:
        raise wrong
    names = importlib.metadata.packages_distributions().get(package.partition(".")[0], [package])
    try:
        return pathlib.Path(list(spec.submodule_search_locations)[0]), importlib.metadata.metadata(names[0])
    except importlib.metadata.PackageNotFoundError:
        raise wrong from None


def _required(file: pathlib.Path) -> list[str]:
    """The distributions that the lines of a requirement file begin with."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"--requirements: {file} cannot be read ({error})") from None
    found = [match.group() for match in map(re.compile(r"\s*[A-Za-z0-9][\w.-]*").match, lines) if match]
    if not found:
        raise BadInput(f"--requirements: {file} names no package; give a file like requirements.txt")
    return [name.strip() for name in found]


def _imported(distribution: str, file: pathlib.Path) -> list[tuple]:
    """The packages that a distribution installs, as `_find` finds them with their names."""
    is_same = lambda other: _normal(other) == _normal(distribution)  # noqa: E731
    every = importlib.metadata.packages_distributions().items()
    names = [name for name, owners in every if name.isidentifier() and any(map(is_same, owners))]
    found = []
    for name in sorted(names):
        spec = importlib.util.find_spec(name)
        if (
            spec is not None
            and spec.submodule_search_locations
            and read_files(pathlib.Path(list(spec.submodule_search_locations)[0]))
        ):
            found.append((name, *_find(name)))
    if not found:
        raise BadInput(
            f"--requirements: {distribution!r} in {file} installs no Python package here; install it, or take out its line"
        )
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _hashed(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)
