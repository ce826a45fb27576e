"""The training loss of a draft head and its per-position accuracy (paper section 3.3; labels as in Apple's train/loss.py).

At text position t the head sees h_t, starts from zero state, reads x_{t+1} .. x_{t+1+i} and predicts x_{t+2+i}, for
i = 0..K-1, as long as all of them belong to one example of the row. The cross-entropy is averaged over the labelled
positions of each i and summed over i. Soft labels are the target's own distributions at those positions. Or it reads and predicts
the K + 1 tokens that the target would generate from there (``paths``), the labels of the paper's own recipe.

A head with a draft vocabulary cannot say the other tokens. A hard label that is one of them does not count, neither in the sum
nor in the mean; soft labels are the target's distributions renormalised over the draft vocabulary, at all labelled positions.
Accuracies count what cannot be said as a miss, so they compare across draft vocabularies, and losses do not. In this file V
is then the draft vocabulary, but for the labels that `draft_loss` is given.

Of the ``[K, B, T, V]`` logits a device holds `LOGITS` bytes at a time: the LM head, the losses and the ranks run over chunks of
positions. A chunk's gradients are written out and made while its logits are there, so nothing is computed twice. What the
i-th draft from t predicts stands at t + i, where the drafts of the same token from K places stand side by side and share one
teacher.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.layers import einsum, laid
from redrafter_jax.model.target import COLUMNS, Target

IGNORED = -100  # a label that does not count
LOGITS = 1 << 28  # bytes of float32 logits that a device makes at a time, where a config does not say how many
OUTSIDE = -1  # within this file: a label outside the draft vocabulary
RANKS = 5  # accuracies are reported for the label among the 1..RANKS largest logits


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """positions: K; distill_weight: the share of soft labels, 0..1; chunk: N, positions of a text whose ``[K, V]`` logits
    exist at a time, 0 for as many as a device has room for (`LOGITS` bytes, but eight positions at least)."""

    positions: int = 5
    distill_weight: float = 0.0
    chunk: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """loss: ``[K]``, mean loss of each drafted position; accuracy: ``[K, RANKS]``, share of hard labels among the 1..RANKS
    largest logits; scored: ``[K]``, labels that counted, those outside the draft vocabulary among them; inside: ``[K]``,
    those inside it. Over several batches the loss of hard labels is a mean weighted by ``inside``; accuracies and the loss of
    soft labels are means weighted by ``scored``."""

    loss: jax.Array
    accuracy: jax.Array
    scored: jax.Array
    inside: jax.Array


def draft_loss(
    drafter: Drafter,
    target: Target,
    tokens_BT: jax.Array,
    labels_BT: jax.Array,
    hidden_BTD: jax.Array,
    config: LossConfig,
    segments_BT: jax.Array | None = None,
    paths_BTK: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The summed loss, in nats, and its parts.

    Args:
      labels_BT: the tokens, or IGNORED where the prediction of this token does not count.
      hidden_BTD: the target's hidden states after its last norm; no gradient flows into them.
      segments_BT: which example of its row each token belongs to, examples being contiguous; None where rows are whole.
      paths_BTK: ``[B, T, K + 1]``, other tokens to read and to predict after each text position than the text's own (which
        still says what counts): the target's greedy ones, as in the paper's section 3.3. They have hard labels only.

    Raises:
      ValueError: there are paths, and soft labels are asked for.
    """
    if paths_BTK is not None and config.distill_weight > 0:
        raise ValueError("paths have hard labels only, so distill_weight should be 0")
    T, chunk = tokens_BT.shape[1], _chunk_length(config, drafter.config, *tokens_BT.shape)
    whole = functools.partial(_in_whole_chunks, chunk=chunk)
    tokens_BT, labels_BT, segments_BT, paths_BTK = jax.tree.map(whole, (tokens_BT, labels_BT, segments_BT, paths_BTK))
    drafter = _added_once(drafter)
    hidden_BTD = whole(jax.lax.stop_gradient(hidden_BTD))
    state_BTD = jnp.zeros_like(hidden_BTD)
    context, exits, labels = drafter.context(hidden_BTD), [], []
    for i in range(config.positions):
        read_BT = _shifted(tokens_BT, -1 - i) if paths_BTK is None else paths_BTK[:, :, i]
        state_BTD = drafter.advance(state_BTD, jax.lax.stop_gradient(target.embed(read_BT)))
        exits.append(_shifted(drafter.exit(context, state_BTD), i))
        inside_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]) < T - 2 - i, tokens_BT.shape)
        if segments_BT is not None:
            inside_BT &= segments_BT == _shifted(segments_BT, -2 - i)
        label_BT = jnp.where(inside_BT, _shifted(labels_BT, -2 - i), IGNORED)
        if paths_BTK is not None:
            label_BT = jnp.where(label_BT == IGNORED, IGNORED, paths_BTK[:, :, i + 1])
        labels.append(_shifted(_in_draft_vocabulary(drafter, label_BT), i))
    labels_BKT = jnp.stack(labels, axis=1)
    scored_K, inside_K = (jnp.sum(counts, axis=(0, 2)) for counts in (labels_BKT != IGNORED, labels_BKT >= 0))
    hard_K = (1 - config.distill_weight) / jnp.maximum(inside_K, 1)
    soft_K = config.distill_weight / jnp.maximum(scored_K, 1)
    own_EV = None if drafter.lm_head is None else laid(drafter.lm_head, COLUMNS)
    of_target = drafter.drafted(laid(target.lm_head, COLUMNS))
    given = (tuple(exits), labels_BKT, _shifted(hidden_BTD, -1), of_target, (hard_K, soft_K))
    total, (loss_K, hits_KR) = _score(dataclasses.replace(config, chunk=chunk), own_EV, *given)
    return total, Metrics(loss_K, hits_KR / jnp.maximum(scored_K, 1)[:, None], scored_K, inside_K)


def _shifted(x_BT: jax.Array, by: int) -> jax.Array:
    """`jnp.roll` along the text, ``[B, T, ...]``. Of a single row, a part of a single place would lose its split axis."""
    cut = -by % x_BT.shape[1]
    parts = (jax.sharding.reshard(part, jax.typeof(x_BT).sharding.spec) for part in (x_BT[:, cut:], x_BT[:, :cut]))
    return jnp.concatenate(list(parts), axis=1)


def _chunk_length(config: LossConfig, head: DrafterConfig, B: int, T: int) -> int:
    """N: too few, and the LM head is read and its gradient added to for little work. The chunks are as even as whole tiles of a
    TPU (eight rows) allow, so that little of the last one is filling."""
    if config.chunk:
        return min(config.chunk, T)
    mesh = jax.sharding.get_abstract_mesh().shape
    each = 4 * B * config.positions * (head.draft_vocab or head.vocab_size) // (mesh["data"] * mesh["model"])
    most = max(8, LOGITS // each // 8 * 8)
    return min(T, 8 * -(-T // (8 * -(-T // most))))


def _in_whole_chunks(x_BT: jax.Array, chunk: int) -> jax.Array:
    """``[B, T, ...]`` with T filled up to whole chunks."""
    widths = [(0, 0)] * x_BT.ndim
    widths[1] = (0, -x_BT.shape[1] % chunk)
    return jnp.pad(x_BT, widths)


def _in_draft_vocabulary(drafter: Drafter, labels_BT: jax.Array) -> jax.Array:
    """Labels as columns of the head's logits; OUTSIDE where there is none."""
    if drafter.ids is None:
        return labels_BT
    U = drafter.config.draft_vocab
    column_V = jnp.full(drafter.config.vocab_size, OUTSIDE, jnp.int32).at[drafter.ids[...]].set(jnp.arange(U, dtype=jnp.int32))
    column_BT = column_V.at[labels_BT].get(out_sharding=P("data", None), mode="clip")
    return jnp.where(labels_BT == IGNORED, IGNORED, column_BT)


def _added_once(drafter: Drafter) -> Drafter:
    """The head with its matrices marked (`reduced`) such that the shards of the batch first add up their own gradients over
    all uses, and these are then added once. The LM head's gradient is seen to in `_score`."""

    def mark(path, leaf: jax.Array) -> jax.Array:
        if leaf.ndim != 2 or "lm_head" in jax.tree_util.keystr(path):
            return leaf
        return jax.sharding.reshard(leaf, P(*COLUMNS, reduced={"data"}))

    return jax.tree_util.tree_map_with_path(mark, drafter)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score(config: LossConfig, own_EV, exits, labels_BKT, hidden_BTD, target_DV, weights_K):
    """The sum over drafted positions of the weighted losses; also these ``[K]`` by themselves and the hits ``[K, RANKS]``.
    ``weights``: of a hard and of a soft label of each drafted position; ``own`` is the head's LM head, None for the target's;
    ``exits``: for each drafted position ``[B, T, E]``; hidden are the target's own states that the teachers are made of;
    ``target``: the columns of its LM head that the head can draft. T is so many whole chunks."""

    def of_chunk(carry, start):
        sums, _ = _chunk(config, own_EV, _cut(config, start, exits, labels_BKT, hidden_BTD), target_DV, weights_K)
        return jax.tree.map(jnp.add, carry, sums), None

    return jax.lax.scan(of_chunk, _nothing(config), _starts(config, labels_BKT))[0]


def _score_forward(config: LossConfig, own_EV, exits, labels_BKT, hidden_BTD, target_DV, weights_K):
    """As `_score`, and the gradients, since a chunk's logits are there only now: scaled by what is to come, they are
    all that the backward pass needs. The gradient of a chunk's exits takes their place in memory. Each shard of the batch adds
    up its own gradient of the LM head, and these are added once, after the last chunk."""
    tied = own_EV is None

    def of_chunk(carry, start):
        sums, own_gradient, exits = carry
        chunk = _cut(config, start, exits, labels_BKT, hidden_BTD)
        more, gradient_BKNV = _chunk(config, own_EV, chunk, target_DV, weights_K)
        exits_BKNE = chunk[0]
        if not tied:
            parts = P(*COLUMNS, unreduced={"data"})
            own_gradient += einsum("bkne,bknv->ev", exits_BKNE, gradient_BKNV, out_sharding=parts)
        of_exits = einsum("bknv,ev->bkne", gradient_BKNV, target_DV if tied else own_EV, out_sharding=P("data"))
        put = lambda x_BTE, new_BNE: jax.lax.dynamic_update_slice_in_dim(x_BTE, new_BNE, start, axis=1)  # noqa: E731
        exits = tuple(put(exit_BTE, of_exits[:, i].astype(exit_BTE.dtype)) for i, exit_BTE in enumerate(exits))
        return (jax.tree.map(jnp.add, sums, more), own_gradient, exits), None

    nothing = (_nothing(config), None if tied else _unreduced_zeros(own_EV.shape, own_EV.dtype), exits)
    (sums, own_gradient, exit_gradients), _ = jax.lax.scan(of_chunk, nothing, _starts(config, labels_BKT))
    own_gradient = None if tied else jax.sharding.reshard(own_gradient, COLUMNS)
    return sums, (own_gradient, exit_gradients, (labels_BKT, hidden_BTD, target_DV, weights_K))


def _unreduced_zeros(shape: tuple[int, ...], dtype) -> jax.Array:
    zeros = jnp.zeros(shape, dtype, out_sharding=COLUMNS)
    return jax.sharding.reshard(zeros, P(*COLUMNS, unreduced={"data"}))


def _score_backward(config: LossConfig, kept, cotangents):
    own_gradient, exit_gradients, (labels_BKT, *constants) = kept
    scale = cotangents[0]
    no_label = np.zeros(labels_BKT.shape, jax.dtypes.float0)
    own = None if own_gradient is None else own_gradient * scale
    return own, tuple(gradient * scale for gradient in exit_gradients), no_label, *jax.tree.map(jnp.zeros_like, constants)


_score.defvjp(_score_forward, _score_backward)


def _nothing(config: LossConfig):
    return jnp.float32(0), (jnp.zeros(config.positions), jnp.zeros((config.positions, RANKS), jnp.int32))


def _starts(config: LossConfig, labels_BKT: jax.Array) -> jax.Array:
    return jnp.arange(0, labels_BKT.shape[2], config.chunk)


def _cut(config: LossConfig, start, exits, labels_BKT, hidden_BTD):
    """The chunk from ``start`` on: exits ``[B, K, N, E]``, labels ``[B, K, N]`` and the target's states ``[B, N, D]``."""
    cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, config.chunk, axis)  # noqa: E731
    return jnp.stack([cut(exit_BTE, 1) for exit_BTE in exits], axis=1), cut(labels_BKT, 2), cut(hidden_BTD, 1)


def _chunk(config: LossConfig, own_EV, chunk, target_DV, weights_K):
    """Of one chunk: the weighted loss, the weighted losses ``[K]`` and hits ``[K, RANKS]``; and the gradient of the first by
    the logits ``[B, K, N, V]``: for each label its weight times the head's probabilities less the label's."""
    exits_BKNE, labels_BKN, hidden_BND = chunk
    hard_BKN, soft_BKN = (
        w[:, None] * counts for w, counts in zip(weights_K, (labels_BKN >= 0, labels_BKN != IGNORED), strict=True)
    )
    logits_BKNV = _unembed(exits_BKNE, target_DV if own_EV is None else own_EV)
    total_BKN = jax.nn.logsumexp(logits_BKNV, axis=-1)
    q_BKNV = jnp.exp(logits_BKNV - total_BKN[..., None])
    loss_BKN, gradient_BKNV = jnp.zeros_like(total_BKN), jnp.zeros_like(logits_BKNV)
    if config.distill_weight < 1:
        is_label_BKNV = jnp.arange(logits_BKNV.shape[-1]) == labels_BKN[..., None]
        own_BKN = jnp.sum(jnp.where(is_label_BKNV, logits_BKNV, 0.0), axis=-1)
        loss_BKN += hard_BKN * (total_BKN - own_BKN)
        gradient_BKNV += hard_BKN[..., None] * (q_BKNV - is_label_BKNV)
    if config.distill_weight > 0:
        p_BNV = jax.nn.softmax(_unembed(hidden_BND, target_DV), axis=-1)
        own_BKN = jnp.sum(p_BNV[:, None] * logits_BKNV, axis=-1)
        loss_BKN += soft_BKN * (total_BKN - own_BKN)
        gradient_BKNV += soft_BKN[..., None] * (q_BKNV - p_BNV[:, None])
    loss_K = jnp.sum(loss_BKN, axis=(0, 2))
    return (jnp.sum(loss_K), (loss_K, _hits(logits_BKNV, labels_BKN))), gradient_BKNV


def _unembed(x: jax.Array, weight: jax.Array) -> jax.Array:
    """float32 logits, rows over ``data`` and vocabulary over ``model``."""
    out = P("data", *[None] * (x.ndim - 2), "model")
    return einsum("...e,ev->...v", x, weight, out_sharding=out).astype(jnp.float32)


def _logit_of(logits: jax.Array, label: jax.Array) -> jax.Array:
    is_label = jnp.arange(logits.shape[-1]) == label[..., None]
    return jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)


def _hits(logits_BKNV: jax.Array, labels_BKN: jax.Array) -> jax.Array:
    """``[K, RANKS]``, labels among the 1..RANKS largest logits; of equal logits the smaller id comes first."""
    own_BKN1 = _logit_of(logits_BKNV, labels_BKN)[..., None]
    before = jnp.arange(logits_BKNV.shape[-1]) < labels_BKN[..., None]
    rank_BKN = jnp.sum((logits_BKNV > own_BKN1) | ((logits_BKNV == own_BKN1) & before), axis=-1)
    hits_BKNR = (rank_BKN[..., None] < jnp.arange(1, RANKS + 1)) & (labels_BKN >= 0)[..., None]
    return jnp.sum(hits_BKNR, axis=(0, 2))
