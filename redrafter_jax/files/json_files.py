"""JSON from outside: whatever is wrong with it is one sentence. Not here: what its fields mean (`config.py`)."""

import json
import pathlib
from typing import Any

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


def read_object(path: pathlib.Path, what: str) -> dict[str, Any]:
    """The JSON object in a file; ``what`` is the option that the file was named by.

    Raises:
      BadInput: the file cannot be read as JSON, or holds something else than an object.
    """
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{what}: {path} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise BadInput(f"{what}: {path} should hold a JSON object, not a {type(found).__name__}")
    return found
