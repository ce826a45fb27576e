"""What is computed only where a row of the batch wants it: so a program that is compiled for every wish takes no longer for a batch
that has none of them.

    where_wanted(wants_B, compute, filled(compute, 0.0))

The branch is in a named scope, so that whoever reads a compiled program tells it from one for rare cases.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Arrays = TypeVar("Arrays")
SCOPE = "wanted"


def where_wanted(wants_B: jax.Array, compute: Callable[[], Arrays], otherwise: Callable[[], Arrays]) -> Arrays:
    """``compute()``, for all rows, where any row ``[B]`` wants it. For those that do not, it has to be what ``otherwise()`` is, to
    the bit, so that no row depends on what those beside it want."""
    with jax.named_scope(SCOPE):
        return jax.lax.cond(jnp.any(wants_B), compute, otherwise)


def filled(compute: Callable[[], Arrays], value: float) -> Callable[[], Arrays]:
    """For arrays like those of ``compute``, full of this value."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.full(leaf.shape, value, leaf.dtype, out_sharding=leaf.sharding.spec if leaf.sharding is not None else None)

    return lambda: jax.tree.map(fill, jax.eval_shape(compute))
