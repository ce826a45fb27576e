"""What a run has measured so far, kept in the file of settings, so that an interrupted run goes on from there."""

import copy
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from infer import settings
from infer.settings import Entry

MAX_RUNS = 4  # interrupted runs whose measurements are kept; the oldest go first


class Kept:
    """The file of settings while a run has its lock. ``run``: all that its measurements depend on, as JSON can hold it."""

    def __init__(self, path: pathlib.Path, run: Any):
        self.path = path
        self.content: dict[str, Any] = settings.read(path, "--output") if path.exists() and path.stat().st_size else {"entries": []}
        settings.entries_of(self.content, path, "--output")  # a damaged one is noticed before anything is measured
        self.run = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
        self.found: dict[str, Any] = self.content.get("measured", {}).get(self.run, {})
        self.is_resumed = bool(self.found)
        self.where = ""

    def at(self, where: str) -> "Kept":
        """The same, for measurements of another place, such as a mesh, which have the same names there."""
        other = copy.copy(self)  # of the same measurements
        other.where = f"{where} "
        return other

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """A measurement, made now unless it is there already; JSON can hold it."""
        if self.where + name not in self.found:
            self.put(name, measure())
        return self.found[self.where + name]

    def peek(self, name: str, otherwise: Any) -> Any:
        """A measurement, or ``otherwise`` where it is not there."""
        return self.found.get(self.where + name, otherwise)

    def put(self, name: str, value: Any) -> None:
        """Keeps a measurement, on the disk at once."""
        self.found[self.where + name] = value
        others = {run: found for run, found in self.content.get("measured", {}).items() if run != self.run}
        self._write({**dict(list(others.items())[1 - MAX_RUNS :]), self.run: self.found})

    def finish(self, entries: list[Entry]) -> None:
        """Writes the choices, and lets go of what they were made from."""
        self.content = settings.add(self.content, self.path, "--output", entries)
        self._write({run: found for run, found in self.content.get("measured", {}).items() if run != self.run})

    def _write(self, measured: dict[str, Any]) -> None:
        self.content["measured"] = measured
        self.content.pop("written_by", None)
        settings.write(self.path, self.content)
