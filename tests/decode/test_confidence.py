"""Scores as acceptance: against the formula, what fills a budget then, and files. That the text stays is a property."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from redrafter_jax.decode import pack
from redrafter_jax.decode.propose import confidence, recurrent
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, weights
from redrafter_jax.model.confidence import Confidence
from tests import support
from tests.support import FITTED, put

DEEP = Confidence(((1.0, 0.0), (1.0, 6.0)), ((1.0, 0.0), (1.0, 6.0)))  # where a node is reached, what is behind it is too
ROWS = ((0.0, "coupled"), (1.0, "coupled"), (1.0, "independent"))


def fitted(head):
    """The head with a fit."""
    head = nnx.clone(head)
    head.config = dataclasses.replace(head.config, confidence=FITTED)
    return head


@pytest.fixture(scope="module")
def drafted(mha):
    """Beams of three rows, and how the rows sample."""
    target, head = mha
    rng = np.random.default_rng(3)
    h, g = put(rng.normal(size=(3, target.config.hidden_size)), np.float32), put([3, 4, 5], np.int32)
    beams = jax.jit(recurrent.draft, static_argnames=("width", "length"))(target, head, h, g, 3, 3)
    return g, beams, support.policy(3, [row[0] for row in ROWS], rule=[row[1] for row in ROWS])


def expected(beams) -> np.ndarray:
    """The scores ``[B, L, W]`` by the formula, one node after the other."""
    scores, parents = np.asarray(beams.scores, np.float64), np.asarray(beams.parents)
    found = np.array(scores)
    for row, fit in ((0, FITTED.greedy), (1, FITTED.sampled)):
        for depth in range(scores.shape[1]):
            slope, bias = fit[min(depth, 1)]
            for beam in range(scores.shape[2]):
                p = np.exp(scores[row, depth, beam])
                value = -np.log1p(np.exp(-(slope * np.log(p / (1 - p)) + bias)))
                above = found[row, depth - 1, parents[row, depth, beam]] if depth else 0.0
                found[row, depth, beam] = min(value, above)
    return found


def test_scores_become_acceptance_by_the_fit_of_the_rows_way_to_sample(drafted):
    _, beams, policy = drafted
    found = jax.jit(confidence.calibrate, static_argnums=1)(beams, FITTED, policy)
    np.testing.assert_allclose(found.scores, expected(beams), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.scores[2], beams.scores[2])  # a row that draws without showing
    assert confidence.calibrate(beams, None, policy) is beams


def test_certain_and_impossible_prefixes_stay_so(drafted):
    _, beams, policy = drafted
    scores = np.zeros_like(beams.scores)
    scores[:, -1, -1] = -np.inf
    found = confidence.calibrate(dataclasses.replace(beams, scores=put(scores)), FITTED, policy)
    np.testing.assert_array_equal(found.scores, scores)


def test_a_budget_is_filled_by_acceptance(drafted):
    g, beams, policy = drafted
    found = confidence.calibrate(beams, DEEP, policy)
    tree = pack.pack(g, found, "search", 6)
    for row in range(3):
        best = np.sort(np.ravel(found.scores[row]))[::-1][:5]
        np.testing.assert_allclose(np.sort(tree.scores[row, 1:])[::-1], best)
    assert tree.depth[0].sum() > pack.pack(g, beams, "search", 6).depth[0].sum()


def test_it_is_written_and_read(tmp_path, mha):
    weights.save_drafter(fitted(mha[1]), tmp_path)
    assert weights.load_drafter(tmp_path).config.confidence == FITTED


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"greedy": [[1, 0]]},
        {"greedy": [], "sampled": []},
        {"greedy": [[0, 0]], "sampled": [[1, 0]]},
        {"greedy": [[1]], "sampled": 3},
    ],
)
def test_what_is_no_fit_is_one_sentence(wrong, tmp_path, mha):
    weights.save_drafter(mha[1], tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {"confidence": wrong}
    with pytest.raises(BadInput, match="confidence in config.json should be lists of a slope and a bias for each depth"):
        config.drafter_config(fields)
