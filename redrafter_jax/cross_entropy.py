"""Cross-entropies: of a text's next tokens, and of a draft head's logits, a chunk of positions at a time.

The LM head, the losses and the ranks of a draft head run over chunks of positions, and a chunk's gradient is written out and
made while its logits are there, so nothing is computed twice. Not here: which labels belong where (`loss.py`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import attention, layers
from redrafter_jax.model.layers import COLUMNS
from redrafter_jax.model.parts import OwnColumns, split_exit
from redrafter_jax.model.target import Target, TargetConfig, unembed

IGNORED_LABEL = -100  # a label that does not count; other labels below 0 can be predicted by no logit
MAX_RANK = 5  # accuracies are reported for the label among the 1..MAX_RANK largest logits


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """positions: K; distill_weight: the share of soft labels, 0..1; chunk: N, positions of a text whose ``[K, V]`` logits
    exist at a time, 0 for as many as a device has room for (`MAX_LOGIT_BYTES` bytes, but eight positions at least); decay: the
    weight of drafted position i is ``decay ** i``; with_distance: whether part of the soft loss may be the total variation between
    the head's distribution and the target's (`score`); ranks: R, accuracies are reported for the label among the 1..R largest
    logits."""

    positions: int = 5
    distill_weight: float = 0.0
    chunk: int = 0
    decay: float = 1.0
    ranks: int = MAX_RANK
    with_distance: bool = False


def of_next_tokens(target: Target, tokens_BT: jax.Array, columns_DV: jax.Array | None = None) -> jax.Array:
    """``[B, T-1]``, the cross-entropy in nats of every token but the first, given those before it.

    Args:
      columns_DV: the output matrix, if it is not the target's own (`Target.columns`).
    """
    inputs_BT = tokens_BT[:, :-1]
    positions_BT = jnp.broadcast_to(jnp.arange(inputs_BT.shape[1]), inputs_BT.shape)
    hidden_BTD = target(inputs_BT, positions_BT, attention.causal(inputs_BT >= 0)).hidden
    logits_BTV = unembed(target.config, hidden_BTD, target.columns() if columns_DV is None else columns_DV)
    return optax.softmax_cross_entropy_with_integer_labels(jax.sharding.reshard(logits_BTV, P("data")), tokens_BT[:, 1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def score(shapes: TargetConfig, config: LossConfig, own, exits, labels_BKT, hidden_BTD, target_DV, weights_K):
    """The sum over drafted positions of the weighted losses; also these ``[K]`` by themselves and the hits ``[K, R]``.

    Args:
      shapes: of the target, by which its logits are made (`target.unembed`).
      own: the head's own LM head ``[E, V]``, a tuple of one for each drafted position, or `OwnColumns`; None for the target's.
      exits: for each drafted position ``[B, T, E]``; T is a multiple of the chunk.
      hidden_BTD: the target's states that the teachers are made of.
      target_DV: the columns of the target's LM head that the head can draft.
      weights_K: of a hard and of a soft label of each drafted position, and of the total variation between head and teacher,
        sum |p - q| / 2, at the places of soft labels (`LossConfig.with_distance`).
    """

    def of_chunk(carry, start):
        chunk = _cut(config, start, exits, labels_BKT, hidden_BTD)
        sums, _, _ = _chunk(shapes, config, own, chunk, target_DV, weights_K)
        return jax.tree.map(jnp.add, carry, sums), None

    return jax.lax.scan(of_chunk, _nothing(config), _starts(config, labels_BKT))[0]


def _score_forward(shapes: TargetConfig, config: LossConfig, own, exits, labels_BKT, hidden_BTD, target_DV, weights_K):
    """As `score`, and the gradients, since a chunk's logits are there only now: scaled by what is to come, they are
    all that the backward pass needs. The gradient of a chunk's exits takes their place in memory. Each shard of the batch adds
    up its own gradient of the LM head, and these are added once, after the last chunk."""
    marked = jax.tree.map(lambda own_EV: jax.sharding.reshard(own_EV, P(*COLUMNS, reduced={"data"})), own)

    def of_chunk(carry, start):
        sums, own_gradient, exits = carry
        chunk = _cut(config, start, exits, labels_BKT, hidden_BTD)
        more, gradient_BKNV, back = _chunk(shapes, config, marked, chunk, target_DV, weights_K)
        of_exits, of_own = back(gradient_BKNV)
        own_gradient = jax.tree.map(jnp.add, own_gradient, of_own)
        put = lambda x_BTE, new_BNE: jax.lax.dynamic_update_slice_in_dim(x_BTE, new_BNE, start, axis=1)  # noqa: E731
        exits = tuple(put(exit_BTE, of_exits[:, i].astype(exit_BTE.dtype)) for i, exit_BTE in enumerate(exits))
        return (jax.tree.map(jnp.add, sums, more), own_gradient, exits), None

    nothing = (_nothing(config), jax.tree.map(_unreduced_zeros, own), exits)
    (sums, own_gradient, exit_gradients), _ = jax.lax.scan(of_chunk, nothing, _starts(config, labels_BKT))
    own_gradient = jax.tree.map(lambda gradient: jax.sharding.reshard(gradient, COLUMNS), own_gradient)
    return sums, (own_gradient, exit_gradients, (labels_BKT, hidden_BTD, target_DV, weights_K))


def _unreduced_zeros(like: jax.Array) -> jax.Array:
    zeros = jnp.zeros(like.shape, like.dtype, out_sharding=COLUMNS)
    return jax.sharding.reshard(zeros, P(*COLUMNS, unreduced={"data"}))


def _score_backward(shapes: TargetConfig, config: LossConfig, kept, cotangents):
    own_gradient, exit_gradients, (labels_BKT, *constants) = kept
    scale = cotangents[0]
    no_label = np.zeros(labels_BKT.shape, jax.dtypes.float0)
    own = jax.tree.map(lambda gradient: gradient * scale, own_gradient)
    return own, tuple(gradient * scale for gradient in exit_gradients), no_label, *jax.tree.map(jnp.zeros_like, constants)


score.defvjp(_score_forward, _score_backward)


def _nothing(config: LossConfig):
    return jnp.float32(0), (jnp.zeros(config.positions), jnp.zeros((config.positions, config.ranks), jnp.int32))


def _starts(config: LossConfig, labels_BKT: jax.Array) -> jax.Array:
    return jnp.arange(0, labels_BKT.shape[2], config.chunk)


def _cut(config: LossConfig, start, exits, labels_BKT, hidden_BTD):
    """The chunk from ``start`` on: exits ``[B, K, N, E]``, labels ``[B, K, N]`` and the target's states ``[B, N, D]``."""
    cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, config.chunk, axis)  # noqa: E731
    return jnp.stack([cut(exit_BTE, 1) for exit_BTE in exits], axis=1), cut(labels_BKT, 2), cut(hidden_BTD, 1)


def _chunk(shapes: TargetConfig, config: LossConfig, own, chunk, target_DV, weights_K):
    """Of one chunk: the weighted loss, the weighted losses ``[K]`` and hits ``[K, R]``; the gradient of the first by the
    logits ``[B, K, N, V]``, which is for each label its weight times the head's probabilities less the label's; and a function
    from that gradient to those of the exits and of the head's own LM head."""
    exits_BKNE, labels_BKN, hidden_BND = chunk
    is_place_BKN = labels_BKN != IGNORED_LABEL
    counted = (labels_BKN >= 0, is_place_BKN, is_place_BKN)
    hard_BKN, soft_BKN, distance_BKN = (w[:, None] * counts for w, counts in zip(weights_K, counted, strict=True))

    def head_logits(exits_BKNE, own) -> jax.Array:
        if isinstance(own, tuple):
            return jnp.stack([unembed(shapes, exits_BKNE[:, k], own_EV) for k, own_EV in enumerate(own)], axis=1)
        if isinstance(own, OwnColumns):
            exits_BKNE, rows_BKNR = split_exit(exits_BKNE, own.bigram)
            columns_EV = target_DV if own.lm_head is None else own.lm_head
            return unembed(shapes, exits_BKNE, columns_EV, layers.times(rows_BKNR, own.bigram))
        return unembed(shapes, exits_BKNE, target_DV if own is None else own)

    logits_BKNV, back = jax.vjp(head_logits, exits_BKNE, own)
    total_BKN = jax.nn.logsumexp(logits_BKNV, axis=-1)
    q_BKNV = jnp.exp(logits_BKNV - total_BKN[..., None])
    loss_BKN, gradient_BKNV = jnp.zeros_like(total_BKN), jnp.zeros_like(logits_BKNV)
    if config.distill_weight < 1:
        is_label_BKNV = jnp.arange(logits_BKNV.shape[-1]) == labels_BKN[..., None]
        own_BKN = jnp.sum(jnp.where(is_label_BKNV, logits_BKNV, 0.0), axis=-1)
        loss_BKN += hard_BKN * (total_BKN - own_BKN)
        gradient_BKNV += hard_BKN[..., None] * (q_BKNV - is_label_BKNV)
    if config.distill_weight > 0:
        p_BNV = jax.nn.softmax(unembed(shapes, hidden_BND, target_DV), axis=-1)
        own_BKN = jnp.sum(p_BNV[:, None] * logits_BKNV, axis=-1)
        loss_BKN += soft_BKN * (total_BKN - own_BKN)
        gradient_BKNV += soft_BKN[..., None] * (q_BKNV - p_BNV[:, None])
        if config.with_distance:
            apart_BKNV = q_BKNV - p_BNV[:, None]
            loss_BKN += distance_BKN * jnp.sum(jnp.abs(apart_BKNV), axis=-1) / 2
            side_BKNV = jnp.sign(apart_BKNV)
            mean_BKN1 = jnp.sum(q_BKNV * side_BKNV, axis=-1, keepdims=True)
            gradient_BKNV += distance_BKN[..., None] * q_BKNV * (side_BKNV - mean_BKN1) / 2
    loss_K = jnp.sum(loss_BKN, axis=(0, 2))
    return (jnp.sum(loss_K), (loss_K, _hits(logits_BKNV, labels_BKN, config.ranks))), gradient_BKNV, back


def _logit_of(logits: jax.Array, label: jax.Array) -> jax.Array:
    is_label = jnp.arange(logits.shape[-1]) == label[..., None]
    return jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)


def _hits(logits_BKNV: jax.Array, labels_BKN: jax.Array, ranks: int) -> jax.Array:
    """``[K, R]``, labels among the 1..R largest logits; of equal logits the smaller id comes first."""
    own_BKN1 = _logit_of(logits_BKNV, labels_BKN)[..., None]
    before = jnp.arange(logits_BKNV.shape[-1]) < labels_BKN[..., None]
    rank_BKN = jnp.sum((logits_BKNV > own_BKN1) | ((logits_BKNV == own_BKN1) & before), axis=-1)
    hits_BKNR = (rank_BKN[..., None] < jnp.arange(1, ranks + 1)) & (labels_BKN >= 0)[..., None]
    return jnp.sum(hits_BKNR, axis=(0, 2))
