"""The file of chosen settings: `infer.tune` writes it, `infer.generate` and `infer.benchmark` read it and say that they do.

An entry is a choice that was measured, with all that it depends on: device, mesh, versions, number format, target and head by
their fingerprints, batch, context, temperature. Batch, context and temperature may differ from what a reader has: the
nearest entry is taken, and said. Everything else must be the same. Not here: measuring (`infer/tune/`), which entry a reader
takes (`tuned.py`).
"""

import dataclasses
import json
import math
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import atomic, json_files
from redrafter_jax.version import __version__

NONE = "none"  # a --settings of this name reads nothing; a file that is called so is ./none
WRITER = "redrafter_jax infer.tune"
SIGNATURE = f'{{ "written_by": "{WRITER}"'
TUNE = "python -m infer.tune"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What must be the same for an entry to be used, but for the pair. device: kind and, of a CPU, its cores; mesh: D x M; dtype:
    what is computed in and, where the target is quantised, the format of its matrices."""

    device: str
    mesh: str
    dtype: str
    version: str
    jax: str


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What may differ: rows decoded together, tokens of the longest prompt and reply together
    (a reader's 0: not known), and the temperature."""

    batch: int
    context: int
    temperature: float = 0.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """The fastest shape of a head that was measured. nodes: the node budget, 0 for all; speedup: over plain decoding, in the same
    measurement; tokens_per_step: the +1 counted."""

    width: int
    length: int
    nodes: int
    draft_top_k: int
    speedup: float
    tokens_per_step: float
    tokens_per_second: float
    plain_tokens_per_second: float

    @property
    def speculates(self) -> bool:
        """Whether drafting was faster than plain decoding."""
        return self.speedup > 1.0

    @property
    def name(self) -> str:
        """W x L, and what of it differs from the usual."""
        return f"{self.width}x{self.length}" + (f", {self.nodes} nodes at most" if self.nodes else "")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One measured choice. target, head: fingerprints; head_name: the head's folder, for people."""

    machine: Machine
    target: str
    head: str
    head_name: str
    conditions: Conditions
    choice: Choice

    @property
    def identity(self) -> tuple:
        """What a later measurement replaces."""
        return self.machine, self.target, self.head, self.conditions


def machine_of(mesh: Sequence[int], dtype: str) -> Machine:
    """This process's machine, with this mesh and number format."""
    import jax

    kind = jax.devices()[0].device_kind
    return Machine(_name_cpu() if kind == "cpu" else kind, "x".join(map(str, mesh)), dtype, __version__, jax.__version__)


def _name_cpu() -> str:
    """Of a CPU JAX says no kind: its model, where Linux tells it, and how many cores this process may use."""
    about = pathlib.Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", about.read_text(), re.MULTILINE) if about.is_file() else []
    return f"CPU {(models or [platform.machine()])[0]}, {processes.count_cores()} cores"


def is_ours(beginning: bytes) -> bool:
    """Whether a file that begins so was written by `write`."""
    return b" ".join(beginning.split()).startswith(SIGNATURE.encode())


def read(path: pathlib.Path, what: str) -> dict[str, Any]:
    """The file as an object: `entries`, and under `measured` what runs that are not finished have measured.

    Raises:
      BadInput: it is no file of settings.
    """
    found = json_files.read_object(path, what)
    if found.get("written_by") != WRITER or not isinstance(found.get("entries"), list):
        raise BadInput(f"{what}: {path} is no file of settings; {TUNE} writes one")
    return found


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Replaces the file in one step. The writer has the file's lock."""
    with atomic.replacing(path) as new:
        new.write_text(json.dumps({"written_by": WRITER, **content}, indent=1) + "\n")


def entries_of(content: Mapping[str, Any], path: pathlib.Path, what: str) -> list[Entry]:
    """The entries of a file.

    Raises:
      BadInput: one of them is damaged.
    """
    try:
        return [_entry(**fields) for fields in content["entries"]]
    except (TypeError, ValueError, KeyError) as error:
        raise BadInput(f"{what}: {path} has a damaged entry ({error}); remove the file and run {TUNE} again") from None


def _entry(machine: dict, conditions: dict, choice: dict, **names: str) -> Entry:
    return Entry(machine=Machine(**machine), conditions=Conditions(**conditions), choice=_checked(choice), **names)


def _checked(choice: dict) -> Choice:
    made = Choice(**choice)
    sizes = (made.width, made.length, made.nodes, made.draft_top_k)
    if not all(isinstance(size, int) and size >= 0 for size in sizes) or not made.width * made.length:
        raise ValueError(f"a shape of {made.name}")
    if not all(isinstance(figure, int | float) and math.isfinite(figure) for figure in dataclasses.astuple(made)):
        raise ValueError("a figure that is no number")
    return made


def add(content: dict[str, Any], path: pathlib.Path, what: str, new: Sequence[Entry]) -> dict[str, Any]:
    """The content with these entries, in place of earlier ones for the same."""
    replaced = {entry.identity for entry in new}
    kept = [entry for entry in entries_of(content, path, what) if entry.identity not in replaced]
    return {**content, "entries": [dataclasses.asdict(entry) for entry in (*kept, *new)]}


@dataclasses.dataclass(frozen=True)
class SettingsFile:
    """The file that a command reads settings from. path None: none is read; is_named: somebody asked for this file."""

    path: pathlib.Path | None
    is_named: bool = False

    def load(self) -> list[Entry]:
        """Its entries, none where there is no file that nobody asked for.

        Raises:
          BadInput: the file is damaged, or was asked for and is missing.
        """
        if self.path is None or not (self.is_named or os.path.isfile(self.path)):
            return []
        if not os.path.isfile(self.path):
            raise BadInput(f"--settings: there is no file {self.path}; {TUNE} --output writes one")
        what = "--settings" if self.is_named else "the default --settings"
        return entries_of(read(self.path, what), self.path, what)


def default_file() -> pathlib.Path:
    """Where the settings are by default: in the user's folder of configurations, as the XDG Base Directory Specification says. What
    was measured is not lost with a cache that somebody removes."""
    named = pathlib.Path(os.environ.get("XDG_CONFIG_HOME", ""))
    folder = named if named.is_absolute() else pathlib.Path("~/.config").expanduser()
    return folder / "redrafter_jax" / "settings.json"


def source_of(option: str | None) -> SettingsFile:
    """Of a `--settings` option: None is the default file, which need not exist; `NONE` is no file."""
    if option == NONE:
        return SettingsFile(None)
    return SettingsFile(default_file()) if option is None else SettingsFile(pathlib.Path(option), True)
