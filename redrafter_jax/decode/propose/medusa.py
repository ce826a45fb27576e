"""Medusa's way to draft (arXiv 2401.10774): a tree whose shape is a constant, filled with the likeliest tokens of each head.

A path is a tuple of ranks: (0, 2) is the third likeliest token of head 1 behind the likeliest of head 0. Heads do not see what
the others guess, so nothing is searched: a round is one product with the LM head and one top-k.
"""

import dataclasses
import functools
import heapq
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import sample
from redrafter_jax.decode.pack import Tree
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Memory, Proposer, Round, View
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.request import MAX_NODES
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.model import draft_ids
from redrafter_jax.model.medusa import MedusaHeads
from redrafter_jax.model.target import Target

Paths = tuple[tuple[int, ...], ...]
MAX_CHILDREN = 10  # ranks of a head that the published trees use

_PUBLISHED = """
0 1 2 3 4 5 6 7 8 9 00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 30 31 40 50 60 70 80 90
000 001 002 003 004 005 006 007 008 009 010 011 012 020 021 030 040 050 060 070 100 101 200 0000 0001
"""
_TOP_1 = (0.56, 0.316, 0.201, 0.147)  # of heads 0..3 for Vicuna 7B (assets/medusa_acc.csv there)
_NEXT_RANK = 0.4  # times as likely; with `_TOP_1` an estimate, for the order of the paths alone


def _likelihood(path: tuple[int, ...]) -> float:
    return math.prod(_TOP_1[head] * _NEXT_RANK**rank for head, rank in enumerate(path))


PUBLISHED: Paths = tuple(sorted((tuple(map(int, word)) for word in _PUBLISHED.split()), key=_likelihood, reverse=True))
"""The tree `mc_sim_7b_63` of github.com/FasterDecoding/Medusa (medusa/model/medusa_choices.py): 64 nodes with the root. The
likelier paths come first, as far as can be told, so that the first of them are a tree too (`cut`)."""


@dataclasses.dataclass(frozen=True)
class StaticTree:
    """A tree of paths as constants, in NumPy: the root first, then paths by length, then by rank.

    depth, parent: ``[N]``; rank: ``[N]``, of a node's token among its head's; ancestors: ``[N, N]`` bool, with the node itself.
    """

    depth: np.ndarray
    parent: np.ndarray
    rank: np.ndarray
    ancestors: np.ndarray


@functools.cache
def static_tree(paths: Paths) -> StaticTree:
    """The constants of a tree that has these paths, in any order.

    Raises:
      BadInput: a path is there twice, is empty or has no parent, or there are too many.
    """
    nodes = [(), *sorted(paths, key=lambda path: (len(path), path))]
    index = {path: node for node, path in enumerate(nodes)}
    if len(nodes) > MAX_NODES:
        raise BadInput(f"a tree of {len(nodes)} nodes is over {MAX_NODES}")
    for path in paths:
        if not path or any(type(rank) is not int or rank < 0 for rank in path):
            raise BadInput(f"a path of the tree should be ranks from 0 up, not {shown(path)}")
        if path[:-1] not in index:
            raise BadInput(f"the tree has the path {path} without the path {path[:-1]}")
    if len(index) < len(nodes):
        raise BadInput("the tree has a path twice")
    ancestors = np.eye(len(nodes), dtype=bool)
    for path, node in index.items():
        ancestors[node, [index[path[:depth]] for depth in range(len(path))]] = True
    return StaticTree(
        depth=np.array([len(path) for path in nodes], np.int32),
        parent=np.array([index[path[:-1]] for path in nodes], np.int32),
        rank=np.array([path[-1] if path else 0 for path in nodes], np.int32),
        ancestors=ancestors,
    )


def grow(accuracy: np.ndarray, nodes: int) -> Paths:
    """The tree of the most likely paths, by Medusa's own greedy rule (medusa/eval/gen_results.py there).

    Args:
      accuracy: ``[K, R]``, how often head k's token of rank r is the right one; a path is right as often as the product of its
        ranks', as if they were independent.
      nodes: N with the root; fewer where K heads with R ranks make fewer.
    """
    K, R = accuracy.shape
    logs = np.log(np.maximum(np.asarray(accuracy, np.float64), 1e-12))
    paths, frontier = [], [(-logs[0, 0], (0,))]
    while frontier and len(paths) < nodes - 1:
        cost, path = heapq.heappop(frontier)
        paths.append(path)
        last, depth = path[-1], len(path)
        if last + 1 < R:
            sibling = (*path[:-1], last + 1)
            heapq.heappush(frontier, (cost + logs[depth - 1, last] - logs[depth - 1, last + 1], sibling))
        if depth < K:
            heapq.heappush(frontier, (cost - logs[depth, 0], (*path, 0)))
    return tuple(paths)


def cut(paths: Paths, shape: Shape) -> Paths:
    """The part of a tree that a search of this shape would have room for: of one beam the path of first ranks, of several the
    first nodes that are not too deep."""
    if shape.width == 1:
        return tuple((0,) * depth for depth in range(1, shape.length + 1))
    return tuple(path for path in paths if len(path) <= shape.length)[: shape.nodes - 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Medusa(Proposer):
    """Medusa's heads, and the paths of their tree. It has no memory.

    Raises:
      BadInput: the paths make no tree.
    """

    head: MedusaHeads
    paths: Paths = dataclasses.field(metadata={"static": True}, default=PUBLISHED)

    def __post_init__(self):
        static_tree(self.paths)

    @property
    def round(self) -> Round:
        return Round(max(map(len, self.paths), default=0), 1 + len(self.paths))

    def in_shape(self, shape: Shape) -> Proposer | None:
        try:
            return dataclasses.replace(self, paths=cut(self.paths, shape))
        except BadInput:
            return None  # the first of these paths are no tree

    def prepare(self, target: Target) -> Proposer:
        if not self.paths:
            return Plain()
        config, ranks = self.head.config, 1 + max(map(max, self.paths))
        if self.round.length > config.num_heads:
            raise BadInput(f"a tree of depth {self.round.length} needs as many heads, but there are {config.num_heads}")
        if ranks > (config.draft_vocab or config.vocab_size):
            raise BadInput(f"the tree asks for the {ranks} likeliest tokens of a head, which can draft fewer")
        return self

    def propose(self, target: Target, view: View, memory: Memory) -> tuple[Tree, Memory]:
        with jax.named_scope("draft"):
            tokens_BKR, logp_BKR = self.best(target, view)
        with jax.named_scope("pack"):
            return fill(view.g, static_tree(self.paths), tokens_BKR, logp_BKR), memory

    def best(self, target: Target, view: View) -> tuple[jax.Array, jax.Array]:
        """The R likeliest tokens of each head that the tree uses and their log-probabilities, ``[B, K, R]``, with the temperature
        and the noise that each row has."""
        K, R = self.round.length, 1 + max(map(max, self.paths))
        logits_BKU = self.head.logits(view.h, target)[:, :K]
        divisor_B = sample.divisor(view.policy)
        if divisor_B is not None:
            logits_BKU = logits_BKU / divisor_B[:, None, None]
        if view.noise is not None:
            logits_BKU = logits_BKU + draft_ids.drafted(self.head.ids, view.noise)
        best_BKR, index_BKR = sample.top_k(logits_BKU, R)
        logp_BKR = best_BKR - jax.nn.logsumexp(logits_BKU, axis=-1)[..., None]
        return draft_ids.token_ids(self.head.ids, index_BKR), logp_BKR


def fill(g_B: jax.Array, shape: StaticTree, tokens_BKR: jax.Array, logp_BKR: jax.Array) -> Tree:
    """The tree of this shape whose nodes hold the tokens of their ranks."""
    B, K, R = tokens_BKR.shape
    at_N = np.maximum(shape.depth - 1, 0) * R + shape.rank

    def of_nodes(values_BKR: jax.Array, root: jax.Array | float) -> jax.Array:
        flat = jnp.reshape(values_BKR, (B, K * R), out_sharding=P("data", None))
        return jnp.where(shape.depth == 0, root, flat[:, at_N])

    def of_rows(constant: np.ndarray) -> jax.Array:
        return jnp.broadcast_to(constant, (B, *constant.shape), out_sharding=P("data", *[None] * constant.ndim))

    own_BN = of_nodes(logp_BKR, 0.0)
    scores_BN = jnp.sum(jnp.where(shape.ancestors, own_BN[:, None, :], 0.0), axis=-1)
    constants = map(of_rows, (shape.parent, shape.depth, np.ones(len(shape.depth), bool), shape.ancestors))
    return Tree(of_nodes(tokens_BKR, g_B[:, None]), *constants, scores_BN)
