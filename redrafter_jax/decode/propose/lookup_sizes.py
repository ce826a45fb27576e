"""The sizes of a prompt lookup, with their ranges and defaults: for `lookup.py` and for commands. Nothing here starts JAX."""

import dataclasses

from redrafter_jax.decode.request import MAX_NODES
from redrafter_jax.errors import BadInput, shown

RANGES = {"longest": (1, 16), "shortest": (1, 16), "length": (1, 64), "width": (1, 64)}


def _size(default: int) -> int:
    return dataclasses.field(default=default, metadata={"static": True})  # of a `Lookup`, which is a pytree


@dataclasses.dataclass(frozen=True)
class LookupSizes:
    """A match has ``shortest`` to ``longest`` tokens; the ``width`` best are followed by ``length`` drafted tokens each.

    Raises:
      BadInput: a number is out of its range.
    """

    longest: int = _size(8)
    shortest: int = _size(2)
    length: int = _size(6)
    width: int = _size(1)

    def __post_init__(self):
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise BadInput(f"{name} should be from {low} to {high}, not {shown(getattr(self, name))}")
        if self.shortest > self.longest:
            raise BadInput(f"shortest should be at most longest, {self.longest}, not {self.shortest}")
        if self.nodes > MAX_NODES:
            raise BadInput(f"width {self.width} and length {self.length} make {self.nodes} nodes, over {MAX_NODES}")

    @property
    def nodes(self) -> int:
        return 1 + self.width * self.length
