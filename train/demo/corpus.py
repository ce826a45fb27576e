"""`python -m train.demo.corpus`: copies the embedded pair's text, Python source on this machine, into two folders.

The text is the standard library of the running Python and, if named, installed packages; without tests (they repeat
themselves) and character tables. One file in twenty of the standard library is held out, chosen by a hash of its path,
and one package in four, by a hash of its name, so that the choice is the same on every machine.
"""

import dataclasses
import hashlib
import json
import pathlib
import platform
import sys
import sysconfig

from infer.command import read_options, run_command
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, json_files
from train.demo import packages as installed
from train.demo.packages import SourceFile

HELD_OUT_ONE_IN = 20  # files
PACKAGES_FOLDER = "held_out_packages"  # for packages that are not trained on
COMMAND = "python -m train.demo.corpus"
RECORD_FILE = "origins.json"  # where the text came from; it marks the command's own folder


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Training and held-out files of the standard library, and a line about each origin (name, version, licence, bytes). Packages
    are trained on or, as a whole, held out."""

    train: list[SourceFile]
    held_out: list[SourceFile]
    origins: list[dict[str, str | int]]
    held_out_packages: list[SourceFile] = dataclasses.field(default_factory=list)


def is_held_out(name: str) -> bool:
    """Whether a standard-library file is held out, by its path relative to the library's folder."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def read(packages: tuple[str, ...] = (), requirements: tuple[pathlib.Path, ...] = ()) -> Corpus:
    """Reads the standard library, split, and the Python files of packages, of which one in four is held out (`packages.py`).

    Raises:
      BadInput: a package is not installed, or a requirement file cannot be read.
    """
    found = installed.read_all(packages, requirements)
    library = installed.read_files(pathlib.Path(sysconfig.get_path("stdlib")))
    held_out = [source for source in library if is_held_out(source.name)]
    train = [source for source in library if not is_held_out(source.name)]
    origins = [_describe_origin("the Python standard library", platform.python_version(), "PSF-2.0", train)]
    held_out_packages: list[SourceFile] = []
    for package in found:
        origin = _describe_origin(package.name, package.version, package.licence, package.files)
        part = held_out_packages if installed.is_held_out(package.name) else train
        origins.append(origin | {"part": PACKAGES_FOLDER if part is held_out_packages else "train"})
        part += package.files
    return Corpus(train, held_out, origins, held_out_packages)


def _describe_origin(name: str, version: str, licence: str, files: list[SourceFile]) -> dict[str, str | int]:
    size = sum(len(source.text.encode()) for source in files)
    return {"name": name, "version": version, "licence": licence, "files": len(files), "bytes": size}


@dataclasses.dataclass(frozen=True)
class Options:
    """Copy the embedded pair's text into two folders: what its target was trained on, and what was held out."""

    output: pathlib.Path
    """Folder for `train/`, `held_out/`, with packages `held_out_packages/`, and `origins.json`, which has their licences."""
    packages: tuple[str, ...] = ()
    """Installed packages, by the names that they are imported by: a megabyte of each at most is added to `train/` or, of one
    package in four, chosen by a hash of its name, to `held_out_packages/`."""
    requirements: tuple[pathlib.Path, ...] = ()
    """Files like requirements.txt: the packages that they name are added likewise."""


def main(options: Options) -> None:
    """Writes the files, and prints how many.

    Raises:
      BadInput: a package is not installed, or the folder cannot be written.
    """
    check_output(options.output)
    text = read(options.packages, options.requirements)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / RECORD_FILE).write_text(json.dumps({"command": COMMAND, "origins": text.origins}, indent=1) + "\n")
    except OSError as error:
        raise BadInput(f"--output: {options.output} cannot be written ({error.strerror})") from None
    parts = {"train": text.train, "held_out": text.held_out, PACKAGES_FOLDER: text.held_out_packages}
    for name, sources in parts.items():
        if not sources:
            continue
        try:
            for source in sources:
                path = options.output / name / source.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(source.text, encoding="utf-8")
        except OSError as error:
            raise BadInput(f"--output: {options.output} cannot be written ({error.strerror})") from None
        print(f"{options.output / name}: {len(sources)} files, {sum(len(source.text) for source in sources) / 1e6:.1f} MB")


def check_output(folder: pathlib.Path) -> None:
    """Raises BadInput where the folders of text cannot be written, or have files of another origin."""
    claims.check_folder(folder, "--output")
    if (json_files.find_object(folder / RECORD_FILE) or {}).get("command") == COMMAND:
        return
    for name in ("train", "held_out", PACKAGES_FOLDER):
        claims.check_empty(folder / name, "--output", "train.demo.corpus")
    if (folder / RECORD_FILE).exists():
        raise BadInput(f"--output: {folder / RECORD_FILE} is not of train.demo.corpus and is kept; name another folder")


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.demo.corpus", arguments)))


if __name__ == "__main__":
    sys.exit(command())
