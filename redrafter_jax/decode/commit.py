"""Verdict -> the next DecodeState: accepted keys and values into the cache, tokens into the text, ends noticed."""

import dataclasses

import jax
import jax.numpy as jnp

from redrafter_jax.decode import sample
from redrafter_jax.decode.verify import Verdict
from redrafter_jax.model.cache import KVCache, append


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Everything that decoding carries from round to round, all of it on the device.

    cache: the tokens whose keys and values are known: the prompt and the text but for g
    h:         ``[B, D]``  the target's hidden state of the newest token in the cache
    g:         ``[B]``     the token already decided that is not yet in the cache
    text:      ``[B, T]``  new tokens so far, the last of them g (T leaves room for one whole round)
    drafted:   ``[B, T]``  bool, which of them were accepted drafts
    count:     ``[B]``     tokens of ``text`` that count
    limit:     ``[B]``     at how many the row ends
    stop_ids:  ``[X]``     ids that end a row; -1 fills
    done:      ``[B]``     bool; a row that is done is carried along unchanged
    rounds:    ``[B]``     target passes since the prefill
    histogram: ``[B, M]``  how often 0..L drafted tokens were accepted
    policy:    how each row samples
    """

    cache: KVCache
    h: jax.Array
    g: jax.Array
    text: jax.Array
    drafted: jax.Array
    count: jax.Array
    limit: jax.Array
    stop_ids: jax.Array
    done: jax.Array
    rounds: jax.Array
    histogram: jax.Array
    policy: sample.Policy


def commit(state: DecodeState, verdict: Verdict) -> DecodeState:
    """Appends what the verdict accepted; rows that are done stay as they are."""
    M = verdict.emitted.shape[1]
    active_B = ~state.done
    new_B = verdict.accepted + 1
    count_B, stopped_B = ends(verdict.emitted, new_B, state.count, state.limit, state.stop_ids)
    is_draft_BM = jnp.arange(M) < verdict.accepted[:, None]
    taken_BM = (verdict.accepted[:, None] == jnp.arange(M)) & active_B[:, None]
    # g is never negative, so this adds nothing; but the write then needs what the pass has read the cache for, and without that
    # XLA:CPU copies every buffer of it before a plain step's write.
    cache = dataclasses.replace(state.cache, length=state.cache.length + jnp.minimum(verdict.g, 0))
    return dataclasses.replace(
        state,
        cache=append(cache, verdict.rows, jnp.where(active_B, new_B, 0)),
        h=jnp.where(active_B[:, None], verdict.h, state.h),
        g=jnp.where(active_B, verdict.g, state.g),
        text=write(state.text, verdict.emitted, state.count),
        drafted=write(state.drafted, is_draft_BM, state.count),
        count=jnp.where(active_B, count_B, state.count),
        done=state.done | stopped_B,
        rounds=state.rounds + active_B,
        histogram=state.histogram + taken_BM,
    )


def ends(emitted_BM, new_B, count_B, limit_B, stop_ids) -> tuple[jax.Array, jax.Array]:
    """How many tokens each row has once its first ``new`` emitted ones are cut at a stop id or the row's limit, and
    whether it was."""
    M = emitted_BM.shape[1]
    stops_BM = jnp.any(emitted_BM[..., None] == stop_ids, axis=-1) & (jnp.arange(M) < new_B[:, None])
    stopped_B = jnp.any(stops_BM, axis=1)
    kept_B = jnp.where(stopped_B, jnp.argmax(stops_BM, axis=1) + 1, new_B)
    total_B = jnp.minimum(count_B + kept_B, limit_B)
    return total_B, stopped_B | (total_B >= limit_B)


def write(buffer_BT: jax.Array, new_BM: jax.Array, start_B: jax.Array) -> jax.Array:
    """Lays ``new`` over each row from its ``start`` on; what is past the row's count never counts. Written as a choice for every
    element, since XLA:TPU makes a loop over rows of an update at each row's own place."""
    offset_BT = jnp.arange(buffer_BT.shape[1]) - start_B[:, None]
    for i in range(new_BM.shape[1]):
        buffer_BT = jnp.where(offset_BT == i, new_BM[:, i, None], buffer_BT)
    return buffer_BT
