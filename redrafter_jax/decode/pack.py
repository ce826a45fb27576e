"""Beams -> Tree: the prefixes of the drafted tokens, each once, at most N of them with the root.

    search, W = 2, L = 2                       nodes          parent   sees
        g - a - c    step 1 keeps a, b         0  g             -      0
          \\    \\ d   step 2 keeps ac, ad       1  a             0      0 1
            b                                  2  b             0      0   2
                                               3  c             1      0 1   3
                                               4  d             1      0 1     4

Integers only, masked, one row at a time under `vmap`; nothing that shapes an array depends on the data.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode.propose.search import Beams, sequences

TreeKind = Literal["beams", "search", "chains"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """W chains of L tokens, each token drawn from the drafter's distribution behind the tokens before it.

    tokens: ``[B, W, L]`` int32; logits: ``[B, W, L, V]`` float32, of the distributions that they were drawn from, -inf for a token
    that cannot be drafted.
    """

    tokens: jax.Array
    logits: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """N nodes per row, parents before children; node 0 is the root g.

    tokens, parent, depth: ``[B, N]`` int32 (the root is its own parent, at depth 0); valid: ``[B, N]`` bool, False for a
    slot that holds no node; ancestors: ``[B, N, N]`` bool, node n's ancestors and itself; scores: ``[B, N]`` float32, an
    estimate of the log-probability of a node's whole prefix, 0 at the root and never above the parent's; drawn: what a tree of
    chains was drawn from (`of_chains`), None for any other.
    """

    tokens: jax.Array
    parent: jax.Array
    depth: jax.Array
    valid: jax.Array
    ancestors: jax.Array
    scores: jax.Array
    drawn: Drawn | None = None


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Drafted nodes of one row in topological order; ``parent`` is an index into the candidates, -1 for the root."""

    tokens: jax.Array
    parent: jax.Array
    depth: jax.Array
    beam: jax.Array
    scores: jax.Array  # -inf: not a node


def nodes(width: int, length: int, budget: int = 0) -> int:
    """N, the static number of nodes: the budget, and at most 1 + W * L (budget 0: exactly 1 + W * L)."""
    most = 1 + width * length
    return min(budget, most) if budget else most


def pack(g_B: jax.Array, beams: Beams, kind: TreeKind, budget: int = 0) -> Tree:
    """The tree of the N - 1 likeliest prefixes: of the final beams, or all that the search kept (docs/explained/algorithm.md)."""
    L, W = beams.tokens.shape[1:]
    N = nodes(W, L, budget)
    if kind == "search":
        return jax.vmap(lambda g, b: _select(g, _of_search(b), N, L))(g_B, beams)
    tokens_BWL, scores_BWL = sequences(beams)
    return pack_sequences(g_B, tokens_BWL, scores_BWL, N)


def pack_sequences(g_B: jax.Array, tokens_BWL: jax.Array, scores_BWL: jax.Array, N: int) -> Tree:
    """The tree of W sequences a row; their scores are cumulative log-probabilities, -inf where there is no token."""
    L = tokens_BWL.shape[2]
    return jax.vmap(lambda g, t, s: _select(g, _of_sequences(t, s), N, L))(g_B, tokens_BWL, scores_BWL)


def merge(one: Tree, other: Tree, N: int, L: int) -> Tree:
    """The N - 1 likeliest prefixes of two trees of the same roots, at most L deep. A prefix that both trees have becomes
    one node with the larger of its two scores, so that no child is likelier than its parent."""
    return jax.vmap(lambda one, other: _select(one.tokens[0], _of_trees(one, other, L), N, L))(one, other)


def of_chains(g_B: jax.Array, drawn: Drawn, scores_BWL: jax.Array) -> Tree:
    """Chains side by side, unmerged: token d of chain w is node ``1 + (d - 1) W + w``, so that each draw stays one."""
    B, W, L = drawn.tokens.shape
    depth = np.concatenate([[0], np.repeat(np.arange(1, L + 1), W)]).astype(np.int32)
    parent = np.maximum(np.arange(1 + W * L) - W, 0).astype(np.int32) * (depth > 1)
    chain = np.concatenate([[0], np.tile(np.arange(W), L)])
    above = (depth[None] <= depth[:, None]) & ((chain[None] == chain[:, None]) | (depth[None] == 0))

    def of_nodes(values_BWL: jax.Array, root: jax.Array) -> jax.Array:
        flat = jnp.reshape(values_BWL.transpose(0, 2, 1), (B, W * L), out_sharding=P("data", None))
        parts = (root[:, None], flat)
        return jnp.concatenate([jax.sharding.reshard(part, P("data", None)) for part in parts], axis=1)

    def of_rows(constant: np.ndarray) -> jax.Array:
        return jnp.broadcast_to(constant, (B, *constant.shape), out_sharding=P("data", *[None] * constant.ndim))

    constants = map(of_rows, (parent.astype(np.int32), depth, np.ones(len(depth), bool), above))
    return Tree(of_nodes(drawn.tokens, g_B), *constants, of_nodes(scores_BWL, jnp.zeros_like(g_B, jnp.float32)), drawn)


def root_only(g_B: jax.Array) -> Tree:
    """The tree of plain autoregressive decoding."""
    one = jnp.zeros_like(g_B)[:, None]
    true = one == 0
    return Tree(g_B[:, None], one, one, true, true[:, None], one.astype(jnp.float32))


def _of_search(beams: Beams) -> _Candidates:
    """Every (beam, token) kept at a step is a distinct prefix, and its parent was kept the step before."""
    L, W = beams.tokens.shape
    step, beam = jnp.divmod(jnp.arange(L * W), W)
    parent = jnp.where(step == 0, -1, (step - 1) * W + beams.parents.reshape(-1))
    return _Candidates(beams.tokens.reshape(-1), parent, step + 1, beam, beams.scores.reshape(-1))


def _of_sequences(tokens_WL: jax.Array, scores_WL: jax.Array) -> _Candidates:
    """Of beams that share a prefix, only the first one's positions are nodes."""
    W, L = tokens_WL.shape
    same_WWL = jnp.cumprod(tokens_WL[:, None] == tokens_WL[None], axis=2)
    first_WL = jnp.argmax(same_WWL, axis=1)  # argmax finds the first of the equal beams
    beam, step = jnp.divmod(jnp.arange(W * L), L)
    before = first_WL[beam, jnp.maximum(step - 1, 0)] * L + step - 1
    scores = jnp.where(first_WL == jnp.arange(W)[:, None], scores_WL, -jnp.inf)
    return _Candidates(tokens_WL.reshape(-1), jnp.where(step == 0, -1, before), step + 1, beam, scores.reshape(-1))


def _of_trees(one: Tree, other: Tree, L: int) -> _Candidates:
    """The drafted nodes of one tree, then those of the other whose prefix the first does not have."""
    alike_NM = (one.tokens[:, None] == other.tokens) & (one.depth[:, None] == other.depth) & one.valid[:, None] & other.valid
    same_NM = alike_NM & (one.depth[:, None] == 0)
    for _ in range(L):
        same_NM = alike_NM & ((one.depth[:, None] == 0) | same_NM[one.parent][:, other.parent])
    shared_M, twin_M = jnp.any(same_NM, axis=0), jnp.argmax(same_NM, axis=0)
    likelier_N = jnp.max(jnp.where(same_NM, other.scores, -jnp.inf), axis=1)
    scores_N = jnp.where(one.valid, jnp.maximum(one.scores, likelier_N), -jnp.inf)
    scores_M = jnp.where(other.valid & ~shared_M, other.scores, -jnp.inf)
    # node n is candidate n - 1, and the root -1; behind them, node m of the other tree
    candidate_M = jnp.where(shared_M, twin_M - 1, len(one.tokens) - 2 + jnp.arange(len(other.tokens)))
    joined = lambda a, b: jnp.concatenate([a[1:], b[1:]])  # noqa: E731
    return _Candidates(
        tokens=joined(one.tokens, other.tokens),
        parent=joined(one.parent - 1, candidate_M[other.parent]),
        depth=joined(one.depth, other.depth),
        beam=jnp.arange(len(one.tokens) + len(other.tokens) - 2),
        scores=joined(scores_N, scores_M),
    )


def _select(g: jax.Array, candidates: _Candidates, N: int, L: int) -> Tree:
    """Keeps the N - 1 of largest score, in their order. A parent is at least as likely as its child and shallower, so the
    kept nodes are closed under prefixes."""
    count = candidates.tokens.shape[0]
    order = jnp.lexsort((candidates.beam, candidates.depth, -candidates.scores))
    rank = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
    kept = (rank < N - 1) & (candidates.scores > -jnp.inf)
    node_of = jnp.where(kept, jnp.cumsum(kept), N)  # a dropped candidate gets slot N, which does not exist
    parent_node = jnp.where(candidates.parent < 0, 0, node_of[jnp.maximum(candidates.parent, 0)])

    def place(values: jax.Array, root: jax.Array | int, dtype=jnp.int32) -> jax.Array:
        slots = jnp.zeros(N, dtype).at[node_of].set(values.astype(dtype), mode="drop")
        return jnp.where(jnp.arange(N) == 0, root, slots)  # no scatter, whose sharding jax 0.12 finds ambiguous under vmap

    tokens, parent, depth = place(candidates.tokens, g), place(parent_node, 0), place(candidates.depth, 0)
    itself = jnp.eye(N, dtype=bool)
    ancestors = itself | (jnp.arange(N) == parent[:, None])
    for _ in range(L - 1):
        ancestors = itself | ancestors[parent]
    valid = jnp.arange(N) <= jnp.sum(kept)
    return Tree(tokens, parent, depth, valid, ancestors, place(candidates.scores, 0, jnp.float32))
