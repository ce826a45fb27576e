"""Two proposers at once: their trees are merged, each prefix once, so that one pass of the target scores both."""

import dataclasses
from typing import Any

import jax

from redrafter_jax.decode.chunk import Chunk
from redrafter_jax.decode.pack import Tree, merge
from redrafter_jax.decode.propose.proposer import Memory, Proposer, Round, View
from redrafter_jax.decode.request import MAX_NODES
from redrafter_jax.decode.verify import Verdict
from redrafter_jax.errors import BadInput
from redrafter_jax.model.parts import all_features, pick_features
from redrafter_jax.model.target import Target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Union(Proposer):
    """The ``nodes`` likeliest of both trees by their scores, or all of them (0). Its memory is the pair of their memories.

    Raises:
      BadInput: there are too many nodes.
    """

    one: Proposer
    other: Proposer
    nodes: int = dataclasses.field(metadata={"static": True}, default=0)

    @property
    def round(self) -> Round:
        one, other = self.one.round, self.other.round
        most = one.nodes + other.nodes - 1
        return Round(max(one.length, other.length), min(self.nodes, most) if self.nodes else most)

    @property
    def name(self) -> str:
        return f"{self.one.name} with {self.other.name}"

    @property
    def features(self) -> tuple[int, ...]:
        return all_features((self.one.features, self.other.features))

    def in_shape(self, shape: Any) -> Proposer | None:
        """The first of both in that shape, whose budget is that of the union; the other as it is."""
        one = self.one.in_shape(shape)
        return one and dataclasses.replace(self, one=one, nodes=shape.budget)

    def prepare(self, target: Target) -> Proposer:
        if self.nodes == 1 or not 0 <= self.nodes <= MAX_NODES or self.round.nodes > MAX_NODES:
            raise BadInput(f"nodes should be from 2 to {MAX_NODES}, or 0 for all, not {self.nodes or self.round.nodes}")
        one, other = (each.prepare(target).within(self.round) for each in (self.one, self.other))
        return dataclasses.replace(self, one=one, other=other)

    def within(self, round: Round) -> Proposer:
        return dataclasses.replace(self, one=self.one.within(round), other=self.other.within(round))

    def begin(self, target: Target, view: View, read: Memory = None) -> Memory:
        one, other = (None, None) if read is None else read
        given = (self.one, one), (self.other, other)
        return tuple(part.begin(target, self._seen(view, part), its_own) for part, its_own in given)

    def unread(self, rows: int, slots: int) -> Memory:
        return self.one.unread(rows, slots), self.other.unread(rows, slots)

    def read(self, read: Memory, chunk: Chunk) -> Memory:
        one, other = read
        return self.one.read(one, chunk), self.other.read(other, chunk)

    def kept(self, memory: Memory) -> Memory:
        one, other = memory
        return self.one.kept(one), self.other.kept(other)

    def propose(self, target: Target, view: View, memory: Memory) -> tuple[Tree, Memory]:
        trees, memories = [], []
        for proposer, its_own in zip((self.one, self.other), memory, strict=True):
            tree, its_own = proposer.propose(target, self._seen(view, proposer), its_own)
            trees.append(tree)
            memories.append(its_own)
        with jax.named_scope("pack"):
            return merge(*trees, self.round.nodes, self.round.length), tuple(memories)

    def accept(self, memory: Memory, tree: Tree, verdict: Verdict) -> Memory:
        one, other = memory
        return self.one.accept(one, tree, verdict), self.other.accept(other, tree, verdict)

    def _seen(self, view: View, part: Proposer) -> View:
        """The view with the features that one of both reads, and the noise of the positions that it drafts."""
        noise = None if view.noise is None else view.noise[:, : part.round.length]
        return dataclasses.replace(view, h=pick_features(view.h, self.features, part.features), noise=noise)
