"""Where the numbers of a target's leaf lie in its files: how the tables of names in the families are read.

An entry of a table is

    (leaf, tensor, transposed)              a leaf of `Target` (a regular expression), its tensor, whether that is stored transposed
    (leaf, tensor, transposed, FusedPart)   the leaf is only some rows of the tensor, which keeps several matrices below each other
    (leaf, tensor, transposed, Stack)       the leaf is a stack of tensors, whose names have {} for their number

Where several entries match a leaf, the files have one of these tensors; the first is what is written.
"""

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from redrafter_jax.model.target import TargetConfig

Heights = Callable[[TargetConfig], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class FusedPart:
    """heights: rows of each of the matrices that a tensor keeps below each other, by the config; index: which of them it is."""

    heights: Heights
    index: int


@dataclasses.dataclass(frozen=True)
class Stack:
    """count: how many tensors make up the leaf, along its first axis, by the config."""

    count: Callable[[TargetConfig], int]


Table = list[tuple[str, str, bool] | tuple[str, str, bool, FusedPart | Stack]]


class Location(NamedTuple):
    """The place of a leaf in the files. Of a leaf or a tensor with three axes, the rows are those of each of its matrices.

    transposed: the matrices are stored ``[out, in]``, and so are their rows; first, height: the row at which the leaf begins, and
    all rows of the tensor, 0 where the leaf is the tensor; count: how many tensors the leaf is a stack of, 0 for none.
    """

    name: str
    transposed: bool
    first: int = 0
    height: int = 0
    count: int = 0

    @property
    def names(self) -> list[str]:
        """The tensors."""
        return [self.name.format(number) for number in range(self.count)] if self.count else [self.name]


def locations(path: str, table: Table, config: TargetConfig) -> list[Location]:
    """Where a leaf may lie, in the order of the table.

    Raises:
      KeyError: no entry matches.
    """
    found = [_location(match, *entry[1:], config=config) for entry in table if (match := re.fullmatch(entry[0], path))]
    if not found:
        raise KeyError(path)
    return found


def location(path: str, table: Table, config: TargetConfig, files: Collection[str]) -> Location:
    """Where a leaf lies in these files; the first place where it could, if it lies nowhere."""
    found = locations(path, table, config)
    return next((each for each in found if each.names[0] in files), found[0])


def _location(
    match: re.Match, tensor: str, transposed: bool, place: FusedPart | Stack | None = None, *, config: TargetConfig
) -> Location:
    name = match.expand(tensor)
    if isinstance(place, Stack):
        return Location(name, transposed, count=place.count(config))
    if isinstance(place, FusedPart):
        heights = place.heights(config)
        return Location(name, transposed, sum(heights[: place.index]), sum(heights))
    return Location(name, transposed)
