"""The task of an `infer.benchmark`, in types: which models, what they decode, and which ways to draft."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from infer.proposers import drafted_length
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.request import Limits, Sampling


@dataclasses.dataclass(frozen=True)
class Files:
    """A pair by folders or hub names (None: the embedded one) and a JSONL file of prompts (None: the embedded pair's).

    head: which of the embedded heads (None: what suits the device); has_head: False where no head drafts; lora: an adapter that
    is merged into the target.
    """

    target: str | None = None
    drafter: str | None = None
    head: Literal["slim", "best", "full"] | None = None
    has_head: bool = True
    prompts: str | None = None
    lora: str | None = None


@dataclasses.dataclass(frozen=True)
class Rates:
    """How often synthetic drafts are right: with the probability ``by_depth``, or, where that is empty, often enough for so many
    tokens per step."""

    by_depth: tuple[float, ...] = ()
    tokens_per_step: float = 4.2


@dataclasses.dataclass(frozen=True)
class Random:
    """Random weights of a known shape, with ``layers`` of its layers (None: all), and random prompts.

    head_vocab: tokens that the head can draft (0: all); prompt_length: tokens; prompt_count: prompts per row of a batch.
    """

    shape: str
    layers: int | None = None
    head: Literal["slim", "best", "full"] | None = None
    head_vocab: int = 0
    prompt_length: int = 64
    prompt_count: int = 1
    rates: Rates = Rates()


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to draft: a search of the head, a lookup, or both at once."""

    shape: Shape | None = None
    lookup: Lookup | None = None

    @property
    def name(self) -> str:
        """As the report calls it: `2x2`, `lookup`, `2x2 + lookup`."""
        search = [f"{self.shape.width}x{self.shape.length}"] if self.shape else []
        return " + ".join([*search, *(["lookup"] if self.lookup else [])])

    @property
    def length(self) -> int:
        """L of its rounds."""
        return drafted_length(self.shape, self.lookup)


def combine(searches: Sequence[Shape], lookup: Lookup | None) -> tuple[Way, ...]:
    """The searches, then the lookup alone, then the lookup beside each of them."""
    alone = tuple(map(Way, searches))
    return alone if lookup is None else (*alone, Way(None, lookup), *(Way(shape, lookup) for shape in searches))


@dataclasses.dataclass(frozen=True)
class BenchmarkTask:
    """A command line of `infer.benchmark`, but for where its report goes. mesh: None for what suits the devices; batch:
    prompts that are decoded together; weight_format: of the target's matrices, as `pair.number_formats` gives it."""

    models: Files | Random
    ways: tuple[Way, ...]
    sampling: Sampling
    limits: Limits
    batch: int
    dtype: Literal["float32", "bfloat16"]
    mesh: tuple[int, int] | None = None
    weight_format: str | None = None

    @property
    def rates(self) -> Rates | None:
        """Of a synthetic acceptance; None for real drafts."""
        return self.models.rates if isinstance(self.models, Random) else None

    @property
    def length(self) -> int:
        """L of the longest rounds of any of the ways."""
        return max(way.length for way in self.ways)
