"""The file of replies that a target wrote: which prompts are done, what they were done with, and whose the file is.

Beside it lies a file of settings, all that decides the replies. Not here: how they are made (`distill.py`).
"""

import json
import os
import pathlib

from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, fingerprint
from redrafter_jax.files.atomic import replacing

FINGERPRINTS = ("prompts", "target", "drafter")  # settings that are hashes of files, whatever these are called
KNOWN_BY = "prompts"  # every file of settings holds it


def done(file: pathlib.Path, wanted: dict, numbers: set[int]) -> set[int]:
    """The numbers of the prompts whose replies the file holds, in whatever order, made with the settings ``wanted``. A
    line that was cut off is none.

    Args:
      numbers: of all prompts that the file should hold in the end.

    Raises:
      BadInput: it is not the output of such a run, a prompt is answered twice, or the file cannot be written.
    """
    claims.check_file(file, "--output")
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise BadInput(f"--output: {file} cannot be read ({error.strerror})") from None
    _check_settings(file, wanted, is_begun=bool(content))
    lines: dict[int, int] = {}
    for line, found in enumerate(content.split(b"\n")[:-1], 1):
        number = _number(found)
        if number not in numbers:
            raise BadInput(f"--output: {file}:{line} is no reply to a prompt of this run; give another file")
        if number in lines:
            both = f"{file}:{line} answers prompt {number}, as line {lines[number]} does"
            raise BadInput(f"--output: {both}; remove one of them, or the file")
        lines[number] = line
    return set(lines)


def _number(line: bytes) -> int | None:
    try:
        number = json.loads(line)["number"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if type(number) is int else None


def claim(file: pathlib.Path, wanted: dict) -> None:
    """Writes down what the replies are made with, whole or not at all, and removes a line of them that was cut off.

    Raises:
      BadInput: it cannot be written.
    """
    settings = settings_file(file)
    try:
        with replacing(settings) as new:
            new.write_text(json.dumps(wanted, indent=1) + "\n")
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


def _check_settings(file: pathlib.Path, wanted: dict, is_begun: bool) -> None:
    """``is_begun``: the file holds something, so its settings have to be there and the same."""
    settings = settings_file(file)
    if not settings.exists():
        if is_begun:
            raise BadInput(f"--output: {file} exists and is not of this command; give another file")
        return
    before = claims.json_object(settings)
    if before is None or KNOWN_BY not in before:
        what = "broken" if is_begun else "not of this command"
        raise BadInput(f"--output: {settings}, where the settings of {file} should be, is {what}; give another file")
    if is_begun and before != wanted:
        names = sorted(name for name in {*before, *wanted} if before.get(name) != wanted.get(name))
        differences = "; ".join(_difference(name, before.get(name), wanted.get(name)) for name in names)
        raise BadInput(f"--output: {file} belongs to another run ({differences}); give another file")


def _difference(name: str, was: object, now: object) -> str:
    if name in ("target", "drafter") and was is not None and not fingerprint.is_current(was):
        return f"it was begun by an earlier version, which did not record all bytes of the {name}"
    if name in FINGERPRINTS:
        return f"the files of the {name} differ"
    return f"{name} was {json.dumps(was)} and is {json.dumps(now)}"
