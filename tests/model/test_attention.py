"""Parts of the keys, attended to one by one and joined, against one softmax over all of them written out in NumPy."""

import jax
import numpy as np
import pytest

from redrafter_jax.model import attention
from tests.support import put


def one_softmax(q, k, v, visible) -> np.ndarray:
    scores = np.where(visible[:, None], np.einsum("bkmc,bksc->bkms", q, k) / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bkms,bksc->bkmc", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("sizes", [(7,), (5, 3), (4, 1, 6)])
def test_parts_that_are_joined_are_one_softmax(sizes):
    rng, B, K, M, C = np.random.default_rng(0), 2, 2, 3, 8
    arrays = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    q, keys, values = 3 * arrays(B, K, M, C), [arrays(B, K, S, C) for S in sizes], [arrays(B, K, S, C) for S in sizes]
    masks = [rng.random((B, M, S)) < 0.6 for S in sizes]
    masks[0][0] = False  # a row whose cache is empty
    masks[-1][:, :, 0] = True
    if len(sizes) == 1:
        masks[0][:] = True
    parts = [attention.part(put(q), *map(put, each)) for each in zip(keys, values, masks, strict=True)]
    expected = one_softmax(q, *(np.concatenate(each, axis=axis) for each, axis in ((keys, 2), (values, 2), (masks, 2))))
    np.testing.assert_allclose(attention.joined(parts), expected, atol=1e-5)


def test_a_part_of_which_nothing_is_visible_weighs_nothing():
    rng = np.random.default_rng(1)
    q, k, v = (put(rng.normal(size=(1, 1, 2, 4)).astype(np.float32)) for _ in range(3))
    seen, unseen = (put(np.full((1, 2, 2), each)) for each in (True, False))
    both = attention.joined([attention.part(q, k, 1e6 * v, unseen), attention.part(q, k, v, seen)])
    np.testing.assert_array_equal(both, attention.joined([attention.part(q, k, v, seen)]))


def test_a_row_that_sees_nothing_at_all_is_finite():
    q = put(np.ones((1, 1, 2, 4), np.float32))
    parts = [attention.part(q, q, q, put(np.zeros((1, 2, 2), bool))) for _ in range(2)]
    assert bool(jax.numpy.all(jax.numpy.isfinite(attention.joined(parts))))
