"""The seam between a way to draft and the rest of decoding: what a proposer sees, and the calls that a round makes of it.

    prepare(target)               -> Proposer       once, before anything is compiled
    begin(target, view, read)     -> memory         once per batch, at the end of the prefill
    propose(target, view, memory) -> Tree, memory   each round
    accept(memory, tree, verdict) -> memory         each round, once the target has decided

A proposer that reads prompts itself, as a small model does, may read them beside the target, a chunk at a time:

    unread(rows, slots)           -> read           before the first chunk
    read(read, chunk)             -> read           each chunk
    kept(memory)                  -> read           of a row whose prompt another one begins with

A proposer is a pytree of weights. Prefill, verify and commit know its `Round` and nothing else of it.
"""

import abc
import dataclasses
from typing import Any

import jax

from redrafter_jax.decode.adjust import History
from redrafter_jax.decode.chunk import Chunk
from redrafter_jax.decode.pack import Tree
from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.verify import Verdict
from redrafter_jax.model.target import Target

Memory = Any
"""A pytree of arrays, rows first, that a proposer carries from round to round: ``()``, a cache, an index."""


@dataclasses.dataclass(frozen=True)
class Round:
    """The static sizes of a round. length: L, the depth of its tree; nodes: N, the nodes of its tree with the root."""

    length: int
    nodes: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """All that a proposer may see of decoding.

    g:      ``[B]``        the token already decided that is not yet in the cache: the root of the tree
    h:      ``[B, D + F*D]``  the target's hidden state of the newest token in the cache, and behind it the proposer's `features`;
                           before a proposer that has none there may be any
    tokens: ``[B, S]``     every token so far at its cache slot: prompt, reply, and g at slot ``length``
    length: ``[B]``        tokens in the cache
    policy: how each row samples
    noise:  ``[B, L, V]``  what the target will add to its logits at the next L positions; None where it is not shown
    history: what the target's logits are adjusted by, besides the path to a node; None where no row adjusts them
    """

    g: jax.Array
    h: jax.Array
    tokens: jax.Array
    length: jax.Array
    policy: Policy
    noise: jax.Array | None = None
    history: History | None = None


class Proposer(abc.ABC):
    """A way to draft: a frozen dataclass that is a pytree of its weights, with its options as static fields.

    A proposal changes how many tokens a round delivers, never the text. What is proposed for a row that is done is ignored.
    """

    @property
    @abc.abstractmethod
    def round(self) -> Round:
        """The sizes of every round."""

    @property
    def name(self) -> str:
        """In few words, for people."""
        return f"{self.round.length} deep, {self.round.nodes} nodes"

    def in_shape(self, shape: Any) -> "Proposer | None":
        """The same, once it is prepared, with a search of another `Shape`, from the same arrays; None where it has no other."""
        return None

    @property
    def draws(self) -> bool:
        """Whether it can draw its drafts from distributions that it tells (`Tree.drawn`), which the rule `rejection` needs."""
        return False

    @property
    def features(self) -> tuple[int, ...]:
        """Layers of the target, counted from 0, whose outputs it reads behind the hidden state, once it is prepared."""
        return ()

    def within(self, round: Round) -> "Proposer":
        """The proposer as a part of a larger round, such as a union's, after `prepare`."""
        return self

    @abc.abstractmethod
    def propose(self, target: Target, view: View, memory: Memory) -> tuple[Tree, Memory]:
        """The tree to score: N nodes, at most L deep, with g at its root."""

    def prepare(self, target: Target) -> "Proposer":
        """The proposer as it decodes, made once, on the mesh of the target.

        Raises:
          BadInput: it does not fit the target.
        """
        return self

    def begin(self, target: Target, view: View, read: Memory = None) -> Memory:
        """The memory behind the prompt and the first choice g. read: what `read` has made of the prompt; None where it has not read
        any of it."""
        return ()

    def unread(self, rows: int, slots: int) -> Memory:
        """What `read` begins with; None (the default) for a proposer that does without: `begin` has all tokens."""
        return None

    def read(self, read: Memory, chunk: Chunk) -> Memory:
        """With the next chunk of the prompt; what ``read`` has from ``chunk.start`` on counts for nothing."""
        return read

    def kept(self, memory: Memory) -> Memory:
        """What of a row's memory `read` could go on from, with the same shapes as `unread`. None by default."""
        return None

    def accept(self, memory: Memory, tree: Tree, verdict: Verdict) -> Memory:
        """The memory after ``verdict.accepted`` drafted tokens of the tree, which may be 0, went into the target's cache."""
        return memory
