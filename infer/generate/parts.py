"""The replies of several processes: each writes a part beside the output; the first merges the parts."""

import glob
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from infer.replies import Owner, ReplyFile
from redrafter_jax.errors import BadInput
from redrafter_jax.files.atomic import replacing

LINE_BEGINS = re.compile(rb'\{"run": "([^"]*)"')  # of every line, whole or cut off (`replies.line_of`)
BEGINNING_BYTES = 4096  # of a part, that are read to tell whose it is


def part(path: pathlib.Path, index: int, parts: int) -> pathlib.Path:
    """The file of one process's replies until they are merged: in the folder of the output's real path."""
    real = _real(path)
    return real.with_name(f"{real.name}.{index}-of-{parts}")


def runs_of(runs: Sequence[str], numbers: Sequence[int]) -> dict[int, str]:
    """The hashes of some of the prompts, by number."""
    return {number: runs[number] for number in numbers}


def merge(path: pathlib.Path, runs: Sequence[str], shares: Sequence[Sequence[int]]) -> None:
    """Adds the replies of all processes to the file, in the order of the prompts, and removes the parts. The file changes at
    once or, where a process is interrupted, not at all.

    Raises:
      BadInput: a part is missing, lacks replies, or belongs to another run.
    """
    done = ReplyFile(path, Owner.of_runs(dict(enumerate(runs)))).done
    found: dict[int, bytes] = {}
    for index, share in enumerate(shares):
        missing = [number for number in share if number not in done]
        found |= _lines_of(part(path, index, len(shares)), runs_of(runs, missing))
    with replacing(_real(path)) as new, open(new, "wb") as file:
        before = path.read_bytes() if path.exists() else b""
        file.write(before[: before.rfind(b"\n") + 1])
        file.writelines(found[number] for number in sorted(found))
        file.flush()
        os.fsync(file.fileno())
    remove_parts(path, runs)


def _lines_of(file: pathlib.Path, runs: Mapping[int, str]) -> dict[int, bytes]:
    """The lines of a part, which has one for each of these prompts."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    if len(lines) != len(runs):
        raise BadInput(f"--output: {file} holds {len(lines)} of {len(runs)} replies; all processes should see one folder")
    places = ReplyFile(file, Owner.of_runs(runs)).places
    return {number: lines[place - 1] for number, place in places.items()}


def remove_parts(path: pathlib.Path, runs: Sequence[str]) -> None:
    """Removes the parts of this run, also those of an earlier start with another number of processes. Any other file of
    such a name, which is known by its first line, is kept."""
    real = _real(path)
    for found in real.parent.glob(f"{glob.escape(real.name)}.*-of-*"):
        if re.fullmatch(r"\d+-of-\d+", found.name.removeprefix(f"{real.name}.")) and _first_run(found) in runs:
            found.unlink(missing_ok=True)


def _first_run(file: pathlib.Path) -> str | None:
    """The run of a file's first line; None where there is none or the file cannot be read."""
    if not file.is_file():
        return None
    try:
        with open(file, "rb") as opened:
            begins = LINE_BEGINS.match(opened.read(BEGINNING_BYTES))
    except OSError:
        return None
    return begins.group(1).decode(errors="replace") if begins else None


def _real(path: pathlib.Path) -> pathlib.Path:
    """The real path of a file that may be named by a link; its lock is there too."""
    return pathlib.Path(os.path.realpath(path))
