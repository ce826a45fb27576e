"""Prompt lookup and the union of two trees against slow, obvious loops."""

import dataclasses

import jax
import numpy as np
import pytest

from redrafter_jax.decode import pack
from redrafter_jax.decode.propose import lookup
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.proposer import View
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from tests import support
from tests.support import put

RNG = np.random.default_rng(0)


def found(text: list[int], longest: int, shortest: int, width: int, length: int) -> list[tuple[int, ...]]:
    """What followed the best matches of the end of a text, best first."""
    ends = []
    for end in range(len(text) - 1):
        matched = 0
        while matched < min(longest, end + 1) and text[end - matched] == text[len(text) - 1 - matched]:
            matched += 1
        ends.append((matched, end))
    best = [end for matched, end in sorted(ends, reverse=True)[:width] if matched >= shortest]
    return [tuple(text[end + 1 + ahead % (len(text) - 1 - end)] for ahead in range(length)) for end in best]


def view(texts: list[list[int]], slots: int = 24) -> View:
    """Rows of a cache with these tokens, and others behind them that mean nothing."""
    tokens = RNG.integers(0, 3, (len(texts), slots))
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    lengths = [len(text) - 1 for text in texts]
    return View(
        g=put([text[-1] for text in texts], np.int32), h=put(np.zeros((len(texts), 4)), np.float32),
        tokens=put(tokens, np.int32), length=put(lengths, np.int32), policy=support.policy(len(texts)),
    )  # fmt: skip


def prefixes_of(tree: pack.Tree, row: int) -> dict[tuple[int, ...], float]:
    """The drafted prefixes of a row with their scores; checks the tree's shape on the way."""
    tree = jax.tree.map(lambda x: np.asarray(x)[row], tree)
    prefixes = {0: ()}
    for node in np.flatnonzero(tree.valid)[1:]:
        assert tree.parent[node] < node and tree.depth[node] == tree.depth[tree.parent[node]] + 1
        assert tree.scores[node] <= tree.scores[tree.parent[node]]
        prefixes[node] = (*prefixes[tree.parent[node]], int(tree.tokens[node]))
        lineage = {other for other, p in prefixes.items() if prefixes[node][: len(p)] == p}
        assert set(np.flatnonzero(tree.ancestors[node])) == lineage
    assert len(set(prefixes.values())) == len(prefixes)
    return {prefix: float(tree.scores[node]) for node, prefix in prefixes.items() if prefix}


@pytest.mark.parametrize("mesh_shape", [(1, 1), (4, 2)], ids=str)
@pytest.mark.parametrize("longest, shortest, length, width", [(1, 1, 3, 1), (3, 1, 4, 2), (4, 2, 5, 3), (2, 2, 1, 1)])
def test_the_tree_is_what_followed_the_latest_of_the_longest_matches(mesh_shape, longest, shortest, length, width):
    how = Lookup(longest, shortest, length, width)
    matched = 0
    with jax.set_mesh(make_mesh(*mesh_shape)):
        for _ in range(10):
            texts = [RNG.integers(0, 4, RNG.integers(1, 20)).tolist() for _ in range(8)]
            tree, _ = jax.jit(how.propose)(None, view(texts), ())
            assert tree.tokens.shape == (8, how.round.nodes)
            for row, text in enumerate(texts):
                expected = found(text, longest, shortest, width, length)
                nodes = {sequence[: depth + 1] for sequence in expected for depth in range(length)}
                assert set(prefixes_of(tree, row)) == nodes
                matched += bool(nodes)
    assert 20 < matched < 80 or shortest == 1


def test_a_longer_match_is_trusted_more_and_a_longer_continuation_less():
    scores = np.asarray(lookup.prior(put([[1, 3], [2, 9]], np.int32), 4))
    assert (np.diff(scores, axis=-1) < 0).all()
    assert (scores[:, 1] > scores[:, 0]).all()
    assert scores[0, 0] == pytest.approx(np.cumsum(np.log(lookup.HIT_RATES[:4])), abs=1e-5)


def random_tree(vocab: int, width: int, length: int, budget: int) -> pack.Tree:
    tokens = RNG.integers(0, vocab, (1, width, length))
    steps = RNG.integers(0, 4, (1, width, length)) / 2  # with ties
    steps[:, :, 0] += np.arange(width)  # an earlier beam is the likelier, as in a search
    missing = np.arange(width) >= RNG.integers(0, width + 1)
    scores = np.where(missing[None, :, None], -np.inf, -np.cumsum(steps, axis=-1))
    first: dict[tuple, float] = {}  # the same prefix has the same score, as in a search
    for beam, step in np.ndindex(width, length):
        scores[0, beam, step] = first.setdefault(tuple(tokens[0, beam, : step + 1]), scores[0, beam, step])
        if step:
            scores[0, beam, step] = min(scores[0, beam, step], scores[0, beam, step - 1])
            first[tuple(tokens[0, beam, : step + 1])] = scores[0, beam, step]
    return pack.pack_sequences(put([9], np.int32), put(tokens, np.int32), put(scores, np.float32), budget)


@pytest.mark.parametrize("budget", [2, 5, 9, 30])
@pytest.mark.parametrize("vocab", [2, 3, 50])
def test_the_union_of_two_trees_is_the_likeliest_of_all_their_prefixes_each_once(vocab, budget):
    merge = jax.jit(pack.merge, static_argnums=(2, 3))
    for _ in range(10):
        one, other = random_tree(vocab, 3, 3, 8), random_tree(vocab, 2, 5, 11)
        ours, theirs = prefixes_of(one, 0), prefixes_of(other, 0)
        union = {p: max(ours.get(p, -np.inf), theirs.get(p, -np.inf)) for p in ours | theirs}
        tree = merge(one, other, budget, 5)
        kept = prefixes_of(tree, 0)
        assert len(kept) == min(budget - 1, len(union)) and all(union[p] == score for p, score in kept.items())
        best = sorted(union.values(), reverse=True)[: len(kept)]
        assert sorted(kept.values(), reverse=True) == best
        assert tree.tokens[0, 0] == 9


@dataclasses.dataclass(frozen=True)
class Counting(Lookup):
    """Remembers how many tokens were accepted, to see that a memory arrives where it belongs."""

    def begin(self, target, view, read=None):
        return view.length * 0

    def accept(self, memory, tree, verdict):
        return memory + verdict.accepted


def test_a_union_gives_each_its_own_memory_and_sizes_of_both(mha):
    jax.tree_util.register_dataclass(Counting, data_fields=[], meta_fields=["longest", "shortest", "length", "width"])
    from redrafter_jax.decode import loop

    union = Union(Counting(3, 1, 4, 2), Lookup(2, 2, 6), nodes=9)
    assert (union.round.length, union.round.nodes) == (6, 9) and Union(Lookup(), Lookup()).round.nodes == 13
    state = support.started(mha[0], [[5, 6, 7] * 4], 20, 6, proposer=union)
    state = loop.run(mha[0], union, state, 100)
    counted, nothing = state.memory
    histogram = np.asarray(state.histogram[0])
    assert nothing == () and histogram @ np.arange(7) <= int(counted[0]) <= histogram @ np.arange(7) + 6


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Lookup(longest=0), "longest should be from 1 to 16, not 0"),
        (lambda: Lookup(longest=2, shortest=3), "shortest should be at most longest, 2, not 3"),
        (lambda: Lookup(length=64, width=64), "width 64 and length 64 make 4097 nodes, over 4096"),
        (lambda: Union(Lookup(), Lookup(), -1).prepare(None), "nodes should be from 2 to 4096, or 0 for all, not -1"),
        (lambda: Union(Lookup(), Lookup(), 1).prepare(None), "nodes should be from 2 to 4096, or 0 for all, not 1"),
    ],
)
def test_what_cannot_be_looked_up_is_refused(make, said):
    with pytest.raises(BadInput) as caught:
        make()
    assert str(caught.value) == said
