"""How each row of a batch samples, as data on the device, made from what the requests ask for."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax.decode.request import Sampling
from redrafter_jax.devices import processes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Penalties:
    """Of each row, ``[B]`` float32: the fields of `Sampling` of these names. 1, 0 and 0 are off."""

    repetition: jax.Array
    presence: jax.Array
    frequency: jax.Array

    @property
    def are_on_B(self) -> jax.Array:
        """Whether the row penalises."""
        return (self.repetition != 1) | (self.presence != 0) | (self.frequency != 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Policy:
    """How each row samples: data, of which changing a number compiles nothing. The flags say what any row may need, and
    decide which code is compiled: none of it changes a row that does not need it.

    temperature_B: ``[B]`` float32, 0 for a greedy row, whose other fields mean nothing
    top_k_B:       ``[B]`` int32, 0 for off
    top_p_B:       ``[B]`` float32, 1 for off
    keys_B:        ``[B]`` typed keys, one per request
    shown_B:       ``[B]`` bool, whether the drafter sees the row's noise
    typical_B:     ``[B]`` bool, whether the row accepts what is likely enough
    drawn_B:       ``[B]`` bool, whether the row's drafts are drawn, and accepted or rejected by their probabilities
    sampled, filtered, shown, typical, drawn: static; whether any row samples, has a top-k or top-p, and the three above
    penalties:     None where no row penalises
    min_new_B:     ``[B]`` int32, tokens of the reply before a stop id may come; None where no row waits
    reports_B:     ``[B]`` bool, whether the row reports log-probabilities; None where no row does
    logprobs:      static; how many of the likeliest tokens are reported at most, 0 for no log-probabilities at all
    """

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    keys_B: jax.Array
    shown_B: jax.Array
    typical_B: jax.Array
    drawn_B: jax.Array
    sampled: bool = dataclasses.field(metadata={"static": True}, default=False)
    filtered: bool = dataclasses.field(metadata={"static": True}, default=False)
    shown: bool = dataclasses.field(metadata={"static": True}, default=False)
    typical: bool = dataclasses.field(metadata={"static": True}, default=False)
    drawn: bool = dataclasses.field(metadata={"static": True}, default=False)
    penalties: Penalties | None = None
    min_new_B: jax.Array | None = None
    reports_B: jax.Array | None = None
    logprobs: int = dataclasses.field(metadata={"static": True}, default=0)

    @property
    def samples_B(self) -> jax.Array:
        """Whether the row samples."""
        return self.temperature_B > 0

    @property
    def filters_B(self) -> jax.Array:
        """Whether the row has a top-k or top-p."""
        return (self.top_k_B > 0) | (self.top_p_B < 1)

    @property
    def adjusts_B(self) -> jax.Array:
        """Whether the row penalises, or waits for a least length."""
        wants_B = jnp.zeros_like(self.shown_B) if self.min_new_B is None else self.min_new_B > 0
        return wants_B if self.penalties is None else wants_B | self.penalties.are_on_B

    def without(self, rows_B: jax.Array) -> "Policy":
        """With these rows ``[B]`` greedy and without any wish: for rows that are done, which then make nothing be computed."""
        off = lambda values_B, value: None if values_B is None else jnp.where(rows_B, jnp.array(value, values_B.dtype), values_B)  # noqa: E731
        return dataclasses.replace(
            self,
            temperature_B=off(self.temperature_B, 0),
            top_k_B=off(self.top_k_B, 0),
            top_p_B=off(self.top_p_B, 1),
            penalties=None if self.penalties is None else Penalties(*map(off, dataclasses.astuple(self.penalties), (1, 0, 0))),
            min_new_B=off(self.min_new_B, 0),
            reports_B=off(self.reports_B, False),
        )


@dataclasses.dataclass(frozen=True)
class Needs:
    """What any row of a batch may need, which decides what code is compiled: the static fields of `Policy`, and whether any row
    penalises or waits for a least length."""

    sampled: bool = False
    filtered: bool = False
    shown: bool = False
    typical: bool = False
    drawn: bool = False
    penalised: bool = False
    waits: bool = False
    logprobs: int = 0

    def covers(self, other: "Needs") -> bool:
        """Whether rows that need ``other`` can be decoded by what was compiled for these."""
        return all(getattr(self, field.name) >= getattr(other, field.name) for field in dataclasses.fields(self))


def needs_of(samplings: Sequence[Sampling], min_news: Sequence[int] = ()) -> Needs:
    """What rows with these samplings and least lengths need."""
    rows = _as_decoded(samplings)
    return Needs(
        sampled=any(row.temperature > 0 for row in rows),
        filtered=any(row.top_k > 0 or row.top_p < 1 for row in rows),
        shown=any(row.shows_noise for row in rows),
        typical=any(not row.is_exact for row in rows),
        drawn=any(row.draws for row in rows),
        penalised=any(each.penalises for each in samplings),
        waits=any(min_news),
        logprobs=_round_up(max((each.logprobs for each in samplings), default=0)),
    )


def make_policy(
    samplings: Sequence[Sampling],
    seeds: Sequence[int],
    samples: Sequence[int] = (),
    min_news: Sequence[int] = (),
    needs: Needs | None = None,
) -> Policy:
    """The policy of a batch on the mesh that is set, from the sampling, seed, sample and least length of one request per row;
    without samples or least lengths they are 0. needs: what other rows, which may come later, need besides."""
    rows = _as_decoded(samplings)
    needs = needs_of(samplings, min_news) if needs is None else needs
    return Policy(
        temperature_B=_put([row.temperature for row in rows], np.float32),
        top_k_B=_put([row.top_k for row in rows], np.int32),
        top_p_B=_put([row.top_p for row in rows], np.float32),
        keys_B=_make_keys(_put(seeds, np.uint32), _put(list(samples) or [0] * len(rows), np.uint32)),
        shown_B=_put([row.shows_noise for row in rows], bool),
        typical_B=_put([not row.is_exact for row in rows], bool),
        drawn_B=_put([row.draws for row in rows], bool),
        sampled=needs.sampled,
        filtered=needs.filtered,
        shown=needs.shown,
        typical=needs.typical,
        drawn=needs.drawn,
        penalties=_penalties(samplings) if needs.penalised else None,
        min_new_B=_put(list(min_news) or [0] * len(rows), np.int32) if needs.waits else None,
        reports_B=_put([each.logprobs > 0 for each in samplings], bool) if needs.logprobs else None,
        logprobs=needs.logprobs,
    )


def _as_decoded(samplings: Sequence[Sampling]) -> list[Sampling]:
    """Greedy rows use no filter and no rule."""
    return [each if each.temperature > 0 else Sampling() for each in samplings]


def _penalties(samplings: Sequence[Sampling]) -> Penalties:
    fields = (field.name for field in dataclasses.fields(Penalties))
    return Penalties(*(_put([getattr(each, f"{name}_penalty") for each in samplings], np.float32) for name in fields))


def _round_up(count: int) -> int:
    """To a power of two, so that similar requests share a compiled program."""
    return 1 << (count - 1).bit_length() if count else 0


def _put(values: Sequence, dtype: type) -> jax.Array:
    return processes.put(np.asarray(values, dtype), "data")


@jax.jit
@jax.vmap
def _make_keys(seed: jax.Array, sample: jax.Array) -> jax.Array:
    """The key of a row. A seed of 32 bits leaves the first word of a key 0, which is where the sample goes: any two rows that
    differ in seed or sample have different keys, and sample 0 has the seed's own."""
    words = jax.random.key_data(jax.random.key(seed))
    return jax.random.wrap_key_data(words.at[0].add(sample))
