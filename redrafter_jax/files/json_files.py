"""JSON from outside: whatever is wrong with it is one sentence. Not here: what its fields mean (`config.py`)."""

import json
from typing import Any

from etils import epath

from redrafter_jax.errors import BadInput


def parse(text: str) -> Any:
    """What ``text`` holds.

    Raises:
      ValueError: it is not JSON, or is nested more deeply than Python can read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: epath.PathLike, what: str) -> dict[str, Any]:
    """The JSON object in a file; ``what`` is the option that the file was named by.

    Raises:
      BadInput: the file cannot be read as JSON, or holds something else than an object.
    """
    try:
        found = parse(epath.Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{what}: {path} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise BadInput(f"{what}: {path} should hold a JSON object, not a {type(found).__name__}")
    return found


def find_object(file: epath.PathLike) -> dict[str, Any] | None:
    """The JSON object in a file, which may be in a bucket; None if there is no file, or no JSON object in it."""
    try:
        return read_object(file, "")
    except BadInput:
        return None
