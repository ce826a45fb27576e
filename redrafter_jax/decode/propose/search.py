"""Beam search over a step of whatever drafts, a head or a small model: g -> Beams."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import sample
from redrafter_jax.decode.propose import shortlist
from redrafter_jax.model.layers import take_rows

Step = Callable[[Any, jax.Array], tuple[shortlist.Found, Any]]
"""``step(state, tokens [B, W]) -> (found, state)``: the logits ``[B, W, V]`` behind these tokens, or a shortlist of them."""


Adjust = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""Draft logits ``[B, W, U]``, the tokens drafted before ``[B, W, X]``, -1 for none, and the ids of a shortlist ``[B, W, U]``, to
what is ranked."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """The search as a trellis: what was kept at each of L steps, best first.

    tokens: ``[B, L, W]`` int32; parents: ``[B, L, W]`` int32, which beam of the previous step each one extends;
    scores: ``[B, L, W]`` float32 cumulative log-probabilities, -inf for a beam that does not exist.
    """

    tokens: jax.Array
    parents: jax.Array
    scores: jax.Array


def search(
    step: Step,
    state,
    g_B: jax.Array,
    width: int,
    length: int,
    divisor_B: jax.Array | None = None,
    noise_BLV: jax.Array | None = None,
    draft_top_k: int = 0,
    token_ids: Callable[[jax.Array], jax.Array] = lambda index_BW: index_BW,
) -> Beams:
    """W continuations of g, L tokens each, by exact beam search (paper section 3.2).

    Args:
      state: what ``step`` starts from, a pytree of arrays ``[B, W, ...]``; each beam continues from its parent's state.
      divisor_B: divides the logits; None for 1.
      noise_BLV: the noise that the target will add at these L positions, for the tokens that can be drafted; it ranks
        candidates by which token is likely to win this draw.
      draft_top_k: cut each distribution, with the noise if there is any, to its best k, or W if that is more, and renormalise
        it (Apple's code: 50); 0 for no cut.
      token_ids: the target's ids of columns of the logits, for a draft vocabulary.
    """
    tokens_BW = jnp.broadcast_to(g_B[:, None], (g_B.shape[0], width))
    scores_BW = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf) + jnp.zeros_like(g_B, jnp.float32)[:, None]
    steps = []
    for depth in range(length):
        found, state = step(state, tokens_BW)
        noise_BV = None if noise_BLV is None else noise_BLV[:, depth]
        logits_BWU, ids_BWU = shortlist.pick(shortlist.tempered(found, divisor_B), noise_BV)
        if noise_BV is not None:
            logits_BWU = logits_BWU + shortlist.noise_of(noise_BV, ids_BWU)
        index_BW, parents_BW, scores_BW = expand(logits_BWU, scores_BW, draft_top_k)
        tokens_BW = token_ids(index_BW) if ids_BWU is None else shortlist.tokens_at(ids_BWU, index_BW, parents_BW)
        state = jax.tree.map(functools.partial(take_rows, index=parents_BW), state)
        steps.append((tokens_BW, parents_BW, scores_BW))
    return Beams(*(jnp.stack(part, axis=1) for part in zip(*steps, strict=True)))


def adjusted(step: Step, adjusts: Adjust | None) -> Step:
    """The step with its logits adjusted by the path of each beam, which its state carries: ``(state, None)`` before the first."""

    def adjusted_step(state: tuple, tokens_BW: jax.Array) -> tuple[jax.Array, tuple]:
        inner, path_BWL = state
        found, inner = step(inner, tokens_BW)
        if adjusts is None:
            return found, (inner, None)
        path_BWL = _extend(path_BWL, tokens_BW)
        return shortlist.changed(found, lambda logits, ids: adjusts(logits, path_BWL, ids)), (inner, path_BWL)

    return adjusted_step


def _extend(path_BWL: jax.Array | None, tokens_BW: jax.Array) -> jax.Array:
    """The drafted tokens of each beam with one more. The first is the root, which is not drafted: -1."""
    if path_BWL is None:
        return jnp.full_like(tokens_BW, -1)[..., None]
    return jnp.concatenate([path_BWL, tokens_BW[..., None]], axis=-1)


def expand(logits_BWV: jax.Array, scores_BW: jax.Array, draft_top_k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The W best of the W·V one-token extensions: tokens, parents and scores ``[B, W]``, best first.

    In two stages, which is exact: none of a beam's tokens past its own W best can be among the W best of all.
    """
    B, W, V = logits_BWV.shape
    per_beam = min(max(W, draft_top_k), V)  # with fewer than W, the first step could not fill W beams
    best_BWX, token_BWX = sample.top_k(logits_BWV, per_beam)
    summed = best_BWX if draft_top_k else logits_BWV
    total_BW = jax.nn.logsumexp(summed, axis=-1)
    kept = min(W, V)
    best_BWX, token_BWX = best_BWX[..., :kept], token_BWX[..., :kept]
    # Rounding can leave a log-probability a hair above 0; a child must never be likelier than its parent.
    candidates_BWX = scores_BW[..., None] + jnp.minimum(best_BWX - total_BW[..., None], 0.0)
    flat = P("data", None)  # two explicit axes: where sizes are 1, a reshape cannot tell which axis is split
    scores, at = sample.top_k(jnp.reshape(candidates_BWX, (B, W * kept), out_sharding=flat), W)
    tokens = take_rows(jnp.reshape(token_BWX, (B, W * kept), out_sharding=flat), at)
    return tokens, at // kept, scores


def sequences(beams: Beams) -> tuple[jax.Array, jax.Array]:
    """The final W beams written out: tokens ``[B, W, L]`` and cumulative scores ``[B, W, L]``."""
    B, L, W = beams.tokens.shape

    def split(x_BW: jax.Array) -> jax.Array:
        return jax.sharding.reshard(x_BW, P("data", None))  # a single row with a single beam would lose its split axis

    at_BW, columns = split(jnp.broadcast_to(jnp.arange(W), (B, W))), []
    for step in reversed(range(L)):
        columns.append([split(take_rows(split(part[:, step]), at_BW)) for part in (beams.tokens, beams.scores)])
        at_BW = split(take_rows(split(beams.parents[:, step]), at_BW))
    tokens_BWL, scores_BWL = (jnp.stack(part[::-1], axis=2) for part in zip(*columns, strict=True))
    return tokens_BWL, scores_BWL
