"""Two heads at once that read different layers of the target: each sees its own."""

import numpy as np
import pytest

from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.medusa import PUBLISHED, Medusa
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.union import Union
from tests import support

PROMPTS = [[5, 9, 200, 3], [7, 8]]


def paths_of(tree) -> list[set[tuple[int, ...]]]:
    """Of each row."""
    tokens, parent, valid = (np.asarray(part) for part in (tree.tokens, tree.parent, tree.valid))
    found = []
    for row in range(len(tokens)):
        paths = {0: ()}
        for node in range(1, tokens.shape[1]):
            if valid[row, node]:
                paths[node] = (*paths[int(parent[row, node])], int(tokens[row, node]))
        found.append(set(paths.values()))
    return found


def proposed(target, proposer) -> list[set[tuple[int, ...]]]:
    engine = Engine(target, proposer)
    state = support.started(engine.target, PROMPTS, 8, engine.proposer.round.length, proposer=engine.proposer)
    return paths_of(engine.proposer.propose(engine.target, state.view(), state.memory)[0])


@pytest.mark.parametrize("other", ["another head", "no features", "medusa"])
def test_each_part_of_a_union_reads_its_own_features(mha, other):
    target, head = mha
    one = Recurrent(support.with_features(head, (1,)), Shape(2, 2))
    beside = {
        "another head": Recurrent(support.with_features(head, (0, 1)), Shape(2, 3)),
        "no features": Recurrent(head, Shape(2, 3)),
        "medusa": Medusa(support.medusa_heads(target.config, scale=0.05), PUBLISHED[:7]),
    }[other]
    union = Union(one, beside)
    apart = [first | second for first, second in zip(proposed(target, one), proposed(target, beside), strict=True)]
    assert proposed(target, union) == apart == proposed(target, Union(beside, one))
    if other == "another head":
        plain, both = (list(Engine(target, way).generate(PROMPTS, Sampling(), Limits(12), batch=2)) for way in (None, union))
        assert [each.token_ids for each in plain] == [each.token_ids for each in both]
