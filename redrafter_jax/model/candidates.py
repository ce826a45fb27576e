"""A candidate head: which C tokens are worth a product with the LM head, by a low-rank copy of it (as in EAGLE-4).

    rough  = (z A) B         A: ``[E, R]``, B: ``[R, V]``; A B is the LM head's matrix, by its R largest singular values
    exact  = z M[ids]        M: the LM head by token, ``[V, E]``; ids: the C tokens with the largest rough logits

A step of a search then reads R / E of the LM head and the rows of its candidates. The vocabulary stays as large as it is, since
each draft state has candidates of its own. The LM head is stored by token, since columns of ``[E, V]`` lie V numbers apart.
Not here: how candidates are picked (`decode/propose/shortlist.py`), how A and B are made (`train/candidates.py`).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import layers
from redrafter_jax.model.layers import take_rows
from redrafter_jax.model.target import Target, finish, unembed


class CandidateHead(nnx.Module):
    """The factors, and the LM head by token. All of it is split so that a device needs no rows of another: A by its inputs, B by
    tokens, M by its features.

    down: A ``[E + r, R]``, up: B ``[R, V]``; rows: M ``[V, E]``, None where it is the target's; bigram_rows: the columns of a
    bigram term of rank r by token, ``[V, r]``, which A and B cover too; None without one.
    """

    def __init__(self, key, vocabulary: int, exit_size: int, rank: int, bigram: int, tied: bool, dtype):
        keys = jax.random.split(key, 3)
        self.down = layers.param(keys[0], (exit_size + bigram, rank), layers.ROWS, dtype)
        self.up = layers.param(keys[1], (rank, vocabulary), layers.COLUMNS, dtype)
        self.rows = None if tied else layers.param(keys[2], (vocabulary, exit_size), layers.COLUMNS, dtype, exit_size**-0.5)
        self.bigram_rows = layers.zeros((vocabulary, bigram), layers.COLUMNS, dtype) if bigram else None

    def rough(self, exit_: jax.Array, target: Target) -> jax.Array:
        """float32 logits ``[B, W, V]`` of rank R, split over ``model``; exit_: ``[B, W, E + r]``."""
        parts = jax.sharding.reshard(exit_, P("data", None, "model"))
        return unembed(target.config, layers.times(parts, self.down, layers.ROWS), self.up)

    def exact(self, exit_: jax.Array, target: Target, ids_BWC: jax.Array) -> jax.Array:
        """float32 logits ``[B, W, C]`` of the tokens with these ids; each device adds its features of their rows."""
        E = self.rows_of(target).shape[-1]
        logits = _products(exit_[..., :E], self.rows_of(target), ids_BWC)
        if self.bigram_rows is not None:
            logits = logits + _products(exit_[..., E:], self.bigram_rows[...], ids_BWC)
        return finish(target.config, logits)

    def rows_of(self, target: Target) -> jax.Array:
        """M ``[V, E]``."""
        return (target.embedding if self.rows is None else self.rows)[...]


def wrong_numbers(config, count: int, rank: int) -> tuple[str, str] | None:
    """What is wrong with C and R for a head of this `DrafterConfig`: the name of the number, and the rest of a sentence."""
    V, E = config.vocab_size, config.exit_size + config.bigram
    if config.draft_vocab:
        return "candidates", f"are of all tokens, and this head has a draft vocabulary of {config.draft_vocab}"
    if not 1 <= count <= V:
        return "candidates", f"should be from 1 to the vocabulary of {V}, not {count}"
    if not 1 <= rank <= min(V, E):
        return "rank", f"should be from 1 to {min(V, E)}, the rank of the LM head's matrix, not {rank}"
    return None


def _products(x_BWE: jax.Array, rows_VE: jax.Array, ids_BWC: jax.Array) -> jax.Array:
    rows_VE = layers.gather_weight(rows_VE, layers.COLUMNS)
    x_BWE = jax.sharding.reshard(x_BWE, P("data", None, "model"))
    rows_BWCE = rows_VE.at[ids_BWC].get(out_sharding=P("data", None, None, "model"), mode="promise_in_bounds")
    whole = {"out_sharding": P("data", None, None), "preferred_element_type": jnp.float32}
    return layers.einsum("bwe,bwce->bwc", x_BWE, rows_BWCE, **whole)


def take(values: jax.Array, ids_BWC: jax.Array) -> jax.Array:
    """Of values for every token, ``[B, V]`` or ``[B, W, V]``, those of these ids, ``[B, W, C]``. Each shard of the vocabulary looks
    up its own, and the sum of all travels."""

    def of_shard(values: jax.Array, ids_BWC: jax.Array) -> jax.Array:
        own_BWC, is_own = _own(values.shape[-1], ids_BWC)
        found_BWC = take_rows(values, own_BWC, values.ndim - 1)
        return jax.lax.psum(jnp.where(is_own, found_BWC, 0), "model")

    by_row = P("data", None, None)
    split = P("data", *[None] * (values.ndim - 2), "model")
    values = jax.sharding.reshard(values, split)
    return jax.shard_map(of_shard, in_specs=(split, by_row), out_specs=by_row)(values, ids_BWC)


def spread(logits_BWC: jax.Array, ids_BWC: jax.Array, vocab: int) -> jax.Array:
    """Logits of these ids as logits of every token ``[B, W, V]``, -inf for the others, split over ``model``."""

    def of_shard(logits_BWC: jax.Array, ids_BWC: jax.Array) -> jax.Array:
        size = vocab // jax.lax.axis_size("model")
        own_BWC, is_own = _own(size, ids_BWC)
        at_BWC = jnp.where(is_own, own_BWC, size)  # past the end: dropped
        nothing = jnp.full(size, -jnp.inf, logits_BWC.dtype)
        return jax.vmap(jax.vmap(lambda at, logits: nothing.at[at].set(logits, mode="drop")))(at_BWC, logits_BWC)

    by_row = P("data", None, None)
    return jax.shard_map(of_shard, in_specs=(by_row, by_row), out_specs=P("data", None, "model"))(logits_BWC, ids_BWC)


def _own(size: int, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The places of ids in a shard of ``size`` tokens, and which of them are there."""
    own = ids - jax.lax.axis_index("model") * size
    return own, (own >= 0) & (own < size)
