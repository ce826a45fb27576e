"""What of a head is tuned, by its kind: a recurrent head searches in any shape; Medusa's heads have one tree, of which a budget
keeps the first nodes."""

from collections.abc import Mapping, Sequence

from infer.tune import points
from infer.tune.points import Point
from redrafter_jax.decode.propose.heads import default_shape_of, proposer_of_head, tree_of
from redrafter_jax.decode.propose.medusa import cut, static_tree
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.request import DRAFT_TOP_K
from redrafter_jax.errors import BadInput
from redrafter_jax.files.heads import Head, HeadConfig
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.medusa import MedusaConfig
from redrafter_jax.model.target import Target


def grid(heads: Mapping[str, HeadConfig], beams: Sequence[tuple[int, int]], nodes: Sequence[int]) -> list[Point]:
    """The points of all heads, by their names."""
    found = []
    for name, config in heads.items():
        is_recurrent = isinstance(config, DrafterConfig)
        found += points.grid(beams, [name], nodes, DRAFT_TOP_K) if is_recurrent else _parts(name, config, nodes)
    return found


def _parts(name: str, config: MedusaConfig, nodes: Sequence[int]) -> list[Point]:
    """The parts of a tree that budgets leave, and all of it. A budget whose first paths make no tree is passed over."""
    whole, paths = default_shape_of(config, Shape()), tree_of(config)
    found = []
    for budget in [*sorted(count for count in nodes if count < whole.budget), whole.budget]:
        point = Point(name, whole.width, whole.length, budget, 0)
        try:
            static_tree(cut(paths, shape_of(point)))
        except BadInput:
            continue
        found.append(point)
    return found


def shape_of(point: Point) -> Shape:
    """The shape that the other commands make of a choice."""
    return Shape(point.width, point.length, point.budget, draft_top_k=point.draft_top_k)


def proposer_of(head: Head, point: Point, target: Target) -> Proposer:
    """What drafts as a point says."""
    return proposer_of_head(head, shape_of(point)).prepare(target)


def largest(head: Head, family: Sequence[Point], draft_top_k: int, target: Target) -> Proposer:
    """What drafts all that the points of one head and width draft."""
    length = max(point.length for point in family)
    return proposer_of_head(head, Shape(family[0].width, length, draft_top_k=draft_top_k)).prepare(target)
