"""Which proposer drafts with a head or a small model: the one place where they are told apart by their kind."""

import dataclasses

from redrafter_jax.decode.propose.medusa import PUBLISHED, Medusa, Paths, cut
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.errors import BadInput
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.medusa import MedusaConfig, MedusaHeads
from redrafter_jax.model.target import Target, TargetConfig

CHAIN_TOKENS = 4  # that a small model drafts in a round by default, each of which costs a pass of it


def proposer_of_head(head: Drafter | MedusaHeads | Target, shape: Shape) -> Proposer:
    """A recurrent head or a small model with the search that ``shape`` describes; Medusa's heads with the part of their tree that
    has at most as many nodes and as great a depth.

    Raises:
      BadInput: the shape asks for a tree that Medusa's heads do not have.
    """
    if isinstance(head, Drafter):
        return Recurrent(head, shape)
    if isinstance(head, Target):
        return SmallModel(head, shape)
    if shape.tree != "search":
        raise BadInput(f"tree {shape.tree} is of a beam search, and the tree of Medusa's heads is a constant; leave it out")
    return Medusa(head, cut(tree_of(head.config), shape))


def default_shape_of(config: DrafterConfig | MedusaConfig | TargetConfig, otherwise: Shape) -> Shape:
    """The shape to decode with where none is asked for: the tree that Medusa's heads come with, a small model's chain, or
    ``otherwise``."""
    if isinstance(config, DrafterConfig):
        return otherwise
    if isinstance(config, TargetConfig):
        return Shape(1, CHAIN_TOKENS)
    paths = tree_of(config)
    depth = max(map(len, paths), default=0)
    return Shape(-(-len(paths) // max(depth, 1)), depth, 1 + len(paths), draft_top_k=0) if depth else Shape(1, 0)


def nodes_of(config: DrafterConfig | MedusaConfig | TargetConfig, shape: Shape) -> int:
    """Nodes of a round in which such a head drafts in this shape, the root included."""
    return 1 + len(cut(tree_of(config), shape)) if isinstance(config, MedusaConfig) else shape.nodes


def fit_shape(config: DrafterConfig | MedusaConfig | TargetConfig, shape: Shape) -> Shape:
    """The shape, less what these heads cannot draft: Medusa's draft no deeper than there are heads, and one tree alone."""
    if not isinstance(config, MedusaConfig):
        return shape
    return dataclasses.replace(shape, length=min(shape.length, config.num_heads), budget=shape.nodes, tree="search")


def tree_of(config: MedusaConfig) -> Paths:
    """The paths of these heads' tree, none deeper than there are heads."""
    paths = PUBLISHED if config.tree is None else config.tree
    return tuple(path for path in paths if len(path) <= config.num_heads)
