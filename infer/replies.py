"""The JSONL of replies: what a line holds, and a file of them that survives being cut off.

Each line carries ``run``, a hash of its prompt and of every option that decides the reply. A file is gone on with only
where the lines in it are those that this run would have written first.
"""

import glob
import hashlib
import json
import os
import pathlib
import re

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files.atomic import replacing

BEGINNING = re.compile(rb'\{"run": "([^"]*)"')  # of every line, whole or cut off, see `line`
LONGEST_BEGINNING = 4096  # bytes of a part that are read to tell whose it is


def line(run: str, index: int, text: str | None, reply) -> dict:
    """One reply as a JSON object; ``run`` stands first, which `Lines` relies on."""
    return {
        "run": run,
        "index": index,
        "token_ids": reply.token_ids,
        "text": text,
        "finish_reason": reply.finish_reason,
        "rounds": reply.rounds,
        "tokens_per_step": None if reply.tokens_per_step is None else round(reply.tokens_per_step, 4),
        "accepted_histogram": reply.accepted_histogram,
        "seconds": round(reply.seconds, 6),
        "seed": reply.seed,
    }


def run_of(*parts: object) -> str:
    """The hash that a line carries; ``parts`` are anything JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def shares(count: int, batch: int, parts: int) -> list[list[int]]:
    """The numbers of the prompts that each of the processes decodes: whole batches, dealt out in turn."""
    return [[number for number in range(count) if number // batch % parts == index] for index in range(parts)]


def part(path: pathlib.Path, index: int, parts: int) -> pathlib.Path:
    """The file of one process's replies, until all are there to be merged: beside the output, where that really lies."""
    real = _real(path)
    return real.with_name(f"{real.name}.{index}-of-{parts}")


def merge(path: pathlib.Path, runs: list[str], shares: list[list[int]]) -> None:
    """Adds the replies of all processes to the file, in the order of the prompts, and removes the parts. The file changes at
    once or, where a process is interrupted, not at all.

    Raises:
      BadInput: a part is not there, not whole, or of another run.
    """
    parts = [part(path, index, len(shares)) for index in range(len(shares))]
    kept = Lines(path, runs).done
    found: dict[int, bytes] = {}
    for file, share in zip(parts, shares, strict=True):
        numbers = [number for number in share if number >= kept]
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        if len(lines) != len(numbers):
            raise BadInput(f"--output: {file} holds {len(lines)} of {len(numbers)} replies; all processes should see one folder")
        for number, (prompt, line) in enumerate(zip(numbers, lines, strict=True), 1):
            if _field(line, "run") != runs[prompt]:
                raise BadInput(_FOREIGN.format(path=file, number=number))
            found[prompt] = line
    with replacing(_real(path)) as new, open(new, "wb") as file:
        file.write(path.read_bytes() if path.exists() else b"")
        file.writelines(found[number] for number in sorted(found))
        file.flush()
        os.fsync(file.fileno())
    remove_parts(path, runs)


def begun(path: pathlib.Path, runs: list[str]) -> "Lines":
    """The output as it stands, which every process reads for itself and one mends."""
    lines = Lines(path, runs, mends=processes.is_first())
    if processes.is_first() and lines.done == len(runs):
        remove_parts(path, runs)
    return lines


def remove_parts(path: pathlib.Path, runs: list[str]) -> None:
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
            begins = BEGINNING.match(opened.read(LONGEST_BEGINNING))
    except OSError:
        return None
    return begins.group(1).decode(errors="replace") if begins else None


def _real(path: pathlib.Path) -> pathlib.Path:
    """Where a file lies that may be named by a link; its lock lies there too."""
    return pathlib.Path(os.path.realpath(path))


class Lines:
    """The file of a run whose lines should carry ``runs``, in order. ``done`` of them are there already. ``mends``: whether a
    line that was cut off is taken off, which one process should do. ``failed`` of them end in an error.

    Raises:
      BadInput: the file holds anything else. It is then left as it was.
    """

    def __init__(self, path: pathlib.Path, runs: list[str], mends: bool = True):
        self.path, self.mends = path, mends
        whole, _, torn = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        for number, found in enumerate(lines, 1):
            if number > len(runs) or _field(found, "run") != runs[number - 1]:
                raise BadInput(_FOREIGN.format(path=path, number=number))
        self.done = len(lines)
        self.failed = sum(_field(found, "finish_reason") == "error" for found in lines)
        if torn:
            self._drop(torn, runs)

    def _drop(self, torn: bytes, runs: list[str]) -> None:
        """Takes a line off that was cut off while it was written; its beginning says whether it is ours."""
        start = json.dumps({"run": runs[self.done]}).encode()[:-1] if self.done < len(runs) else b"\n"
        if torn[: len(start)] != start[: len(torn)]:
            raise BadInput(_FOREIGN.format(path=self.path, number=self.done + 1))
        if not self.mends:
            return
        with open(self.path, "r+b") as file:
            file.truncate(self.path.stat().st_size - len(torn))

    def write(self, line: dict) -> None:
        """Adds a whole line, on the disk when this returns."""
        with open(self.path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


_FOREIGN = (
    "--output: {path}:{number} belongs to another run (other files of the pair, another prompt or option that decides the"
    " reply; in bfloat16 also another --batch-size or --mesh; of several processes also another number of them, or another"
    " --batch-size); name another file, or remove this one"
)


def _field(line: bytes, name: str) -> str | None:
    try:
        return json.loads(line)[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
