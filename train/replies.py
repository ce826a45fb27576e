"""The file of replies that a target wrote: how far it has come, what it was made with, and whose it is.

Beside it lies a file of settings, all that decides the replies. Not here: how they are made (`distill.py`).
"""

import json
import os
import pathlib

from redrafter_jax.errors import BadInput
from train import configurations


def done(file: pathlib.Path, wanted: dict[str, str]) -> int:
    """How many replies the file holds, made with the settings ``wanted``; a line that was cut off is none.

    Raises:
      BadInput: it is not the output of such a run, or cannot be written.
    """
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise BadInput(f"--output: {file} cannot be read ({error.strerror})") from None
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise BadInput(f"--output: {file} cannot be written")
    if content:
        _check_settings(file, wanted)
    return content.count(b"\n")


def claim(file: pathlib.Path, wanted: dict[str, str]) -> None:
    """Writes down what the replies are made with, whole or not at all, and removes a line of them that was cut off.

    Raises:
      BadInput: it cannot be written.
    """
    settings = settings_file(file)
    draft = settings.with_name(settings.name + ".draft")
    try:
        draft.write_text(json.dumps(wanted, indent=1) + "\n")
        draft.replace(settings)
        with open(file, "ab+") as opened:
            opened.seek(0)
            opened.truncate(opened.read().rfind(b"\n") + 1)
    except OSError as error:
        raise BadInput(f"--output: {file} cannot be written ({error.strerror})") from None


def add(opened, lines: list[dict]) -> None:
    """Writes lines so that they outlive this process."""
    opened.write("".join(json.dumps(line) + "\n" for line in lines))
    opened.flush()
    os.fsync(opened.fileno())


def settings_file(file: pathlib.Path) -> pathlib.Path:
    """Where what the replies were made with is written down: beside them."""
    return file.with_name(f"{file.name}.settings.json")


def _check_settings(file: pathlib.Path, wanted: dict[str, str]) -> None:
    settings = settings_file(file)
    if not settings.exists():
        raise BadInput(f"--output: {file} exists and is not of this command; give another file")
    before = configurations.json_object(settings)
    if before is None:
        raise BadInput(f"--output: {settings}, the settings that {file} was made with, is broken; give another file")
    if before != wanted:
        names = ", ".join(f"{name} was {before.get(name)}" for name in wanted if before.get(name) != wanted[name])
        raise BadInput(f"--output: {file} belongs to another run ({names}); give another file")
