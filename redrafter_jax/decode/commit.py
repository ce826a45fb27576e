"""Verdict -> the next DecodeState: accepted keys and values into the cache, tokens to their slots, ends noticed."""

import dataclasses

import jax
import jax.numpy as jnp

from redrafter_jax.decode import adjust
from redrafter_jax.decode.logprobs import Logprobs
from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.propose.proposer import Memory, View
from redrafter_jax.decode.verify import Verdict
from redrafter_jax.model.cache import KVCache, append


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Everything that decoding carries from round to round, all of it on the device.

    cache: the tokens whose keys and values are known: the prompt and the reply but for g
    h:         ``[B, D + F*D]``  what the target shows of the newest token in the cache: its hidden state, and behind it features
    g:         ``[B]``     the token already decided that is not yet in the cache
    tokens:    ``[B, S]``  every token at its cache slot, the newest of them g; the reply starts behind the prompt
    drafted:   ``[B, S]``  bool, which of them were accepted drafts
    prompt:    ``[B]``     tokens of the prompt
    count:     ``[B]``     tokens of the reply so far
    limit:     ``[B]``     at how many the row ends
    stop_ids:  ``[B, X]``  ids that end the row; -1 fills
    done:      ``[B]``     bool; the tokens, live slots, h and g of a row that is done never change again
    failed:    ``[B]``     bool, whether the row ended because the target's logits were not finite
    rounds:    ``[B]``     target passes since the prefill
    scored:    ``[B, S]``  at the slot of the first token of each pass, the nodes that it scored, with the root; 0 elsewhere
    histogram: ``[B, M]``  how many passes delivered 1..L + 1 tokens, that is 0..L drafts and the target's own next token; L is that
                           of the bucket, the deepest of several ways to draft
    policy:    how each row samples; one that is done, greedily and without wishes (`Policy.without`)
    seen:      which tokens are in each row's text; None where no row penalises them
    logprobs:  of the reply's tokens, at their slots; None where no row reports them
    """

    cache: KVCache
    h: jax.Array
    g: jax.Array
    tokens: jax.Array
    drafted: jax.Array
    scored: jax.Array
    prompt: jax.Array
    count: jax.Array
    limit: jax.Array
    stop_ids: jax.Array
    done: jax.Array
    failed: jax.Array
    rounds: jax.Array
    histogram: jax.Array
    policy: Policy
    memory: Memory = ()
    seen: adjust.Seen | None = None
    logprobs: Logprobs | None = None

    def view(self, noise_BLV: jax.Array | None = None) -> View:
        """What a proposer may see of it."""
        return View(self.g, self.h, self.tokens, self.cache.length, self.policy, noise_BLV, self.history())

    def history(self) -> adjust.History | None:
        """What the next choices depend on besides the model; None where no row asks for such a thing."""
        return adjust.History(self.count, self.stop_ids, self.seen) if adjust.is_needed(self.policy) else None


def commit(state: DecodeState, verdict: Verdict) -> DecodeState:
    """Appends what the verdict accepted, up to the row's limit or its first stop id. A row whose logits were not finite ends as it
    was before the round.

    A row keeps the keys and values of the tokens that it keeps, so its length never passes prompt + limit - 1, and the L + 1
    slots that a pass writes behind the length of a row that is done are dead ones that the bucket has room for.
    """
    M = verdict.emitted.shape[1]
    active_B = ~state.done
    failed_B = active_B & ~verdict.finite
    new_B = jnp.where(active_B & verdict.finite, verdict.accepted + 1, 0)
    count_B, stopped_B = ends(verdict.emitted, new_B, state.count, state.limit, state.stop_ids)
    kept_B = jnp.where(new_B > 0, count_B - state.count, 0)
    is_draft_BM = jnp.arange(M) < verdict.accepted[:, None]
    delivered_BM = kept_B[:, None] == jnp.arange(1, state.histogram.shape[1] + 1)
    grows_B1 = (kept_B > 0)[:, None]
    behind_g_B = state.prompt + state.count
    begins_BS = (jnp.arange(state.scored.shape[1]) == behind_g_B[:, None]) & grows_B1
    return dataclasses.replace(
        state,
        cache=append(_after_pass(state.cache, verdict), verdict.rows, kept_B),
        h=jnp.where(grows_B1, verdict.h, state.h),
        g=jnp.where(grows_B1[:, 0], verdict.g, state.g),
        tokens=write(state.tokens, verdict.emitted, behind_g_B, kept_B),
        drafted=write(state.drafted, is_draft_BM, behind_g_B, kept_B),
        scored=jnp.where(begins_BS, verdict.scored[:, None], state.scored),
        seen=adjust.add(state.seen, verdict.emitted, kept_B),
        logprobs=jax.tree.map(lambda buffer, new: write(buffer, new, behind_g_B, kept_B), state.logprobs, verdict.logprobs),
        count=state.count + kept_B,
        done=state.done | failed_B | (stopped_B & active_B),
        failed=state.failed | failed_B,
        rounds=state.rounds + active_B,
        histogram=state.histogram + delivered_BM,
    )


def _after_pass(cache: KVCache, verdict: Verdict) -> KVCache:
    """The cache, with a dependency that makes its write wait for the pass to have read it. With a tree of one node, where
    and what is written does not depend on the verdict, and XLA:CPU would copy every buffer twice in every round to keep
    both versions. Token ids are never negative, so the length stays what it is."""
    return dataclasses.replace(cache, length=cache.length + jnp.minimum(verdict.g, 0))


def ends(emitted_BM, new_B, count_B, limit_B, stop_ids_BX) -> tuple[jax.Array, jax.Array]:
    """How many tokens each row has after its first ``new`` emitted ones, cut at a stop id or at the row's limit; and
    whether that ends the row."""
    M = emitted_BM.shape[1]
    stops_BM = jnp.any(emitted_BM[..., None] == stop_ids_BX[:, None], axis=-1) & (jnp.arange(M) < new_B[:, None])
    stopped_B = jnp.any(stops_BM, axis=1)
    kept_B = jnp.where(stopped_B, jnp.argmax(stops_BM, axis=1) + 1, new_B)
    total_B = jnp.minimum(count_B + kept_B, limit_B)
    return total_B, stopped_B | (total_B >= limit_B)


def write(buffer_BS: jax.Array, new_BM: jax.Array, start_B: jax.Array, count_B: jax.Array) -> jax.Array:
    """Writes the first ``count`` of ``new`` ``[B, M, ...]`` into each row ``[S, ...]`` from its ``start`` on. Every element is
    selected by comparison, because XLA:TPU turns an update at each row's own start into a loop over rows."""
    offset_BS = jnp.arange(buffer_BS.shape[1]) - start_B[:, None]
    offset_BS = jnp.where(offset_BS < count_B[:, None], offset_BS, -1)
    for i in range(new_BM.shape[1]):
        is_here = jnp.expand_dims(offset_BS == i, range(2, buffer_BS.ndim))
        buffer_BS = jnp.where(is_here, new_BM[:, i, None], buffer_BS)
    return buffer_BS
