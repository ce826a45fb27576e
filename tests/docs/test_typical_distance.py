"""The two figures of `docs/scripts/typical_distance.py`: near 0 for the target's own samples, and not for its greedy text."""

import sys

import numpy as np
import pytest

from redrafter_jax.decode.engine import Engine, Limits, Sampling
from tests import small
from tests.docs.pages import ROOT

PROMPT, TOKENS, SAMPLES = [1, 2, 3], 6, 96


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    import typical_distance

    yield typical_distance
    sys.modules.pop("typical_distance")


def test_greedy_text_is_far_from_the_samples_of_a_target_and_other_seeds_are_not(script):
    target, _ = small.models()
    engine = Engine(target)

    def decode(temperature: float, first: int) -> np.ndarray:
        seeds = range(first, first + SAMPLES)
        replies = engine.generate([PROMPT] * SAMPLES, Sampling(temperature), Limits(TOKENS), seeds, batch=SAMPLES)
        return np.array([reply.token_ids for reply in replies])[None]

    sampled, other, greedy = decode(1.0, 0), decode(1.0, SAMPLES), decode(0.0, 0)
    near, far = (script.total_variation(sampled, each) for each in (other, greedy))
    assert near < 0.6 < far
    mean, error = script.surprise(target, [PROMPT], sampled, 1.0, batch=SAMPLES)
    assert abs(mean) < 4 * error
    assert script.surprise(target, [PROMPT], greedy, 1.0, batch=SAMPLES)[0] < -10 * error


def test_the_distance_of_two_known_samples(script):
    one = np.array([[[0, 5], [0, 5], [1, 5], [1, 5]]])
    other = np.array([[[0, 7], [0, 7], [0, 7], [1, 5]]])
    assert script.total_variation(one, other) == pytest.approx((0.25 + 0.75) / 2)
    assert script.total_variation(one, one) == 0
