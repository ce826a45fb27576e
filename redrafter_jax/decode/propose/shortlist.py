"""What a step of a search ranks: the logits of every token, or of a few candidates that are picked first.

A candidate head (`model/candidates.py`) has rough logits of all tokens and exact ones of few. Whatever is done to logits is done to
both: the same adjustments, the same temperature, and the same noise, so that the candidates are those of the very draw.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from redrafter_jax.decode import sample
from redrafter_jax.model import candidates
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.layers import take_rows
from redrafter_jax.model.target import Target

Change = Callable[[jax.Array, jax.Array | None], jax.Array]
"""Logits ``[B, W, U]``, and the ids ``[B, W, U]`` that they are of (None: as the head has them), to other logits."""


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """rough: ``[B, W, V]``; exact: of ids ``[B, W, C]`` their logits, the same shape; count: C. Lives within one trace."""

    rough: jax.Array
    exact: Callable[[jax.Array], jax.Array]
    count: int


Found = jax.Array | Shortlist


def of_head(head: Drafter, exit_: jax.Array, target: Target) -> Found:
    """What a head finds behind an exit ``[B, W, E]``: logits ``[B, W, U]``, or a shortlist where it has candidates."""
    if head.candidates is None:
        return head.unembed(exit_, target)
    exact = lambda ids_BWC: head.candidates.exact(exit_, target, ids_BWC)  # noqa: E731
    return Shortlist(head.candidates.rough(exit_, target), exact, head.config.candidates)


def changed(found: Found, change: Change) -> Found:
    """With the change made to all logits."""
    if not isinstance(found, Shortlist):
        return change(found, None)
    return Shortlist(change(found.rough, None), lambda ids: change(found.exact(ids), ids), found.count)


def tempered(found: Found, divisor_B: jax.Array | None) -> Found:
    """Over each row's temperature; None for 1."""
    return found if divisor_B is None else changed(found, lambda logits, _: logits / divisor_B[:, None, None])


def pick(found: Found, noise_BV: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """The logits ``[B, W, U]`` to rank, without noise, and the ids ``[B, W, U]`` that they are of; None where these are as the head
    has them. Candidates are the C largest of rough logits and noise, by ascending id, so that ties fall to the smaller id."""
    if not isinstance(found, Shortlist):
        return found, None
    rough_BWV = found.rough if noise_BV is None else found.rough + noise_BV[:, None]
    ids_BWC = jnp.sort(sample.top_k(rough_BWV, found.count)[1], axis=-1)
    return found.exact(ids_BWC), ids_BWC


def noise_of(noise: jax.Array, ids_BWU: jax.Array | None) -> jax.Array:
    """Of noise ``[B, V]``, the same for all beams, or ``[B, W, V]`` that of the ids that were picked, ``[B, W or 1, U]``."""
    if ids_BWU is None:
        return noise[:, None] if noise.ndim == 2 else noise
    return candidates.take(noise, ids_BWU)


def tokens_at(ids_BWU: jax.Array, index_BW: jax.Array, parents_BW: jax.Array | None = None) -> jax.Array:
    """The ids of these columns ``[B, W]`` of these beams ``[B, W]``, each beam's own if not given."""
    ids_BWU = ids_BWU if parents_BW is None else take_rows(ids_BWU, parents_BW)
    return take_rows(ids_BWU, index_BW[..., None], batch=2)[..., 0]
