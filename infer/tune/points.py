"""The settings that `infer.tune` chooses among: shapes and budgets, what they should give, and which of them are measured. Nothing
here starts JAX."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

MAX_CONTENDERS = 5
MAX_BUDGETS = 4  # node budgets of one shape that are tried, besides all of its nodes


@dataclasses.dataclass(frozen=True)
class Point:
    """A head and the shape of its search. budget: nodes at most, 0 for all."""

    head: str
    width: int
    length: int
    budget: int
    draft_top_k: int

    @property
    def nodes(self) -> int:
        """Nodes of a round, the root included."""
        return self.budget or 1 + self.width * self.length

    @property
    def shape(self) -> str:
        """W x L."""
        return f"{self.width}x{self.length}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a point should give at one batch. tokens_per_step: exact for these texts, the +1 counted; gain: plain rounds over its
    rounds, over whole batches; seconds: of a round; speedup: over plain decoding."""

    point: Point
    tokens_per_step: float
    gain: float
    seconds: float
    speedup: float


def grid(beams: Sequence[tuple[int, int]], heads: Sequence[str], nodes: Sequence[int], cut: int) -> Iterator[Point]:
    """Every shape of every head, with all its nodes and with some budgets below that; a single beam has one tree alone."""
    for head in heads:
        for width, length in beams:
            yield Point(head, width, length, 0, cut)
            if width > 1:
                budgets = [count for count in nodes if length + 1 <= count < 1 + width * length]
                yield from (Point(head, width, length, count, cut) for count in budgets[-MAX_BUDGETS:])


def shortlist(estimates: Sequence[Estimate], most: int = MAX_CONTENDERS) -> list[Estimate]:
    """The best estimates, at most one budget of a shape besides the best, and of every head at least its best."""
    ranked = sorted(estimates, key=lambda each: -each.speedup)
    heads = {each.point.head: each for each in reversed(ranked)}  # the best of each
    chosen: list[Estimate] = []
    for each in ranked:
        if len(chosen) == most:
            break
        alike = [other for other in chosen if (other.point.head, other.point.shape) == (each.point.head, each.point.shape)]
        chosen += [] if len(alike) > 1 else [each]
    return chosen + [best for best in heads.values() if best not in chosen]


def frontier(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Those that no other beats in both: fewer seconds per round, fewer rounds. Cheapest first."""
    kept: list[Estimate] = []
    for each in sorted(estimates, key=lambda each: (each.seconds, -each.gain)):
        if not kept or each.gain > kept[-1].gain:
            kept.append(each)
    return kept


def best_by_head(speedups: Mapping[Point, float]) -> dict[str, Point]:
    """The fastest point of each head."""
    found: dict[str, Point] = {}
    for point, speedup in speedups.items():
        if point.head not in found or speedup > speedups[found[point.head]]:
            found[point.head] = point
    return found
