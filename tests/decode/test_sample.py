"""top-k and top-p keep what they kept when every pass read the whole vocabulary, and what a sort keeps."""

import functools
import re

import jax
import jax.extend.core
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import sample
from redrafter_jax.devices.mesh import make_mesh
from tests import support

V = 640


@functools.cache
def rows() -> np.ndarray:
    """Logits ``[8, 3, V]``: ordinary, with few distinct values, flat, falling slowly, with -inf, and one token alone."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 3, V)) * 2
    logits[1] = rng.integers(0, 5, (3, V))
    logits[2] = 0.5
    logits[3] = rng.permuted(np.broadcast_to(-np.arange(V) / 300, (3, V)), axis=1)
    logits[4, :, rng.random(V) < 0.9] = -np.inf
    logits[5, :, 1:] = -np.inf
    logits[6, :, : V // 2] = 7.0  # ties at the top, on some shards alone
    logits[7] = np.where(rng.random((3, V)) < 0.5, 0.0, -0.0)
    return logits.astype(np.float32)


def of_sort(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """What is kept, by sorting: k values and the ties with the last one; of these, as many as have less than top_p before them."""
    kept = np.zeros(logits.shape, bool)
    for at in np.ndindex(logits.shape[:-1]):
        row = logits[at].astype(np.float64)
        first = np.sort(row)[::-1][: top_k or V]
        mass = np.exp(first - first[0])
        before = np.array([mass[first > value].sum() for value in first])
        enough = first[before < (top_p if top_p < 1 else np.inf) * mass.sum()]
        kept[at] = (row >= enough.min()) & (row > -np.inf)
    return kept


FILTERS = [
    (1, 1.0), (7, 1.0), (8, 1.0), (9, 1.0), (V, 1.0), (0, 1e-6), (0, 0.3), (0, 0.9), (0, 0.999), (6, 0.7), (100, 0.95), (3, 0.01),
]  # fmt: skip


@pytest.mark.parametrize("mesh, find", [((1, 1), "_largest"), ((2, 4), "_largest"), ((1, 8), "_largest_blocks")], ids=str)
def test_filters_keep_what_a_sort_keeps_wherever_the_cut_lies(mesh, find, monkeypatch):
    monkeypatch.setattr(sample, "_largest", getattr(sample, find))  # what other platforms than this one take
    monkeypatch.setattr(sample, "WORTH_SELECTING", V)
    monkeypatch.setattr(sample, "SHARE", 80)  # 8 of these tokens
    jax.set_mesh(make_mesh(*mesh))
    warp = jax.jit(lambda policy, logits: sample.warp(policy, logits))  # a program of its own, which no other test finds
    logits = rows()
    on_mesh = jax.device_put(logits, P("data", None, "model"))
    for top_k, top_p in FILTERS:
        found, kept = np.asarray(warp(support.policy(8, 1.0, top_k, top_p), on_mesh)), of_sort(logits, top_k, top_p)
        np.testing.assert_array_equal(found > -np.inf, kept, err_msg=f"top_k {top_k}, top_p {top_p}")
        np.testing.assert_array_equal(found[kept], logits[kept])


@pytest.mark.parametrize("find", ["_largest", "_largest_blocks"])
@pytest.mark.parametrize("worth", [V, V + 1], ids=["selected", "searched"])
def test_every_row_is_cut_by_its_own_filter_whatever_those_beside_it_have(worth, find, monkeypatch):
    monkeypatch.setattr(sample, "_largest", getattr(sample, find))
    monkeypatch.setattr(sample, "WORTH_SELECTING", worth)
    monkeypatch.setattr(sample, "SHARE", 80)
    warp = jax.jit(lambda policy, logits: sample.warp(policy, logits))
    logits = rows()
    off = (0, 1.0)
    for filters in (
        [off, (5, 1.0), off, (0, 0.9), (3, 0.5), off, off, (0, 0.2)],  # some need the whole vocabulary, and some need nothing
        [(0, 0.9), off, (0, 0.3), off, off, off, (0, 0.5), off],  # no top-k at all
        [(7, 1.0), off, (2, 1.0), off, (5, 1.0), off, off, off],  # no top-p at all
    ):
        temperatures = [0.5, 1.0, 2.0, 4.0, 0.25, 1.0, 0.0, 2.0]  # a division by each is exact
        top_k, top_p = zip(*filters, strict=True)
        found = np.asarray(warp(support.policy(8, temperatures, top_k, top_p), logits))
        for row, temperature in enumerate(temperatures):
            scaled = logits[row] / np.float32(temperature or 1.0)
            kept = of_sort(scaled, *(filters[row] if temperature else off))
            np.testing.assert_array_equal(found[row], np.where(kept, scaled, -np.inf), err_msg=f"row {row} of {filters}")


def test_noise_is_0_for_greedy_rows_and_shown_where_the_rule_says():
    rules = ["coupled", "coupled", "independent", "typical"]
    policy = support.policy(4, [0.0, 1.0, 0.5, 2.0], rule=rules, seeds=[3, 3, 4, 5])
    noise = sample.noise(policy, support.put([7, 7, 7, 7]), 3, V)
    shown = sample.show_noise(policy, noise)
    assert noise.shape == (4, 3, V) and shown.shape == (4, 2, V)
    for row, seed in enumerate([None, 3, 4, 5]):
        of = lambda position: jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (V,))  # noqa: E731, B023
        expected = np.zeros((3, V)) if seed is None else np.stack([of(position) for position in (7, 8, 9)])
        np.testing.assert_array_equal(noise[row], expected)
        np.testing.assert_array_equal(shown[row], expected[:2] if row == 1 else np.zeros((2, V)))
    greedy = support.policy(2)
    assert sample.noise(greedy, support.put([1, 1]), 3, V) is None and sample.show_noise(greedy, None) is None
    unseen = support.policy(2, 1.0, rule="independent")
    assert sample.show_noise(unseen, sample.noise(unseen, support.put([1, 1]), 3, V)) is None


def logits_of(vocab: int) -> jax.Array:
    return jax.device_put(np.zeros((1, 2, vocab), np.float32), P("data", None, "model"))


def loops(jaxpr, size: int, branches: int = 0) -> list[int]:
    """Of every loop that reads an array with an axis as long as the vocabulary: the number of branches that it lies in."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("while", "scan") and any(size in var.aval.shape for var in equation.invars):
            found.append(branches)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += loops(inner, size, branches + (equation.primitive.name == "cond"))
    return found


def test_the_whole_vocabulary_is_searched_in_a_branch_alone():
    search = functools.partial(sample._smallest_kept_of_largest, find=sample._largest)
    jaxpr = jax.make_jaxpr(search)(support.policy(1, 1.0, 50, 0.9), logits_of(32000))
    assert loops(jaxpr.jaxpr, 32000) == [2, 2]  # if a row needs it, and if there is a top-k, or a top-p
    assert len(loops(jaxpr.jaxpr, 32000 // sample.SHARE)) == 2


def test_the_vocabulary_is_not_sorted_for_its_largest_logits():
    """Which XLA:CPU does for a top-k that is sliced, at ten times the cost."""
    program = jax.jit(sample.warp).lower(support.policy(1, 1.0, 50, 0.9), logits_of(32000)).compile().as_text()
    assert "TopK" in program and not re.search(r"32000\S* sort\(", program)


def test_top_p_keeps_no_more_than_it_needs_where_the_likeliest_have_just_its_share():
    logits = np.full((1, 1, 64), -100.0, np.float32)
    logits[..., :3] = 0, np.log(0.5), np.log(0.5)  # half of the probability, a quarter and a quarter
    for top_p, kept in ((0.5, 1), (0.51, 3), (0.49, 1)):
        warped = sample.warp(support.policy(1, 1.0, top_p=top_p), support.put(logits))
        assert np.isfinite(np.asarray(warped)).sum() == kept
