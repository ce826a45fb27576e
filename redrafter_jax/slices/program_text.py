"""Reads the text of a compiled program: cycles by stage, traffic between chips, gathered logits, copies in loops.

The compiler writes the cycles that it expects beside each operation (`estimated_cycles`). Their sum over the program,
with loops multiplied by their trip counts, is the time of the operations in sequence. Traffic between chips and waits
for prefetches have no such figure. An update in place has none where it stands alone; it counts as the cheapest
operation. Not here: what the figures mean for a user.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

STAGES = ("noise", "draft", "pack", "verify", "commit")
OTHER = "other"
WANTED = '/wanted/cond"'  # how a branch for what was asked for ends its name; all others are for rare cases
MIN_OP_CYCLES = 1824  # that the compiler expects of the smallest operation
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_ON_CHIP = "S(1)"  # of a layout: the array is not in HBM
BYTES_PER_ELEMENT = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f8e4m3fn": 1,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(?:(ENTRY) )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.+?) ([a-z][a-z-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"\b(?:to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BODY = re.compile(r"\bbody=%?([\w.-]+)")
_FUSED = re.compile(r"\bcalls=%?([\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+[a-z]*)?)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Operations between chips in one execution, and the bytes of their results on a chip.

    Attributes:
      sent: the least bytes that each of many chips sends: for a sum its result twice (parts, then sums), else once.
    """

    count: int
    bytes: int
    sent: int


@dataclasses.dataclass(frozen=True)
class ProgramText:
    """A compiled program's text, split into its computations."""

    computations: dict[str, list[str]]
    entry: str

    def cycles(self) -> dict[str, float]:
        """Expected cycles by stage (the named scopes of a round); operations of no stage are `other`."""
        totals: dict[str, float] = collections.defaultdict(float)
        for line, times, stage in self._executed(self.entry, 1, OTHER):
            found = _CYCLES.search(line)
            if found:
                totals[stage] += times * int(found[1])
            elif " dynamic-update-slice(" in line:
                totals[stage] += times * MIN_OP_CYCLES
        return dict(totals)

    def traffic(self) -> Traffic:
        """The operations between chips in one execution."""
        count = size = sent = 0
        for line, times, _ in self._executed(self.entry, 1, OTHER):
            found = _INSTRUCTION.match(line)
            if not found:
                continue
            kind = found[3].removesuffix("-start")
            if found[3] in COLLECTIVES:  # one operation may send several arrays
                result = sum(_sizes(found[2]))
            elif kind in COLLECTIVES or found[1].startswith("async-collective-start"):
                result = max(_sizes(found[2]), default=0)  # it lists what is sent and what is received
            else:
                continue
            count += times
            size += times * result
            sent += times * result * (2 if kind == "all-reduce" else 1)
        return Traffic(count, size, sent)

    def gathers_of(self, elements: int) -> list[str]:
        """The all-gathers whose result has at least ``elements`` elements."""
        return [
            line.strip()
            for lines in self.computations.values()
            for line in lines
            if (found := _INSTRUCTION.match(line)) and found[3].removesuffix("-start") == "all-gather"
            if max((math.prod(shape) for _, shape in _arrays(found[2])), default=0) >= elements
        ]

    def copies_in_loops(self, elements: int) -> list[str]:
        """The copies and transposes inside loops whose result has ``elements`` elements, in any order of axes. A move
        between a TPU's HBM and its on-chip memory (`S(1)` in a layout) does not count."""
        return [
            line.strip()
            for name in self._of_loops()
            for line in self.computations.get(name, ())
            if (found := _INSTRUCTION.match(line)) and found[3] in ("copy", "copy-start", "transpose")
            if any(math.prod(shape) == elements for _, shape in _arrays(found[2]))
            if not (found[3] == "copy-start" and found[2].count(_ON_CHIP) == 1)
        ]

    def arrays_of(self, elements: set[int], width: int) -> list[str]:
        """The operations whose result is an array, of one of these numbers of elements and of more than ``width`` bytes each, that
        is there in memory: what happens inside a fused operation is not."""
        fused = {name for lines in self.computations.values() for line in lines for name in _FUSED.findall(line)}
        return [
            line.strip()
            for name, lines in self.computations.items()
            if name not in fused
            for line in lines
            if (found := _INSTRUCTION.match(line))
            if any(BYTES_PER_ELEMENT[kind] > width and math.prod(shape) in elements for kind, shape in _arrays(found[2]))
        ]

    def _of_loops(self) -> set[str]:
        """The bodies of all loops, and the computations that they call."""
        bodies = {name for lines in self.computations.values() for line in lines for name in _BODY.findall(line)}
        found, left = set(), list(bodies)
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += [called for line in self.computations.get(name, ()) for called in _called(line) + _FUSED.findall(line)]
        return found

    def _executed(self, name: str, times: int, stage: str) -> Iterator[tuple[str, int, str]]:
        for line in self.computations.get(name, ()):
            found = _INSTRUCTION.match(line)
            if not found:
                continue
            here = _stage(line) or stage
            yield line, times, here
            inside = times * self._trips(line) if found[3] == "while" else times
            if found[3] == "conditional":  # a fast branch, and a slow one
                taken = max if WANTED in line else min
                yield from self._executed(taken(_called(line), key=self._cycles_of), inside, here)
            elif found[3] in ("while", "call"):
                for called in _called(line):
                    yield from self._executed(called, inside, here)

    def _cycles_of(self, name: str) -> float:
        return sum(times * int(found[1]) for line, times, _ in self._executed(name, 1, OTHER) if (found := _CYCLES.search(line)))

    def _trips(self, line: str) -> int:
        """How often a loop runs: the only integer that its condition compares with; 1 where there is not exactly
        one."""
        condition = re.search(r"condition=%?([\w.-]+)", line)
        lines = self.computations.get(condition[1], ()) if condition else ()
        bounds = {int(n) for text in lines for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)}
        return bounds.pop() if len(bounds) == 1 else 1


def parse(text: str) -> ProgramText:
    """Parses the text that `jax.stages.Compiled.as_text` returns."""
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            current = start[2]
            computations[current] = []
            entry = current if start[1] else entry
        elif current and line.startswith("  "):
            computations[current].append(line)
    return ProgramText(computations, entry)


def _stage(line: str) -> str | None:
    name = _OP_NAME.search(line)
    parts = name[1].split("/") if name else ()
    return next((stage for stage in STAGES if stage in parts), None)


def _called(line: str) -> list[str]:
    branches = _BRANCHES.search(line)
    names = [name.strip(" %") for name in branches[1].split(",")] if branches else []
    return names + _CALLED.findall(line)


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
    return [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in _ARRAY.findall(shape) if kind in BYTES_PER_ELEMENT]


def _sizes(shape: str) -> list[int]:
    return [BYTES_PER_ELEMENT[kind] * math.prod(dims) for kind, dims in _arrays(shape)]
