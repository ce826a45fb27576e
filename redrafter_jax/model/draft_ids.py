"""The table of a draft vocabulary (FR-Spec, arXiv 2502.14856): which U of the target's V tokens a head can draft.

What is drafted goes through the table at once, so everything behind a proposer knows the target's ids only.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P


class DraftVocabularyIds(nnx.Variable):
    """The target's ids ``[U]`` of the tokens of a draft vocabulary, int32, ascending. Looked up, never trained."""


def as_ids(ids: jax.Array) -> DraftVocabularyIds:
    """The table of these ids, whole on every device."""
    return DraftVocabularyIds(jax.sharding.reshard(jnp.asarray(ids, jnp.int32), P(None)))


def drafted(ids: DraftVocabularyIds | None, values: jax.Array) -> jax.Array:
    """Of values for every token of the target ``[..., V]`` those of the tokens that can be drafted ``[..., U]``, split as
    they were."""
    if ids is None:
        return values
    spec = jax.typeof(values).sharding.spec
    return values.at[..., ids[...]].get(out_sharding=spec, mode="promise_in_bounds")


def undrafted(ids: DraftVocabularyIds | None, logits: jax.Array, vocab: int) -> jax.Array:
    """Logits of the tokens that can be drafted ``[B, ..., U]`` as logits of every token ``[B, ..., V]``, -inf for the others."""
    if ids is None:
        return logits
    spec = jax.typeof(logits).sharding.spec
    nothing = jnp.full((*logits.shape[:-1], vocab), -jnp.inf, logits.dtype, out_sharding=spec)
    return nothing.at[..., ids[...]].set(logits, out_sharding=spec, mode="promise_in_bounds")


def token_ids(ids: DraftVocabularyIds | None, index: jax.Array) -> jax.Array:
    """The target's ids of the tokens with these columns ``[B, ...]`` of the logits, int32."""
    if ids is None:
        return index
    return ids[...].at[index].get(out_sharding=P("data", *[None] * (index.ndim - 1)), mode="promise_in_bounds")
