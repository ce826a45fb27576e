"""Each stage of a round against a slow, obvious loop in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from redrafter_jax.decode import commit, pack, sample
from redrafter_jax.decode.propose import recurrent, search
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.model import cache
from tests import support
from tests.support import put

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape, k", [((2, 3, 503), 5), ((1, 4, 5000), 7), ((3, 1, 4097), 1), ((2, 2, 6), 6), ((1, 2, 4001), 150)])
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_is_exact_also_among_ties_and_in_blocks(shape, k, ties):
    x = RNG.integers(0, 9, shape).astype(np.float32) if ties else RNG.normal(size=shape).astype(np.float32)
    values, index = jax.jit(sample.top_k, static_argnums=1)(put(x), k)
    expected = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis=-1))


@pytest.mark.parametrize("temperature, top_k, top_p", [(0.5, 0, 1.0), (1.0, 7, 1.0), (1.3, 0, 0.8), (0.8, 20, 0.6), (2.0, 3, 0.01)])
def test_filters_keep_what_transformers_keeps(temperature, top_k, top_p):
    logits = RNG.normal(size=(2, 3, 60)).astype(np.float32) * 2
    expected = torch.tensor(logits.reshape(6, 60)) / temperature
    if top_k:
        expected = logits_process.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = logits_process.TopPLogitsWarper(top_p)(None, expected)
    found = sample.warp(support.policy(2, temperature, top_k, top_p), put(logits))
    np.testing.assert_allclose(np.asarray(found).reshape(6, 60), expected.numpy(), rtol=1e-5)


def test_noise_belongs_to_seed_and_position():
    how = support.policy(2, 1.0, seeds=[3, 4])
    early, late = (sample.noise(how, put([5, 9], np.int32), 4, 16), sample.noise(how, put([7, 9], np.int32), 4, 16))
    np.testing.assert_array_equal(early[0, 2:], late[0, :2])
    np.testing.assert_array_equal(early[1], late[1])
    alone = sample.noise(support.policy(1, 1.0, seeds=[4]), put([9], np.int32), 4, 16)
    np.testing.assert_array_equal(alone[0], early[1])
    assert sample.noise(support.policy(2), put([5, 9], np.int32), 4, 16) is None


def test_beam_search_is_an_exhaustive_ranking_step_by_step(mha):
    target, drafter = mha
    W, L, row = 5, 3, np.random.default_rng(1)
    h, g = row.normal(size=(1, 64)).astype(np.float32), 17
    beams = recurrent.draft(target, drafter, put(h), put([g], np.int32), W, L)
    alive = [((g,), 0.0, np.zeros((1, 64), np.float32))]
    for _ in range(L):
        grown = []
        for tokens, score, state in alive:
            state = drafter.advance(put(state), target.embed(put([tokens[-1]], np.int32)))
            z = drafter.exit(drafter.context(put(h)), state)
            logp = np.asarray(jax.nn.log_softmax(drafter.unembed(z, target)[0]))
            grown += [((*tokens, v), score + logp[v], state) for v in range(503)]
        alive = sorted(grown, key=lambda item: -item[1])[:W]
    tokens, scores = search.sequences(beams)
    assert [tuple(beam) for beam in np.asarray(tokens)[0].tolist()] == [item[0][1:] for item in alive]
    np.testing.assert_allclose(scores[0, :, -1], [item[1] for item in alive], atol=1e-4)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_cut_distribution_is_renormalised_over_its_best_tokens_and_leaves_as_many_as_beams(cut):
    logits, before, W = RNG.normal(size=(2, 3, 40)).astype(np.float32), RNG.normal(size=(2, 3)).astype(np.float32), 3
    tokens, parents, scores = search.expand(put(logits), put(before), cut)
    for row in range(2):
        found = []
        for beam, token in itertools.product(range(W), range(40)):
            best = np.sort(logits[row, beam])[::-1][: max(cut, W)]
            if logits[row, beam, token] >= best[-1]:
                score = before[row, beam] + logits[row, beam, token] - np.log(np.exp(best).sum())
                found.append((score, beam, token))
        expected = sorted(found, reverse=True)[:W]
        assert list(zip(parents[row].tolist(), tokens[row].tolist(), strict=True)) == [item[1:] for item in expected]
        np.testing.assert_allclose(scores[row], [item[0] for item in expected], atol=1e-5)


def random_beams(W: int, L: int, vocab: int = 4) -> search.Beams:
    """A trellis as a search could leave it: (parent, token) pairs distinct within a step, scores falling, with ties."""
    tokens, parents, scores = np.zeros((L, W), int), np.zeros((L, W), int), np.full((L, W), -np.inf)
    alive = 1
    for step in range(L):
        pairs = RNG.permutation([(p, v) for p in range(alive) for v in range(vocab)])[:W]
        before = scores[step - 1] if step else np.zeros(W)
        found = [before[p] - RNG.integers(0, 3) / 2 for p, _ in pairs]
        order = np.argsort(-np.array(found), kind="stable")
        alive = len(pairs)
        parents[step, :alive], tokens[step, :alive] = pairs[order].T
        scores[step, :alive] = np.array(found)[order]
    return search.Beams(*(put(x[None], d) for x, d in ((tokens, np.int32), (parents, np.int32), (scores, np.float32))))


def expected_nodes(beams: search.Beams, kind: str, budget: int) -> set[tuple[int, ...]]:
    """The prefixes that should be nodes: all candidates, sorted by score, then depth, then beam, cut at the budget."""
    tokens, parents, scores = (np.asarray(x[0]) for x in (beams.tokens, beams.parents, beams.scores))
    L, W = tokens.shape
    prefix = {(-1, 0): ()}
    found: dict[tuple[int, ...], tuple] = {}
    for step in range(L):
        for beam in range(W):
            if scores[step, beam] > -np.inf:
                prefix[step, beam] = (*prefix[step - 1, parents[step, beam] if step else 0], tokens[step, beam])
                found[prefix[step, beam]] = (-scores[step, beam], step, beam)
    if kind == "beams":
        last = [prefix[L - 1, beam] for beam in range(W) if (L - 1, beam) in prefix]
        kept = {}
        for beam, whole in enumerate(last):
            for depth in range(1, L + 1):
                kept.setdefault(whole[:depth], (found[whole[:depth]][0], depth, beam))
        found = kept
    return set(sorted(found, key=found.get)[: budget - 1])


@pytest.mark.parametrize("kind", ["search", "beams"])
@pytest.mark.parametrize("W, L, budget", [(1, 3, 0), (3, 3, 0), (4, 4, 9), (6, 3, 5), (8, 5, 24), (5, 2, 2)])
def test_a_tree_is_the_likeliest_prefixes_in_topological_order_within_its_budget(kind, W, L, budget):
    for _ in range(8):
        beams = random_beams(W, L)
        N = pack.nodes(W, L, budget)
        tree = jax.tree.map(lambda x: np.asarray(x[0]), pack.pack(put([9], np.int32), beams, kind, budget))
        assert tree.tokens.shape == (N,) and tree.tokens[0] == 9 and tree.depth[0] == 0
        prefixes = {0: ()}
        for node in np.flatnonzero(tree.valid)[1:]:
            assert tree.parent[node] < node and tree.depth[node] == tree.depth[tree.parent[node]] + 1
            prefixes[node] = (*prefixes[tree.parent[node]], tree.tokens[node])
            lineage = {other for other, p in prefixes.items() if prefixes[node][: len(p)] == p}
            assert set(np.flatnonzero(tree.ancestors[node])) == lineage
        drafted = [p for p in prefixes.values() if p]
        assert len(set(drafted)) == len(drafted)
        assert set(drafted) == expected_nodes(beams, kind, N)


@pytest.mark.parametrize("N", [1, 5])
@pytest.mark.parametrize("write", [cache.by_buffer, cache.by_row])
@pytest.mark.parametrize("mesh_shape", [(1, 1), (2, 4)], ids=str)
def test_keys_and_values_are_written_behind_each_rows_own_length(mesh_shape, write, N):
    B, start = 8, np.arange(8) * 3 + 1
    buffers, new = (tuple(RNG.normal(size=(B, 4, slots, 8)) for _ in range(4)) for slots in (32, N))
    expected = [buffer.copy() for buffer in buffers]
    for (layer, buffer), row in itertools.product(enumerate(expected), range(B)):
        buffer[row, :, start[row] : start[row] + N] = new[layer][row]
    with jax.set_mesh(make_mesh(*mesh_shape)):
        place = lambda arrays: tuple(jax.device_put(x.astype(np.float32), cache.CACHE_SPEC) for x in arrays)  # noqa: E731
        written = jax.jit(write)(place(buffers), place(new), put(start))
    for ours, theirs in zip(written, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.int32, bool])
def test_new_tokens_are_written_from_each_rows_count_on(dtype):
    text, new, start, count = (
        RNG.integers(0, 2, (4, 12)),
        RNG.integers(0, 2, (4, 4)),
        np.array([0, 8, 5, 11]),
        np.array([4, 4, 2, 0]),
    )
    expected = text.copy()
    for row in range(4):
        expected[row, start[row] : start[row] + count[row]] = new[row, : count[row]]
    written = jax.jit(commit.write)(put(text, dtype), put(new, dtype), put(start), put(count))
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, expected.astype(dtype))


def test_a_row_ends_at_the_first_stop_id_within_what_was_accepted_or_at_its_limit():
    emitted = put([[5, 2, 7, 2], [5, 6, 7, 2], [1, 1, 1, 1], [2, 5, 5, 5]], np.int32)
    new, count, limit = put([4, 3, 4, 1], np.int32), put([10, 10, 10, 0], np.int32), put([50, 50, 12, 9], np.int32)
    total, stopped = commit.ends(emitted, new, count, limit, jnp.array([[2, -1]] * 4))
    assert total.tolist() == [12, 13, 12, 1]
    assert stopped.tolist() == [True, False, True, True]


@pytest.mark.parametrize("mesh_shape", [(1, 1), (2, 4)], ids=str)
def test_the_targets_choice_is_the_first_of_the_largest_and_not_finite_where_a_logit_is_not(mesh_shape):
    x = np.round(RNG.normal(size=(2, 6, 64))).astype(np.float32)
    x[0, 1, 40] = x[0, 1, 50] = np.nan
    x[0, 2, 9], x[1, 3], x[1, 4, 5] = np.inf, -np.inf, -np.inf
    with jax.set_mesh(make_mesh(*mesh_shape)):
        tokens, finite = jax.jit(sample.choose)(jax.device_put(x, jax.P("data", None, "model")), None)
    np.testing.assert_array_equal(tokens, np.argmax(x, axis=-1))  # of NaNs the first, as NumPy has it
    assert np.argwhere(~np.asarray(finite)).tolist() == [[0, 1], [0, 2], [1, 3]]
