"""A running batch that has fewer busy rows than rows: programs for the first few of them, and rows that move down to those.

    rows of R = 16, ladder 1, 4, 16

    0 a    1 b    2 .    3 c    4 .  ...  15 .       a, b and c run in the program of 4 rows; what is in the others does not change
    9 d                                              d changes places with the row 2

On a mesh that splits rows over D devices, "the first rows" are those of each device, so that all of them work.
"""

import collections
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode.commit import DecodeState

STEP = 4  # a program of so many times the rows costs enough to have one of its own


def ladder(rows: int, shards: int = 1) -> tuple[int, ...]:
    """Rows of each program, ascending, the last of them all. Each is a multiple of ``shards``, the devices that rows are split
    over."""
    steps, size = [], shards
    while size < rows:
        steps.append(size)
        size *= STEP
    return (*steps, rows)


class Places:
    """Rows of a batch that are split over so many devices: ``order``, in which they are filled, and of which a program of ``sizes``
    decodes the first ones."""

    def __init__(self, rows: int, shards: int, sizes: Sequence[int]):
        self.sizes, self._shards, self._own = tuple(sizes), shards, rows // shards
        self.order = sorted(range(rows), key=lambda row: (row % self._own, row))

    def arrange(self, busy: Collection[int]) -> tuple[int, list[tuple[int, int]]]:
        """Rows of the smallest program that has room for the busy ones, and the moves, source and goal, that bring them there."""
        most = max(collections.Counter(self._shard(row) for row in busy).values())
        size = next(size for size in self.sizes if size >= self._shards * most)
        low = self.order[:size]
        free, moves = [row for row in low if row not in busy], []
        for row in sorted(set(busy).difference(low)):
            goal = next(each for each in free if self._shard(each) == self._shard(row))
            free.remove(goal)
            moves.append((row, goal))
        return size, moves

    def _shard(self, row: int) -> int:
        return row // self._own


def first(state: DecodeState, rows: int) -> DecodeState:
    """The state of the first rows, so many in all."""
    return jax.tree.map(lambda leaf: _by_shard(lambda own, count: own[:count], leaf, rows), state)


def put_back(state: DecodeState, few: DecodeState) -> DecodeState:
    """The state with its first rows replaced. For a jitted caller that donates ``state``: no buffer is copied."""

    def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
        spec = P("data", *jax.typeof(leaf).sharding.spec[1:])
        write = lambda own, few: jax.lax.dynamic_update_slice_in_dim(own, few, 0, 0)  # noqa: E731
        return jax.shard_map(write, in_specs=(spec, spec), out_specs=spec)(leaf, new)

    return jax.tree.map(put, state, few)


def _by_shard(take, leaf: jax.Array, rows: int) -> jax.Array:
    spec = P("data", *jax.typeof(leaf).sharding.spec[1:])
    return jax.shard_map(lambda own: take(own, rows // jax.lax.axis_size("data")), in_specs=spec, out_specs=spec)(leaf)


def swap(state: DecodeState, one: jax.Array, other: jax.Array) -> DecodeState:
    """The state in which these two rows of one shard have changed places: what a row that is done has in its cache stays there for
    prompts that begin alike. For a jitted caller that donates ``state``."""
    return jax.tree.map(lambda leaf: _swap(leaf, one, other), state)


def _swap(leaf: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    def of_shard(own: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
        rows = own.shape[0]
        start = jax.lax.axis_index("data") * rows
        is_here = (one >= start) & (one < start + rows)
        at, to = (jnp.clip(row - start, 0, rows - 1) for row in (one, other))
        first, second = (jax.lax.dynamic_slice_in_dim(own, row, 1) for row in (at, to))
        own = jax.lax.dynamic_update_slice_in_dim(own, jnp.where(is_here, second, first), at, 0)
        return jax.lax.dynamic_update_slice_in_dim(own, jnp.where(is_here, first, second), to, 0)

    spec = P("data", *jax.typeof(leaf).sharding.spec[1:])
    return jax.shard_map(of_shard, in_specs=(spec, P(), P()), out_specs=spec)(leaf, one, other)


def row_of(parts, row: jax.Array):
    """One row ``[1, ...]`` of arrays ``[R, ...]``, the same on every device that rows are split over."""
    return jax.tree.map(lambda leaf: _row(leaf, row), parts)


def _row(leaf: jax.Array, row: jax.Array) -> jax.Array:
    def of_shard(own: jax.Array, row: jax.Array) -> jax.Array:
        at = row - jax.lax.axis_index("data") * own.shape[0]
        is_here = (at >= 0) & (at < own.shape[0])
        mine = jax.lax.dynamic_slice_in_dim(own, jnp.clip(at, 0, own.shape[0] - 1), 1)
        return jax.lax.psum(jnp.where(is_here, mine, jnp.zeros_like(mine)), "data")

    rest = jax.typeof(leaf).sharding.spec[1:]
    is_flag = leaf.dtype == bool
    found = jax.shard_map(of_shard, in_specs=(P("data", *rest), P()), out_specs=P(None, *rest))(
        leaf.astype(jnp.int32) if is_flag else leaf, row
    )
    return found.astype(bool) if is_flag else found
