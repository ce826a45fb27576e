"""Files -> records: which files paths name, and the JSON records or the text in them. Not here: what they mean (`examples.py`)."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator

from redrafter_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a file: where it stands, for messages to people, and what it holds (None: not JSON)."""

    where: str
    content: dict | None


def read(path: pathlib.Path) -> Iterator[Record]:
    """The records of a JSON array or a JSON Lines file.

    Raises:
      BadInput: the file is missing, unreadable, empty, or a broken JSON array.
    """
    text = text_of(path)
    if not text.strip():
        raise BadInput(f"{path} is empty; it should hold JSON records")
    if text.lstrip()[0] == "[":
        try:
            array = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path} is not valid JSON ({error})") from None
        for number, content in enumerate(array, 1):
            yield Record(f"{path.name}, record {number}", content if isinstance(content, dict) else None)
        return
    # not splitlines: a JSON string may hold U+2028 and its like as they are
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Record(f"{path.name}, line {number}", _object(line))


def _object(line: str) -> dict | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def text_of(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} cannot be read as UTF-8 text ({error})") from None


def files(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The files that paths name, and the files in the folders among them, in order of name, less those that are empty and
    those that are hidden or in a hidden folder.

    Raises:
      BadInput: a path is missing, or a folder has no file that is not empty.
    """
    found = []
    for path in paths:
        if not (path.is_dir() or path.is_file()):
            raise BadInput(f"there is no file or folder {path}")
        inside = sorted(file for file in path.rglob("*") if _is_read(file, path)) if path.is_dir() else [path]
        if not inside:
            raise BadInput(f"there is no file in {path} that is neither empty nor hidden")
        found += inside
    return found


def check_outside(output: pathlib.Path, paths: Iterable[pathlib.Path]) -> None:
    """Raises BadInput where an output lies in a folder whose files are read: the next start would read it as well."""
    for path in paths:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise BadInput(f"--output: {output} lies in {path}, whose files are read; name a place outside")


def _is_read(file: pathlib.Path, folder: pathlib.Path) -> bool:
    is_hidden = any(name.startswith(".") for name in file.relative_to(folder).parts)
    return not is_hidden and file.is_file() and not _is_blank(file)


def _is_blank(file: pathlib.Path) -> bool:
    try:
        with open(file, "rb") as opened:
            return not any(map(bytes.strip, opened))
    except OSError:
        return False  # whoever reads it says what is wrong
