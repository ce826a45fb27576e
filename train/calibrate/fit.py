"""Acceptance as a logistic function of the score, for each depth (`redrafter_jax/decode/propose/confidence.py`)."""

import numpy as np

from redrafter_jax.model.confidence import MAX_NUMBER

PRIOR = 10.0  # nodes that a depth seems to have at slope 1 and bias 0, so that a depth without nodes keeps its scores
MIN_SLOPE = 0.05
NEWTON_STEPS = 50


def fit(rounds: dict[str, np.ndarray], depths: int) -> tuple[tuple[float, float], ...]:
    """(slope, bias) of each depth from 1 on: the likeliest, with a prior that the scores are right."""
    found = []
    for depth in range(1, depths + 1):
        here = rounds["valid"] & (rounds["depth"] == depth)
        slope, bias = _logistic(odds(rounds["score"][here]), rounds["accepted"][here].astype(np.float64))
        found.append((round(min(slope, MAX_NUMBER), 4), round(max(-MAX_NUMBER, min(bias, MAX_NUMBER)), 4)))
    return tuple(found)


def odds(score: np.ndarray) -> np.ndarray:
    """logit(p) of the log-probabilities, within ± 30."""
    score = np.clip(score.astype(np.float64), -30, -1e-13)
    return score - np.log(-np.expm1(score))


def apply(rounds: dict[str, np.ndarray], table: tuple[tuple[float, float], ...]) -> np.ndarray:
    """The log-probability ``[R, N]`` that each node is accepted, never above its parent's; 0 at the root."""
    depth = rounds["depth"]
    slope, bias = (np.asarray([(1.0, 0.0), *table])[depth, i] for i in (0, 1))
    value = np.where(depth == 0, 0.0, -np.logaddexp(0, -(slope * odds(rounds["score"]) + bias)))
    for _ in table:
        value = np.minimum(value, np.take_along_axis(value, rounds["parent"], axis=1))
    return value


def tokens_per_step(rounds: dict[str, np.ndarray], value: np.ndarray, nodes: int) -> np.ndarray:
    """``[R]``, accepted nodes, the root counted, where only the ``nodes`` of largest value (the shallower ones among equals) are
    drafted."""
    value = np.where(rounds["valid"], value, -np.inf)
    order = np.lexsort((np.broadcast_to(np.arange(value.shape[1]), value.shape), rounds["depth"], -value), axis=-1)
    kept = np.zeros(value.shape, bool)
    np.put_along_axis(kept, order[:, :nodes], True, axis=1)
    return (kept & rounds["accepted"]).sum(axis=1)


def _logistic(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The slope, at least `MIN_SLOPE`, and bias of largest likelihood."""
    slope, bias = _newton(np.stack([x, np.ones_like(x)], axis=-1), y, np.zeros_like(x), np.array([1.0, 0.0]))
    if slope < MIN_SLOPE:
        slope, (bias,) = MIN_SLOPE, _newton(np.ones_like(x)[:, None], y, MIN_SLOPE * x, np.zeros(1))
    return float(slope), float(bias)


def _newton(a: np.ndarray, y: np.ndarray, known: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The likeliest w of y ~ sigmoid(known + a w), by Newton's method, whose steps are halved until they are no worse."""

    def loss(at: np.ndarray) -> float:
        z = known + a @ at
        return (np.logaddexp(0, z) - y * z).sum() + PRIOR / 2 * ((at - prior) ** 2).sum()

    found = prior
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(known + a @ found, -500, 500)))
        hessian = (a * (p * (1 - p))[:, None]).T @ a + PRIOR * np.eye(len(prior))
        step = np.linalg.solve(hessian, a.T @ (y - p) - PRIOR * (found - prior))
        scales = (0.5**count for count in range(NEWTON_STEPS))
        found = found + step * next((scale for scale in scales if loss(found + scale * step) <= loss(found)), 0.0)
    return found
