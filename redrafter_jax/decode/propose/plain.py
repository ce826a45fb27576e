"""Plain autoregressive decoding: nothing is drafted, so that a round is one step of the target."""

import dataclasses

import jax

from redrafter_jax.decode.pack import Tree, root_only
from redrafter_jax.decode.propose.proposer import Memory, Proposer, Round, View
from redrafter_jax.model.target import Target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plain(Proposer):
    """The tree of the root alone."""

    @property
    def round(self) -> Round:
        return Round(length=0, nodes=1)

    @property
    def name(self) -> str:
        return "plain"

    @property
    def draws(self) -> bool:
        return True  # nothing

    def propose(self, target: Target, view: View, memory: Memory) -> tuple[Tree, Memory]:
        return root_only(view.g), memory
