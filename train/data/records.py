"""Files -> JSON records. Not here: which files paths name (`infer/text_files.py`), what records mean (`examples.py`)."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator

from infer import text_files
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
    text = text_files.read_text(path)
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


def check_outside(output: pathlib.Path, paths: Iterable[pathlib.Path]) -> None:
    """Raises BadInput where an output lies in a folder whose files are read: the next start would read it as well."""
    for path in paths:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise BadInput(f"--output: {output} lies in {path}, whose files are read; name a place outside")
