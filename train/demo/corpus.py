"""`python -m train.demo.corpus`: copies the embedded pair's text, Python source on this machine, into two folders.

The text is the standard library of the running Python and, if named, installed packages; without tests (they repeat
themselves) and character tables. One file in twenty of the standard library is held out, chosen by a hash of its path,
so that the choice is the same on every machine.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import sys
import sysconfig
from collections.abc import Mapping

from infer.command import read_options, run_command
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, json_files

SKIPPED_FOLDERS = {"test", "tests", "testing", "site-packages", "dist-packages", "encodings", "pydoc_data", "lib2to3",
                   "idlelib", "turtledemo", "__pycache__", "__phello__", "_vendor", "include", "lib-dynload"}  # fmt: skip
HELD_OUT_ONE_IN = 20  # files
COMMAND = "python -m train.demo.corpus"
RECORD_FILE = "origins.json"  # where the text came from; it marks the command's own folder


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file: its path relative to the library's folder, and its text."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Training and held-out files, and a line about each origin (name, version, licence, bytes)."""

    train: list[SourceFile]
    held_out: list[SourceFile]
    origins: list[dict[str, str | int]]


def is_held_out(name: str) -> bool:
    """Whether a standard-library file is held out, by its path relative to the library's folder."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def read(packages: tuple[str, ...] = ()) -> Corpus:
    """Reads the standard library, split, and every Python file of ``packages`` for training.

    Raises:
      BadInput: a package is not installed.
    """
    found = [(package, *_find_installed(package)) for package in packages]
    library = _read_files(pathlib.Path(sysconfig.get_path("stdlib")))
    held_out = [source for source in library if is_held_out(source.name)]
    train = [source for source in library if not is_held_out(source.name)]
    origins = [_describe_origin("the Python standard library", platform.python_version(), "PSF-2.0", train)]
    for package, folder, metadata in found:
        files = _read_files(folder)
        licence = metadata.get("License-Expression") or (metadata.get("License", "").strip() or "?").splitlines()[0]
        origins.append(_describe_origin(package, metadata["Version"], licence, files))
        train += files
    return Corpus(train, held_out, origins)


def _find_installed(package: str) -> tuple[pathlib.Path, Mapping[str, str]]:
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
        return pathlib.Path(spec.submodule_search_locations[0]), importlib.metadata.metadata(names[0])
    except importlib.metadata.PackageNotFoundError:
        raise wrong from None


def _read_files(folder: pathlib.Path) -> list[SourceFile]:
    sources = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if SKIPPED_FOLDERS.isdisjoint(name.parts[:-1]):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if text.strip():
                sources.append(SourceFile(name.as_posix(), text))
    return sources


def _describe_origin(name: str, version: str, licence: str, files: list[SourceFile]) -> dict[str, str | int]:
    size = sum(len(source.text.encode()) for source in files)
    return {"name": name, "version": version, "licence": licence, "files": len(files), "bytes": size}


@dataclasses.dataclass(frozen=True)
class Options:
    """Copy the embedded pair's text into two folders: what its target was trained on, and what was held out."""

    output: pathlib.Path
    """Folder for `train/`, `held_out/` and `origins.json`."""
    packages: tuple[str, ...] = ()
    """Installed packages whose Python files are added to `train/`."""


def main(options: Options) -> None:
    """Writes the files, and prints how many.

    Raises:
      BadInput: a package is not installed, or the folder cannot be written.
    """
    check_output(options.output)
    text = read(options.packages)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / RECORD_FILE).write_text(json.dumps({"command": COMMAND, "origins": text.origins}, indent=1) + "\n")
    except OSError as error:
        raise BadInput(f"--output: {options.output} cannot be written ({error.strerror})") from None
    for name, sources in (("train", text.train), ("held_out", text.held_out)):
        try:
            for source in sources:
                path = options.output / name / source.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(source.text, encoding="utf-8")
        except OSError as error:
            raise BadInput(f"--output: {options.output} cannot be written ({error.strerror})") from None
        print(f"{options.output / name}: {len(sources)} files, {sum(len(source.text) for source in sources) / 1e6:.1f} MB")


def check_output(folder: pathlib.Path) -> None:
    """Raises BadInput where `train/` or `held_out/` cannot be written, or have files of another origin."""
    claims.check_folder(folder, "--output")
    if (json_files.find_object(folder / RECORD_FILE) or {}).get("command") == COMMAND:
        return
    for name in ("train", "held_out"):
        claims.check_empty(folder / name, "--output", "train.demo.corpus")
    if (folder / RECORD_FILE).exists():
        raise BadInput(f"--output: {folder / RECORD_FILE} is not of train.demo.corpus and is kept; name another folder")


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.demo.corpus", arguments)))


if __name__ == "__main__":
    sys.exit(command())
