"""The training loss of a draft head and its per-position accuracy (paper section 3.3; labels as in Apple's train/loss.py).

At text position t the head sees h_t, starts from zero state, reads x_{t+1} .. x_{t+1+i} and predicts x_{t+2+i}, for
i = 0..K-1. The cross-entropy is averaged over the labelled positions of each i and summed over i. Soft labels are the
target's own distributions at those positions.

The ``[K, B, T, V]`` logits never exist: the LM head, the losses and the ranks run over chunks of positions, and are
computed again in the backward pass.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target

IGNORED = -100  # a label that does not count
RANKS = 5  # accuracies are reported for the label among the 1..RANKS largest logits


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """positions: K; distill_weight: the share of soft labels, 0..1; chunk: text positions whose logits exist at a time."""

    positions: int = 5
    distill_weight: float = 0.0
    chunk: int = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """loss: ``[K]``, mean loss of each drafted position; accuracy: ``[K, RANKS]``, share of hard labels among the 1..RANKS
    largest logits; scored: ``[K]``, labels that counted."""

    loss: jax.Array
    accuracy: jax.Array
    scored: jax.Array


def draft_loss(
    drafter: Drafter, target: Target, tokens_BT: jax.Array, labels_BT: jax.Array, hidden_BTD: jax.Array, config: LossConfig
) -> tuple[jax.Array, Metrics]:
    """The summed loss, in nats, and its parts.

    Args:
      labels_BT: the tokens, or IGNORED where the prediction of this token does not count.
      hidden_BTD: the target's hidden states after its last norm; no gradient flows into them.
    """
    T = tokens_BT.shape[1]
    hidden_BTD = jax.lax.stop_gradient(hidden_BTD)
    state_BTD = jnp.zeros_like(hidden_BTD)
    sums = []
    for i in range(config.positions):
        read_BT = jnp.roll(tokens_BT, -1 - i, axis=1)
        state_BTD = drafter.advance(state_BTD, jax.lax.stop_gradient(target.embed(read_BT)))
        exit_BTE = drafter.exit(hidden_BTD, state_BTD)
        label_BT = jnp.where(jnp.arange(T) < T - 2 - i, jnp.roll(labels_BT, -2 - i, axis=1), IGNORED)
        teacher_BTD = jnp.roll(hidden_BTD, -1 - i, axis=1)
        sums.append(_sums(drafter, target, exit_BTE, label_BT, teacher_BTD, config))
    loss_K, hits_KR, scored_K = (jnp.stack(part) for part in zip(*sums, strict=True))
    counted_K = jnp.maximum(scored_K, 1)
    return jnp.sum(loss_K / counted_K), Metrics(loss_K / counted_K, hits_KR / counted_K[:, None], scored_K)


def _sums(drafter, target, exit_BTE, label_BT, teacher_BTD, config: LossConfig):
    """Over all positions: the summed loss, the hits ``[RANKS]`` and the number of labels."""
    T = label_BT.shape[1]
    chunk = min(config.chunk, T)
    chunks = -(-T // chunk)

    def cut(x: jax.Array, fill) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * chunk - T)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        tail = [None] * (x.ndim - 2)
        x = jnp.reshape(x, (x.shape[0], chunks, chunk, *x.shape[2:]), out_sharding=P("data", None, None, *tail))
        return jnp.swapaxes(x, 0, 1)

    @jax.checkpoint
    def of_chunk(carry, part):
        exit_BNE, label_BN, teacher_BND = part
        counts_BN = label_BN != IGNORED
        logits_BNV = drafter.logits(exit_BNE, target)
        loss_BN = _cross_entropy(logits_BNV, jnp.maximum(label_BN, 0), teacher_BND, target, config.distill_weight)
        hits_R = _hits(logits_BNV, label_BN)
        now = (jnp.sum(loss_BN * counts_BN), hits_R, jnp.sum(counts_BN))
        return jax.tree.map(jnp.add, carry, now), None

    zero = (jnp.float32(0), jnp.zeros(RANKS, jnp.int32), jnp.int32(0))
    return jax.lax.scan(of_chunk, zero, (cut(exit_BTE, 0), cut(label_BT, IGNORED), cut(teacher_BTD, 0)))[0]


def _cross_entropy(logits_BNV, label_BN, teacher_BND, target: Target, soft: float) -> jax.Array:
    """``[B, N]`` in nats against the label, the target's distribution, or a mixture."""
    total_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
    aimed_BN = 0.0
    if soft < 1:
        aimed_BN += (1 - soft) * _logit_of(logits_BNV, label_BN)
    if soft > 0:
        p_BNV = jax.lax.stop_gradient(jax.nn.softmax(target.logits(teacher_BND), axis=-1))
        aimed_BN += soft * jnp.sum(p_BNV * logits_BNV, axis=-1)
    return total_BN - aimed_BN


def _logit_of(logits_BNV: jax.Array, label_BN: jax.Array) -> jax.Array:
    is_label_BNV = jnp.arange(logits_BNV.shape[-1]) == label_BN[..., None]
    return jnp.sum(jnp.where(is_label_BNV, logits_BNV, 0.0), axis=-1)


def _hits(logits_BNV: jax.Array, label_BN: jax.Array) -> jax.Array:
    """How many labels are among the 1..RANKS largest logits; of equal logits the smaller id comes first."""
    logits_BNV = jax.lax.stop_gradient(logits_BNV)
    own_BN1 = _logit_of(logits_BNV, label_BN)[..., None]
    before = jnp.arange(logits_BNV.shape[-1]) < label_BN[..., None]
    rank_BN = jnp.sum((logits_BNV > own_BN1) | ((logits_BNV == own_BN1) & before), axis=-1)
    hit_BNR = (rank_BN[..., None] < jnp.arange(1, RANKS + 1)) & (label_BN != IGNORED)[..., None]
    return jnp.sum(hit_BNR, axis=(0, 1))
