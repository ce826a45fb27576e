"""Settings that were measured, as a command uses them: found for its pair, machine and conditions, and said in one line. Not here:
the file (`settings.py`), measuring (`tune/`)."""

import dataclasses
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from infer import pair, settings
from infer.settings import Choice, Conditions, Entry, Machine, SettingsFile
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import fingerprint


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A choice, and the folder of the head that it is of."""

    choice: Choice
    head: pathlib.Path


def choose(
    source: SettingsFile, resolved: pair.Resolved, heads: Sequence[pathlib.Path], wanted: Conditions, may_be_plain: bool = False
) -> Tuned | None:
    """The best entry for these heads on this machine; None where no file has one. One line on standard error says which, or why
    none is used.

    Args:
      may_be_plain: the command then decodes plainly where that was measured to be faster, which the line says.

    Raises:
      BadInput: a file that was asked for is missing or damaged. A damaged one that nobody asked for is not used.
    """
    machine, marks = settings.machine_of(resolved.mesh, resolved.numbers), {}

    def fingerprints() -> list[str]:
        marks.update({fingerprint.fingerprint(head): head for head in heads})
        return list(marks)

    try:
        found = find(source, machine, lambda: resolved.target_fingerprint, fingerprints, wanted)
    except BadInput as error:
        if source.is_named:
            raise
        processes.say(f"note: no settings are used: {error}", sys.stderr)
        return None
    if found is None or found.entry is None:
        processes.say(found.says, sys.stderr) if found else None
        return None
    tuned = Tuned(found.entry.choice, marks[found.entry.head])
    processes.say(f"{found.says}: {say(tuned, may_be_plain)}", sys.stderr)
    return tuned


def say(tuned: Tuned, may_be_plain: bool) -> str:
    """What a command does with a choice, for people."""
    choice = tuned.choice
    if may_be_plain and not choice.speculates:
        return f"plain decoding, drafting had {choice.speedup:.2f}x (--decoding speculative drafts)"
    return f"{choice.name} with {tuned.head.name}, {choice.speedup:.2f}x plain decoding when it was tuned"


def heads_of(target: str | None, drafter: str | None, resolved: pair.Resolved) -> list[pathlib.Path]:
    """The heads to choose among: the one that is named, or the embedded ones."""
    if target is not None or drafter is not None:
        return [resolved.drafter]
    embedded = [resolved.drafter.with_name(name) for name in pair.HEADS.values()]
    return [head for head in embedded if head.is_dir()]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a reader learns: the entry to use, if there is one, and a line that says so, or why there is none."""

    entry: Entry | None
    says: str


def find(
    source: SettingsFile, machine: Machine, target: Callable[[], str], heads: Callable[[], Sequence[str]], conditions: Conditions
) -> Found | None:
    """The entry of these heads that suits best: of each head the one of the nearest conditions, of these the fastest. None: there
    is no file, or it is empty.

    Args:
      target, heads: give fingerprints, for which all weights may have to be read: they are called only where the entries that are
        left need them, the smaller heads first.

    Raises:
      BadInput: as `SettingsFile.load`.
    """
    entries = source.load()
    if not entries:
        return None
    if not _on(machine, entries):
        return _nothing(source, entries, machine)
    names = heads()
    entries = [entry for entry in entries if entry.head in names]
    if _on(machine, entries):
        name = target()
        entries = [entry for entry in entries if entry.target == name]
    here = _on(machine, entries)
    if not here:
        return _nothing(source, entries, machine)
    nearest = [min((e for e in here if e.head == head), key=lambda e: _distance(e.conditions, conditions), default=None)
               for head in names]  # fmt: skip
    best = max(filter(None, nearest), key=lambda entry: entry.choice.tokens_per_second)
    return Found(best, f"settings of {_shown(source.path)}{_nearest(best.conditions, conditions)}")


def _on(machine: Machine, entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.machine == machine]


def _nothing(source: SettingsFile, ours: Sequence[Entry], machine: Machine) -> Found:
    return Found(None, f"note: {_shown(source.path)} is not used: {_why_not(ours, machine)}")


def _why_not(ours: Sequence[Entry], machine: Machine) -> str:
    if not ours:
        return f"it has no entry for this pair; {settings.TUNE} makes one"
    last = ours[-1].machine
    name = next(field.name for field in dataclasses.fields(last) if getattr(last, field.name) != getattr(machine, field.name))
    subject = "version of jax" if name == "jax" else name
    return f"it is for the {subject} {getattr(last, name)}, and this is {getattr(machine, name)}; {settings.TUNE} measures again"


def _distance(one: Conditions, other: Conditions) -> tuple[float, float, float]:
    def apart(a: int, b: int) -> float:
        return abs(math.log2(a / b)) if b else 0.0

    return apart(one.batch, other.batch), apart(one.context, other.context), abs(one.temperature - other.temperature)


def _nearest(tuned: Conditions, wanted: Conditions) -> str:
    """What a reader says about an entry of other conditions. A context is rarely the same, and is named where it is twice as
    long or half."""
    parts = [f"batch {tuned.batch}, not {wanted.batch}"] if tuned.batch != wanted.batch else []
    if _distance(tuned, wanted)[1] >= 1.0:
        parts.append(f"context {tuned.context}, not {wanted.context}")
    if tuned.temperature != wanted.temperature:
        parts.append(f"temperature {tuned.temperature:g}, not {wanted.temperature:g}")
    return f" (the nearest that was tuned: {'; '.join(parts)})" if parts else ""


def _shown(path: pathlib.Path) -> str:
    """The path as short as a person would write it."""
    home = os.path.expanduser("~")
    return str(path).replace(home, "~", 1) if str(path).startswith(home + os.sep) else str(path)
