"""Which proposer a head is: the one place where heads are told apart by their kind."""

from redrafter_jax.decode.propose.medusa import PUBLISHED, Medusa, Paths, cut
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.medusa import MedusaHeads


def proposer_of_head(head: Drafter | MedusaHeads, shape: Shape, paths: Paths | None = None) -> Proposer:
    """A recurrent head with the search that ``shape`` describes; Medusa's heads with at most as many nodes and as great a depth.

    Args:
      paths: of the tree of Medusa's heads, each before those that are less likely; None for the published tree.
    """
    if isinstance(head, Drafter):
        return Recurrent(head, shape)
    return Medusa(head, cut(PUBLISHED if paths is None else paths, shape))
