"""Drafts drawn from the drafter's own distribution, W chains of L tokens beside each other: what the rule `rejection` needs.

A beam search keeps the likeliest tokens; here each token is a draw, with noise of the drafter's own (`sample.draft_noise`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from redrafter_jax.decode import sample
from redrafter_jax.decode.pack import Drawn, Tree, TreeKind, of_chains
from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.propose import shortlist
from redrafter_jax.decode.propose.proposer import View
from redrafter_jax.decode.propose.search import Step
from redrafter_jax.model import candidates, draft_ids


@dataclasses.dataclass(frozen=True)
class Chains:
    """tokens: ``[B, W, L]``; logits: L of ``[B, W, U]``, over the temperature, of what they were drawn from; scores: ``[B, W, L]``
    cumulative log-probabilities; ids: of a draft vocabulary; short: L times the ids ``[B, W, U]`` of a shortlist, or None."""

    tokens: jax.Array
    logits: list[jax.Array]
    scores: jax.Array
    ids: draft_ids.DraftVocabularyIds | None
    short: list[jax.Array | None]

    def tree(self, g_B: jax.Array, vocab: int) -> Tree:
        """The chains beside each other, with their distributions over the target's vocabulary."""
        over_V = [
            draft_ids.undrafted(self.ids, logits_BWU, vocab) if short is None else candidates.spread(logits_BWU, short, vocab)
            for logits_BWU, short in zip(self.logits, self.short, strict=True)
        ]
        return of_chains(g_B, Drawn(self.tokens, jnp.stack(over_V, axis=2)), self.scores)


def is_drawn(tree: TreeKind, width: int, policy: Policy) -> bool:
    """Whether a proposer draws chains for this batch, and does not search: where its tree is of chains, or a row needs a draw and
    its single beam can be one. A wider search stays what it is, which `reject` refuses."""
    return tree == "chains" or (policy.drawn and width == 1)


def draw(step: Step, state, view: View, width: int, length: int, ids: draft_ids.DraftVocabularyIds | None = None) -> Chains:
    """W chains behind g. A row whose drafts need not be drawn, and that is shown the target's noise, has the first of its chains
    drawn with that. The noise of a draw has no part in a shortlist, or the draft would be no draw from it; the target's has."""
    policy, B = view.policy, view.g.shape[0]
    divisor_B = sample.divisor(policy)
    tokens_BW = jnp.broadcast_to(view.g[:, None], (B, width))
    score_BW = jnp.zeros_like(tokens_BW, jnp.float32)
    tokens, logits, scores, shorts = [], [], [], []
    for depth in range(length):
        found, state = step(state, tokens_BW)
        shown_BV = None if view.noise is None else view.noise[:, depth]  # 0 for a row that draws
        logits_BWU, short = shortlist.pick(shortlist.tempered(found, divisor_B), shown_BV)
        count = logits_BWU.shape[-1] if short is None else found.rough.shape[-1]
        index_BW = sample.choose(logits_BWU, _noise(view, depth, width, count, ids, short))[0]
        score_BW = score_BW + _log_probability(logits_BWU, index_BW)
        tokens_BW = draft_ids.token_ids(ids, index_BW) if short is None else shortlist.tokens_at(short, index_BW)
        for part, new in ((tokens, tokens_BW), (logits, logits_BWU), (scores, score_BW), (shorts, short)):
            part.append(new)
    return Chains(jnp.stack(tokens, axis=2), logits, jnp.stack(scores, axis=2), ids, shorts)


def _noise(view: View, depth: int, width: int, count: int, ids, short: jax.Array | None) -> jax.Array | None:
    policy = view.policy
    if not policy.sampled:
        return None
    own_BWU = shortlist.noise_of(sample.draft_noise(policy, view.length + 1 + depth, width, count), short)
    if view.noise is None:
        return own_BWU
    shown_BWU = shortlist.noise_of(draft_ids.drafted(ids, view.noise[:, depth]), short)
    is_shown_BW1 = (policy.shown_B[:, None] & (jnp.arange(width) == 0))[..., None]
    return jnp.where(is_shown_BW1, shown_BWU, own_BWU)


def _log_probability(logits_BWU: jax.Array, index_BW: jax.Array) -> jax.Array:
    is_index_BWU = jnp.arange(logits_BWU.shape[-1]) == index_BW[..., None]  # a sum, for a token may be on any shard
    chosen_BW = jnp.sum(jnp.where(is_index_BWU, logits_BWU, 0.0), axis=-1)
    return jnp.minimum(chosen_BW - jax.nn.logsumexp(logits_BWU, axis=-1), 0.0)
