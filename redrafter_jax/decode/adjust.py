"""What a request does to the target's logits before temperature and filters: penalties of tokens that the text has already,
and no stop id before the reply has so many tokens.

Both depend on the text before a token, so at a node of a tree they depend on the path to it:

    text so far   a b c g        node   its text        repeated there
    tree          g - a - c      a      a b c g a       a b c g
                    `- x         c      a b c g a c     a b c g
                                 x      a b c g x       a b c g x

The rows' text is counted once per token (`Seen`); a node adds the few tokens of its path. Semantics: the repetition penalty is
that of CTRL (arXiv 1909.05858), as `transformers` and vLLM apply it; presence and frequency penalty are OpenAI's.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode.policy import Penalties, Policy
from redrafter_jax.decode.wanted import where_wanted
from redrafter_jax.model import candidates
from redrafter_jax.model.layers import take_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
    """Tokens of each row's text, split over ``model`` as logits are. prompt: ``[B, V]`` bool, which ones the prompt has; reply:
    ``[B, V]`` int32, how often each is in the reply."""

    prompt: jax.Array
    reply: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """What of a row's text the next choice depends on. count: ``[B]``, tokens of the reply so far, g included; stop_ids:
    ``[B, X]``; seen: None where no row penalises."""

    count: jax.Array
    stop_ids: jax.Array
    seen: Seen | None


def begin(policy: Policy, prompts_BT: jax.Array, length_B: jax.Array, vocab: int) -> Seen | None:
    """Of prompts of ``length`` tokens and no reply yet; None where no row penalises. Each shard of the vocabulary marks its own
    tokens."""
    if policy.penalties is None:
        return None

    def of_shard(prompts_BT: jax.Array, length_B: jax.Array) -> jax.Array:
        size = vocab // jax.lax.axis_size("model")
        own_BT = prompts_BT - jax.lax.axis_index("model") * size
        counts_BT = (jnp.arange(own_BT.shape[1]) < length_B[:, None]) & (own_BT >= 0)
        at_BT = jnp.where(counts_BT, own_BT, size)  # past the end: dropped
        return jax.vmap(lambda at: jnp.zeros(size, bool).at[at].set(True, mode="drop"))(at_BT)

    specs = (P("data", None), P("data"))
    prompt_BV = jax.shard_map(of_shard, in_specs=specs, out_specs=P("data", "model"))(prompts_BT, length_B)
    return Seen(prompt_BV, jnp.zeros_like(prompt_BV, jnp.int32))


def add(seen: Seen | None, new_BM: jax.Array, count_B: jax.Array) -> Seen | None:
    """With the first ``count`` of the new tokens of each row."""
    if seen is None:
        return None
    counted_BM = jnp.where(jnp.arange(new_BM.shape[1]) < count_B[:, None], new_BM, -1)
    return dataclasses.replace(seen, reply=seen.reply + _occurrences(counted_BM, _ids_like(seen.reply)))


def is_needed(policy: Policy) -> bool:
    """Whether any row of the batch adjusts its logits."""
    return policy.penalties is not None or policy.min_new_B is not None


def adjust(
    policy: Policy, history: History | None, logits_BNV: jax.Array, path_BNL: jax.Array, ids: jax.Array | None = None
) -> jax.Array:
    """Logits ``[B, N, V]`` of the token behind each node. A row that asks for nothing keeps its own, bit by bit.

    Args:
      history: of the text up to the root; None where no row adjusts anything.
      path_BNL: tokens on the way from the root, without the root, to each node; -1 fills.
      ids: which tokens the logits are of, where that is not all of them in order: ``[V]`` of a draft vocabulary, to which the
        history is cut too; or ``[B, N, V]`` of a shortlist, which are looked up in the history.
    """
    if history is None:
        return logits_BNV
    return where_wanted(policy.adjusts_B, lambda: _adjust(policy, history, logits_BNV, path_BNL, ids), lambda: logits_BNV)


def _adjust(policy: Policy, history: History, logits_BNV: jax.Array, path_BNL: jax.Array, ids: jax.Array | None) -> jax.Array:
    is_short = ids is not None and ids.ndim == 3
    if not is_short:
        ids = _ids_like(logits_BNV) if ids is None else jax.sharding.reshard(ids, _last_axis(logits_BNV))
    if history.seen is not None:
        at = (lambda values: candidates.take(values, ids)) if is_short else (lambda values: values[:, None])
        logits_BNV = _penalise(policy.penalties, logits_BNV, jax.tree.map(at, history.seen), _occurrences(path_BNL, ids))
    if policy.min_new_B is None:
        return logits_BNV
    count_BN = history.count[:, None] + jnp.sum(path_BNL >= 0, axis=-1)
    too_early_BN = count_BN < policy.min_new_B[:, None]
    stops_BNV = _occurrences(history.stop_ids[:, None], ids) > 0
    # A sum, so that what is not finite stays so, for `sample.choose` to notice.
    return jnp.where(too_early_BN[..., None] & stops_BNV, logits_BNV - jnp.inf, logits_BNV)


def _penalise(penalties: Penalties, logits_BNV: jax.Array, seen: Seen, on_path_BNV: jax.Array) -> jax.Array:
    """``seen``: for all nodes or for each."""
    repetition, presence, frequency = (of_B[:, None, None] for of_B in dataclasses.astuple(penalties))
    in_reply_BNV = seen.reply + on_path_BNV
    is_repeated = (seen.prompt > 0) | (in_reply_BNV > 0)
    repeated_BNV = jnp.where(logits_BNV > 0, logits_BNV / repetition, logits_BNV * repetition)
    logits_BNV = jnp.where(is_repeated, repeated_BNV, logits_BNV)
    return logits_BNV - frequency * in_reply_BNV - presence * (in_reply_BNV > 0)


def paths(tokens_BN: jax.Array, parent_BN: jax.Array, depth_BN: jax.Array, length: int) -> jax.Array:
    """The tokens ``[B, N, L]`` of each node of a tree and of its ancestors but for the root, the deepest first; -1 fills."""
    at_BN = jnp.arange(tokens_BN.shape[1]) + jnp.zeros_like(parent_BN)  # of which the rows stay split
    found = []
    for _ in range(length):
        found.append(jnp.where(take_rows(depth_BN, at_BN) > 0, take_rows(tokens_BN, at_BN), -1))
        at_BN = take_rows(parent_BN, at_BN)
    return jnp.stack(found, axis=-1) if found else jnp.zeros((*tokens_BN.shape, 0), jnp.int32)


def _occurrences(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """How often each of the ids ``[V]`` is among the tokens ``[B, ..., L]``: ``[B, ..., V]`` int32. One comparison after the
    other, which XLA fuses: no array has both L and V."""
    counts = jnp.zeros((*tokens.shape[:-1], 1), jnp.int32)
    for i in range(tokens.shape[-1]):
        counts = counts + (tokens[..., i, None] == ids)
    return counts


def _ids_like(values: jax.Array) -> jax.Array:
    """The ids ``[V]`` of values ``[..., V]``, split as they are."""
    return jax.lax.broadcasted_iota(jnp.int32, values.shape[-1:], 0, out_sharding=_last_axis(values))


def _last_axis(values: jax.Array) -> P:
    return P(jax.typeof(values).sharding.spec[-1])


Columns = Callable[[jax.Array], jax.Array]
"""Of values ``[..., V]`` those of the tokens that a head drafts, ``[..., U]``."""


def of_drafts(
    policy: Policy, history: History | None, columns: Columns = lambda values: values, ids: jax.Array | None = None
) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array] | None:
    """What the target does to its logits, for logits ``[B, W, U]`` of drafts behind paths ``[B, W, X]`` and the ids of a shortlist
    ``[B, W, U]``; None where that is nothing. ``columns`` and ``ids`` are of a draft vocabulary."""
    if history is None:
        return None
    if history.seen is not None:
        history = dataclasses.replace(history, seen=jax.tree.map(columns, history.seen))
    return lambda logits, path, short=None: adjust(policy, history, logits, path, ids if short is None else short)
