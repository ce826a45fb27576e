"""Medusa's static tree: its buffers against a slow form, its growth, and what it fills in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode.propose import medusa
from redrafter_jax.decode.propose.medusa import PUBLISHED, Medusa, grow, static_tree
from redrafter_jax.errors import BadInput
from redrafter_jax.model.medusa import MedusaHeads
from tests import support


@pytest.fixture(scope="module")
def heads(mha):
    return support.medusa_heads(mha[0].config)


def test_the_published_tree_is_the_published_one():
    tree = static_tree(PUBLISHED)
    assert len(tree.depth) == 64 and np.bincount(tree.depth).tolist() == [1, 10, 28, 23, 2]


def slow_buffers(paths):
    """Ancestors, depths and parents by the description: nodes sorted by length and then rank, the root first."""
    nodes = [()] + sorted(paths, key=lambda path: (len(path), path))
    ancestors = [[other == node[: len(other)] for other in nodes] for node in nodes]
    return nodes, np.array(ancestors), [len(node) for node in nodes], [nodes.index(node[:-1]) for node in nodes]


@pytest.mark.parametrize("paths", [PUBLISHED, ((0,),), ((1,), (0,), (1, 2), (1, 2, 0), (0, 0))], ids=["published", "one", "odd"])
def test_a_tree_has_the_buffers_of_the_slow_form(paths):
    nodes, ancestors, depth, parent = slow_buffers(paths)
    tree = static_tree(paths)
    assert (tree.ancestors == ancestors).all() and tree.depth.tolist() == depth and tree.parent.tolist() == parent
    assert tree.rank.tolist() == [node[-1] if node else 0 for node in nodes]


def test_paths_that_make_no_tree_are_refused():
    for paths, word in [(((0, 1),), "without"), (((0,), (0,)), "twice"), (((),), "ranks"), (((-1,),), "ranks")]:
        with pytest.raises(BadInput, match=word):
            static_tree(paths)


def test_a_tree_grows_by_the_likeliest_paths():
    accuracy = np.array([[0.6, 0.2, 0.1], [0.5, 0.1, 0.05], [0.3, 0.2, 0.1]])
    every = [path for K in (1, 2, 3) for path in np.ndindex(*[3] * K)]
    weights = {path: float(np.prod([accuracy[k, r] for k, r in enumerate(path)])) for path in every}
    likeliest = sorted(weights.values(), reverse=True)
    for nodes in (2, 5, 9, 17):
        paths = grow(accuracy, nodes)
        assert len(paths) == nodes - 1 and len(set(paths)) == nodes - 1
        np.testing.assert_allclose(sorted((weights[path] for path in paths), reverse=True), likeliest[: nodes - 1])
        static_tree(paths)
    assert len(grow(accuracy, 1000)) == 3 + 9 + 27


def test_a_tree_is_filled_with_the_likeliest_tokens_of_each_head(mha, heads):
    target, paths = mha[0], ((0,), (1,), (0, 2), (0, 2, 1))
    state = support.started(target, [[5, 9, 200, 3], [7, 7]], 20, 3)
    tree, _ = Medusa(heads, paths).propose(target, state.view(), ())
    h = np.asarray(state.h)
    for row in range(2):
        ranked, logs = [], []
        for blocks in heads.blocks:
            z = h[row]
            for block in blocks:
                y = z @ np.asarray(block.weight[...]) + np.asarray(block.bias[...])
                z = z + y / (1 + np.exp(-y))
            logits = z @ np.asarray(target.lm_head[...])
            ranked.append(np.argsort(-logits))
            logs.append(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        expected = [int(state.g[row]), ranked[0][0], ranked[0][1], ranked[1][2], ranked[2][1]]
        assert np.asarray(tree.tokens)[row].tolist() == expected
        deepest = logs[0][ranked[0][0]] + logs[1][ranked[1][2]] + logs[2][ranked[2][1]]
        np.testing.assert_allclose(np.asarray(tree.scores)[row, -1], deepest, rtol=1e-4)
    assert np.asarray(tree.parent).tolist() == [[0, 0, 0, 1, 3]] * 2


def test_heads_of_their_own_and_a_draft_vocabulary_make_the_same_tree(mha):
    target = mha[0]
    state = support.started(target, [[5, 9, 200, 3]], 20, 3)
    tied = support.medusa_heads(target.config)
    own = support.medusa_heads(target.config, tied=False)
    for mine, theirs in zip(own.blocks, tied.blocks, strict=True):
        mine[0].weight[...], mine[0].bias[...] = theirs[0].weight[...], theirs[0].bias[...]
    for lm_head in own.lm_heads:
        lm_head[...] = target.lm_head[...]
    paths = ((0,), (1,), (0, 0), (0, 0, 0), (0, 0, 0, 0))
    expected = medusa.Medusa(tied, paths).propose(target, state.view(), ())[0]
    found = medusa.Medusa(own, paths).propose(target, state.view(), ())[0]
    assert np.asarray(found.tokens).tolist() == np.asarray(expected.tokens).tolist()
    most = sorted({*np.asarray(expected.tokens)[0].tolist(), *range(0, target.config.vocab_size, 3)})
    few = support.medusa_heads(target.config, draft_vocab=len(most))
    few = MedusaHeads(jax.random.key(0), few.config, ids=jnp.asarray(most))
    for mine, theirs in zip(few.blocks, tied.blocks, strict=True):
        mine[0].weight[...], mine[0].bias[...] = theirs[0].weight[...], theirs[0].bias[...]
    found = medusa.Medusa(few, paths[2:3] + paths[:1]).propose(target, state.view(), ())[0]
    assert set(np.asarray(found.tokens)[0].tolist()) <= set(most)
    assert np.asarray(found.tokens)[0, 1] == np.asarray(expected.tokens)[0, 1]


def test_a_tree_deeper_than_the_heads_is_refused(mha, heads):
    with pytest.raises(BadInput, match="heads"):
        Medusa(heads, ((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0, 0))).prepare(mha[0])
