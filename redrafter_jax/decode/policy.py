"""How each row of a batch samples, as data on the device, made from what the requests ask for."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from redrafter_jax.decode.request import Sampling
from redrafter_jax.devices import processes


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
    sampled, filtered, shown, typical: static; whether any row samples, has a top-k or top-p, and the two above
    """

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    keys_B: jax.Array
    shown_B: jax.Array
    typical_B: jax.Array
    sampled: bool = dataclasses.field(metadata={"static": True}, default=False)
    filtered: bool = dataclasses.field(metadata={"static": True}, default=False)
    shown: bool = dataclasses.field(metadata={"static": True}, default=False)
    typical: bool = dataclasses.field(metadata={"static": True}, default=False)


def make_policy(samplings: Sequence[Sampling], seeds: Sequence[int]) -> Policy:
    """The policy of a batch on the mesh that is set, from one request's sampling and one seed per row."""
    rows = [each if each.temperature > 0 else Sampling() for each in samplings]  # greedy rows use no filter and no rule
    shown = [row.shows_noise for row in rows]
    typical = [not row.is_exact for row in rows]
    put = lambda values, dtype: processes.put(np.asarray(values, dtype), "data")  # noqa: E731
    return Policy(
        temperature_B=put([row.temperature for row in rows], np.float32),
        top_k_B=put([row.top_k for row in rows], np.int32),
        top_p_B=put([row.top_p for row in rows], np.float32),
        keys_B=_make_keys(put(seeds, np.uint32)),
        shown_B=put(shown, bool),
        typical_B=put(typical, bool),
        sampled=any(row.temperature > 0 for row in rows),
        filtered=any(row.top_k > 0 or row.top_p < 1 for row in rows),
        shown=any(shown),
        typical=any(typical),
    )


_make_keys = jax.jit(jax.vmap(jax.random.key))
