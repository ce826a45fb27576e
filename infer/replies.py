"""The JSON Lines file that `infer.generate --output` and `train.distill --output` write, and that a run resumes.

A line names its prompt by one field: `run`, a hash of the prompt and of every option that decides the reply, or `number`, where
all that decides the replies stands in a file of settings beside them. Lines may come in any order. A file with anything else in
it belongs to another run and stays as it is. Not here: parts of several processes (`generate/parts.py`).
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

from redrafter_jax.decode.reply import Reply
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, fingerprint, json_files
from redrafter_jax.files.atomic import replacing

FINGERPRINTS = ("prompts", "target", "drafter")  # settings that are hashes of files, whatever these are called
KNOWN_BY = "prompts"  # every file of settings holds it
OF_ANOTHER_RUN = (
    "--output: {path}:{number} belongs to another run (other files of the pair, another prompt or option that decides the"
    " reply; or infer.tune has found other settings since, which --settings none, or FILE with those of then, takes back; in"
    " bfloat16 also another --batch-size or --mesh; of several processes also another number of them, or another --batch-size);"
    " name another file, or remove this one"
)
NO_REPLY = "--output: {path}:{number} is no reply to a prompt of this run; give another file"


def line_of(run: str, index: int, text: str | None, reply: Reply) -> dict:
    """One reply of `infer.generate` as a JSON object; ``run`` stands first, by which a line that was cut off is known."""
    line = {
        "run": run,
        "index": index,
        "sample": reply.sample,
        "token_ids": reply.token_ids,
        "text": text,
        "finish_reason": reply.finish_reason,
        "stop_reason": reply.stop_reason,
        "rounds": reply.rounds,
        "tokens_per_step": None if reply.tokens_per_step is None else round(reply.tokens_per_step, 4),
        "accepted_histogram": reply.accepted_histogram,
        "metrics": reply.metrics,
        "seconds": round(reply.seconds, 6),
        "seed": reply.seed,
    }
    if reply.logprobs is None:
        return line
    rounded = [{token: round(value, 6) for token, value in place.items()} for place in reply.top_logprobs]
    return line | {"logprobs": [round(value, 6) for value in reply.logprobs], "top_logprobs": rounded}


def run_of(*parts: object) -> str:
    """The hash that a line carries; ``parts`` are anything JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Owner:
    """How a run recognises its lines. field: the field of a line that names its prompt; prompts: from name to the prompt's
    number; settings: all that decides the replies, kept in a file beside them, or None where the names are hashes of it.
    """

    field: str
    prompts: Mapping[str | int, int]
    settings: dict | None = None

    @classmethod
    def of_runs(cls, runs: Mapping[int, str]) -> "Owner":
        """Lines that carry ``runs``, a hash for the number of each prompt."""
        return cls("run", {run: number for number, run in runs.items()})

    @classmethod
    def of_settings(cls, settings: dict, numbers: Iterable[int]) -> "Owner":
        """Lines that carry the numbers of their prompts, beside the settings that they were all made with."""
        return cls("number", {number: number for number in numbers}, settings)

    @property
    def foreign(self) -> str:
        return OF_ANOTHER_RUN if self.settings is None else NO_REPLY

    def prompt_of(self, line: dict) -> int | None:
        """The number of the prompt that a line replies to; None where it is no line of this run."""
        name = line.get(self.field)
        return self.prompts.get(name) if type(name) in (str, int) else None

    def begins(self, torn: bytes, missing: set[int]) -> bool:
        """Whether an unfinished line may be the beginning of a reply to one of the ``missing`` prompts."""
        if self.settings is not None:
            return True
        starts = (json.dumps({self.field: name}).encode()[:-1] for name, number in self.prompts.items() if number in missing)
        return any(torn[: len(start)] == start[: len(torn)] for start in starts)


class ReplyFile:
    """The replies of a run that are on the disk. ``done``: the numbers of their prompts; ``failed``: how many end in an
    error. Making one only reads; `begin` or the first `write` truncates a line that was cut off.

    Raises:
      BadInput: the file holds anything else, answers a prompt twice, or cannot be read or written.
    """

    def __init__(self, path: pathlib.Path, owner: Owner):
        claims.check_file(path, "--output")
        self.path, self.owner, self.is_begun = path, owner, False
        content = _read(path)
        self._check_settings(is_begun=bool(content))
        *lines, torn = content.split(b"\n")
        self.places: dict[int, int] = {}
        self.failed = 0
        for place, line in enumerate(lines, 1):
            self._count(_parse(line), place)
        if torn and not owner.begins(torn, set(owner.prompts.values()) - self.done):
            raise BadInput(owner.foreign.format(path=path, number=len(lines) + 1))

    @property
    def done(self) -> set[int]:
        return set(self.places)

    def lines(self) -> dict[int, dict]:
        """The replies, by the numbers of their prompts."""
        found = map(_parse, _read(self.path).split(b"\n"))
        named = ((self.owner.prompt_of(line), line) for line in found)
        return {number: line for number, line in named if number is not None}

    def _count(self, line: dict, place: int) -> None:
        prompt = self.owner.prompt_of(line)
        if prompt is None:
            raise BadInput(self.owner.foreign.format(path=self.path, number=place))
        if prompt in self.places:
            both = f"{self.path}:{place} answers prompt {prompt}, as line {self.places[prompt]} does"
            raise BadInput(f"--output: {both}; remove one of them, or the file")
        self.places[prompt] = place
        self.failed += line.get("finish_reason") == "error"

    def begin(self) -> None:
        """Writes the settings, all of them or none, and truncates a line that was cut off; one process of a run does so.

        Raises:
          BadInput: the file cannot be written.
        """
        self.is_begun = True
        try:
            if self.owner.settings is not None:
                with replacing(settings_file(self.path)) as new:
                    new.write_text(json.dumps(self.owner.settings, indent=1) + "\n")
            with open(self.path, "ab+") as opened:
                opened.seek(0)
                opened.truncate(opened.read().rfind(b"\n") + 1)
        except OSError as error:
            raise BadInput(f"--output: {self.path} cannot be written ({error.strerror})") from None

    def write(self, lines: Iterable[dict]) -> None:
        """Adds lines, which are on the disk when this returns."""
        if not self.is_begun:
            self.begin()
        with open(self.path, "ab") as file:
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def sort(self) -> None:
        """Puts the lines in the order of their prompts, all of them or none, so that a finished file is the same whichever reply
        was complete first."""
        lines = _read(self.path).splitlines(keepends=True)
        ordered = sorted(lines, key=lambda line: self.owner.prompt_of(_parse(line)))
        if ordered != lines:
            with replacing(self.path) as new:
                new.write_bytes(b"".join(ordered))

    def _check_settings(self, is_begun: bool) -> None:
        """``is_begun``: the file holds something, so its settings have to be there and the same."""
        wanted, beside = self.owner.settings, settings_file(self.path)
        if wanted is None:
            return
        if not beside.exists():
            if is_begun:
                raise BadInput(f"--output: {self.path} exists and is not of this command; give another file")
            return
        before = json_files.find_object(beside)
        if before is None or KNOWN_BY not in before:
            what = "broken" if is_begun else "not of this command"
            raise BadInput(f"--output: {beside}, where the settings of {self.path} should be, is {what}; give another file")
        if is_begun and before != wanted:
            names = sorted(name for name in {*before, *wanted} if before.get(name) != wanted.get(name))
            differences = "; ".join(_difference(name, before.get(name), wanted.get(name)) for name in names)
            raise BadInput(f"--output: {self.path} belongs to another run ({differences}); give another file")


def settings_file(file: pathlib.Path) -> pathlib.Path:
    """The file of settings of a file of replies, in the same folder."""
    return file.with_name(f"{file.name}.settings.json")


def _difference(name: str, was: object, now: object) -> str:
    if name in ("target", "drafter") and was is not None and not fingerprint.is_current(was):
        return f"it was begun by an earlier version, which did not record all bytes of the {name}"
    if name in FINGERPRINTS:
        return f"the files of the {name} differ"
    return f"{name} was {json.dumps(was)} and is {json.dumps(now)}"


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BadInput(f"--output: {path} cannot be read ({error.strerror})") from None


def _parse(line: bytes) -> dict:
    """A line's JSON object; empty where it holds none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
