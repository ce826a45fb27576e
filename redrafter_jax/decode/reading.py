"""A prompt read chunk by chunk beside the running batch, from what a row of it has already on.

    running   a b c d e f x y . .     a row, which runs or has ended; it read a b c d and e f ... in chunks of four
    taken     a b c d                 the chunks that another prompt begins with, copied
    read      a b c d g h             the rest of that prompt, in chunks of its own, between which the rows run on
    begun     a b c d g h | z         its first token chosen, ready for `insert`

Chunks begin at multiples of one size, are read by one program, and are taken as wholes: what is taken has the bits that reading
would have made.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import prefill
from redrafter_jax.decode.chunk import Chunk, read_on, unread
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.propose.proposer import Memory, Proposer
from redrafter_jax.model.cache import KVCache
from redrafter_jax.model.target import Target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reading:
    """Of G rows, one for each part that rows are split into, of which the first counts. cache: of what was read; h:
    ``[G, D + F*D]``, that of `DecodeState` at the prompt's last token once that was read; memory: of the proposer
    (`Proposer.read`)."""

    cache: KVCache
    h: jax.Array
    memory: Memory


def blank(target: Target, proposer: Proposer, rows: int, slots: int) -> Reading:
    """Of so many rows, of whose prompts nothing is read."""
    return Reading(*unread(target, rows, slots), proposer.unread(rows, slots))


def take(proposer: Proposer, state: DecodeState, row: jax.Array, length: jax.Array) -> Reading:
    """The first ``length`` tokens of a row of the running state; 0 for a prompt of which nothing is there."""
    shards = jax.typeof(state.done).sharding.mesh.shape["data"]
    found = jax.tree.map(lambda leaf: _take(leaf, row, shards), (state.cache, state.h, proposer.kept(state.memory)))
    kv, h_GD, memory = found
    return Reading(dataclasses.replace(kv, length=jnp.zeros_like(kv.length) + length), jnp.zeros_like(h_GD), memory)


def _take(leaf: jax.Array, row: jax.Array, shards: int) -> jax.Array:
    """``[G, ...]``, each of them the row of ``[R, ...]``: the sum of what each shard of rows has of it, zeros where that is
    nothing."""
    spec = P("data", *jax.typeof(leaf).sharding.spec[1:])

    def of_shard(leaf: jax.Array, row: jax.Array) -> jax.Array:
        at = row - jax.lax.axis_index("data") * leaf.shape[0]
        is_here = (at >= 0) & (at < leaf.shape[0])
        there = jax.lax.dynamic_slice_in_dim(leaf, jnp.clip(at, 0, leaf.shape[0] - 1), 1)
        return there if shards == 1 else jax.lax.psum(jnp.where(is_here, there, jnp.zeros_like(there)), "data")

    return jax.shard_map(of_shard, in_specs=(spec, P()), out_specs=spec, check_vma=False)(leaf, row)


def read(
    target: Target, proposer: Proposer, reading: Reading, tokens_GN: jax.Array, start: jax.Array, length_G: jax.Array, bucket
) -> Reading:
    """With the chunk of N tokens that stand at slot ``start`` and after it; length: tokens of the prompt."""
    chunk = Chunk(tokens_GN, start, length_G, length_G, prefill.prefixes(bucket.prompt, bucket.pass_tokens))
    kv, h_GD, _ = read_on(target, reading.cache, reading.h, chunk)
    return Reading(kv, h_GD, proposer.read(reading.memory, chunk))


def begin(
    target: Target,
    proposer: Proposer,
    reading: Reading,
    prompts_GT: jax.Array,
    limit_G: jax.Array,
    stop_ids_GX: jax.Array,
    policy: Policy,
    bucket: prefill.Bucket,
) -> DecodeState:
    """The state of a prompt that was read to its end."""
    given = (prompts_GT, limit_G, stop_ids_GX, policy, bucket)
    return prefill.begin(target, proposer, reading.cache, reading.h, reading.memory, *given)
