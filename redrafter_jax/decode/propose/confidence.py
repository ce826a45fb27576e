"""How likely the target is to accept a node, from the score of the beam search: fitted after training, for each depth.

A score is the log-probability of a prefix by the head. Greedy targets accept shallow nodes less often than it says, deep ones more
often; with noise that both see it is about right. A node budget should be filled by what is accepted, whatever the depth:

    log sigmoid(slope logit(p) + bias)      p = exp(score); one slope and bias for each depth, never above the parent's

Within a depth the order stays. Not here: how it is fitted (`train/calibrate`), what fills the budget (`pack.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.propose.search import Beams
from redrafter_jax.model.confidence import Confidence
from redrafter_jax.model.layers import take_rows


def calibrate(beams: Beams, confidence: Confidence | None, policy: Policy) -> Beams:
    """The beams with scores that are log-probabilities of acceptance: for greedy rows, and for rows that show their noise, by the
    fit of each; scores of other rows stay. None: they are as they are."""
    if confidence is None:
        return beams
    greedy_L2, sampled_L2 = (_of_depths(fit, beams.tokens.shape[1]) for fit in (confidence.greedy, confidence.sampled))
    is_greedy_B = (policy.temperature_B == 0)[:, None]
    stays_B = (policy.temperature_B > 0)[:, None] & ~policy.shown_B[:, None]
    slope_BL, bias_BL = (jnp.where(is_greedy_B, greedy_L2[:, i], sampled_L2[:, i]) for i in (0, 1))
    odds_BLW = beams.scores - jnp.log(-jnp.expm1(beams.scores))  # of 0, which is certain, +inf
    found_BLW = jax.nn.log_sigmoid(slope_BL[..., None] * odds_BLW + bias_BL[..., None])
    found_BLW = jnp.where(stays_B[..., None], beams.scores, found_BLW)
    columns = [found_BLW[:, 0]]
    for depth in range(1, beams.tokens.shape[1]):
        columns.append(jnp.minimum(found_BLW[:, depth], take_rows(columns[-1], beams.parents[:, depth])))
    return dataclasses.replace(beams, scores=jnp.stack(columns, axis=1))


def _of_depths(fit: tuple[tuple[float, float], ...], length: int) -> np.ndarray:
    """Slope and bias ``[L, 2]`` of each depth; behind the last that was fitted, that one's."""
    return np.asarray([fit[min(depth, len(fit) - 1)] for depth in range(length)], np.float32)
