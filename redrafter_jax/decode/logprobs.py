"""How likely the model found each token of a reply, and which ones it found likeliest, kept on the device until a report.

The probabilities are the model's own: before penalties, temperature, top-k and top-p.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import sample
from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.wanted import filled, where_wanted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities, of T tokens of each row.

    chosen: ``[B, T]`` float32, of the token that is there; top: ``[B, T, X]`` float32, of the X likeliest, the likeliest
    first; ids: ``[B, T, X]`` int32, which these are.
    """

    chosen: jax.Array
    top: jax.Array
    ids: jax.Array


def measure(policy: Policy, logits_BMV: jax.Array, tokens_BM: jax.Array) -> Logprobs | None:
    """Of tokens and the logits that each of them was chosen from; None where no row ever reports any, and zeros where none of these
    does."""
    if not policy.logprobs:
        return None
    find = lambda: _measure(policy, logits_BMV, tokens_BM)  # noqa: E731
    return where_wanted(policy.reports_B, find, filled(find, 0.0))


def _measure(policy: Policy, logits_BMV: jax.Array, tokens_BM: jax.Array) -> Logprobs:
    total_BM = jax.nn.logsumexp(logits_BMV, axis=-1)
    is_token_BMV = jnp.arange(logits_BMV.shape[-1]) == tokens_BM[..., None]  # a sum, for a token may be on any shard
    chosen_BM = jnp.sum(jnp.where(is_token_BMV, logits_BMV, 0.0), axis=-1) - total_BM
    top_BMX, ids_BMX = sample.top_k(logits_BMV, _columns(policy, logits_BMV.shape[-1]))
    return Logprobs(chosen_BM, top_BMX - total_BM[..., None], ids_BMX)


def empty(policy: Policy, rows: int, slots: int, vocab: int) -> Logprobs | None:
    """Room for those of a row's tokens, each at its slot."""
    if not policy.logprobs:
        return None

    def zeros(dtype: jnp.dtype, *shape: int) -> jax.Array:
        return jnp.zeros((rows, *shape), dtype, out_sharding=P("data", *[None] * len(shape)))

    columns = _columns(policy, vocab)
    return Logprobs(zeros(jnp.float32, slots), zeros(jnp.float32, slots, columns), zeros(jnp.int32, slots, columns))


def _columns(policy: Policy, vocab: int) -> int:
    return min(policy.logprobs, vocab)
