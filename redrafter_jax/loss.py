"""The training loss of a draft head and its per-position accuracy (paper section 3.3; labels as in Apple's train/loss.py).

At text position t the head sees h_t, starts from zero state, reads x_{t+1} .. x_{t+1+i} and predicts x_{t+2+i}, for
i = 0..K-1, as long as all of them belong to one example of the row. The cross-entropy is averaged over the labelled
positions of each i and summed over i. Soft labels are the target's own distributions p at those positions; a share of their loss
may be the total variation sum |p - q| / 2, the probability that a draft sampled from q is refused. Or the head reads and predicts
the K + 1 tokens that the target would generate from there (``paths``), the labels of the paper's own recipe.

A head with a draft vocabulary cannot draft the other tokens. A hard label outside it is left out of the sum and of the
mean; soft labels are the target's distributions renormalised over the draft vocabulary, at all labelled positions.
Accuracies count a label outside it as a miss, so accuracies of different draft vocabularies can be compared, and losses
cannot. In this file V is then the draft vocabulary, except for the labels that `draft_loss` takes.

Of the ``[K, B, T, V]`` logits a device makes `MAX_LOGIT_BYTES` bytes at a time (`cross_entropy.py`). The prediction of the
i-th draft from t is stored at t + i, where the K drafts of the same token line up and share one teacher.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.cross_entropy import IGNORED_LABEL, LossConfig, score
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.layers import COLUMNS
from redrafter_jax.model.medusa import MedusaConfig, MedusaHeads
from redrafter_jax.model.target import Target

MAX_LOGIT_BYTES = 1 << 28  # bytes of float32 logits that a device makes at a time, where a config does not say how many
OUTSIDE_LABEL = -1  # a label outside the draft vocabulary, as `cross_entropy.score` takes it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """loss: ``[K]``, mean loss of each drafted position; accuracy: ``[K, R]``, share of hard labels among the 1..R
    largest logits; scored: ``[K]``, labels that counted, those outside the draft vocabulary among them; inside: ``[K]``,
    those inside it. Over several batches the loss of hard labels is a mean weighted by ``inside``; accuracies and the loss of
    soft labels are means weighted by ``scored``."""

    loss: jax.Array
    accuracy: jax.Array
    scored: jax.Array
    inside: jax.Array


def draft_loss(
    drafter: Drafter | MedusaHeads,
    target: Target,
    tokens_BT: jax.Array,
    labels_BT: jax.Array,
    hidden_BTD: jax.Array,
    config: LossConfig,
    segments_BT: jax.Array | None = None,
    paths_BTK: jax.Array | None = None,
    distance_share: jax.Array | float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """The summed loss, in nats, and its parts.

    Args:
      labels_BT: the tokens, or IGNORED where the prediction of this token does not count.
      hidden_BTD: the target's hidden states after its last norm, with the features that the head reads behind them
        (`Pass.shown`). Their gradient is that of the head's input; none flows in through soft labels.
      segments_BT: which example of its row each token belongs to, examples being contiguous; None where a row is one example.
      paths_BTK: ``[B, T, K + 1]``, tokens to read and to predict after each text position in place of the text's own: the
        target's greedy ones, as in the paper's section 3.3. Hard labels only; the text's labels still decide which positions
        count.
      distance_share: how much of the soft loss is the total variation (0..1) in place of the cross-entropy, where the config has
        it.

    Raises:
      ValueError: there are paths, and soft labels are asked for.
    """
    if paths_BTK is not None and config.distill_weight > 0:
        raise ValueError("paths have hard labels only, so distill_weight should be 0")
    T, chunk = tokens_BT.shape[1], _chunk_length(config, drafter.config, *tokens_BT.shape)
    pad = functools.partial(_pad_to_chunks, chunk=chunk)
    tokens_BT, labels_BT, segments_BT, paths_BTK = jax.tree.map(pad, (tokens_BT, labels_BT, segments_BT, paths_BTK))
    drafter = _added_once(drafter)
    hidden_BTD = pad(hidden_BTD)

    def read(i: int) -> tuple[jax.Array, jax.Array]:
        read_BT = _shifted(tokens_BT, -1 - i) if paths_BTK is None else paths_BTK[:, :, i]
        return read_BT, jax.lax.stop_gradient(target.embed(read_BT))

    exits = [_shifted(exit_BTE, i) for i, exit_BTE in enumerate(drafter.text_exits(hidden_BTD, read, config.positions))]
    labels = []
    for i in range(config.positions):
        inside_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]) < T - 2 - i, tokens_BT.shape)
        if segments_BT is not None:
            inside_BT &= segments_BT == _shifted(segments_BT, -2 - i)
        label_BT = jnp.where(inside_BT, _shifted(labels_BT, -2 - i), IGNORED_LABEL)
        if paths_BTK is not None:
            label_BT = jnp.where(label_BT == IGNORED_LABEL, IGNORED_LABEL, paths_BTK[:, :, i + 1])
        labels.append(_shifted(_in_draft_vocabulary(drafter, label_BT), i))
    labels_BKT = jnp.stack(labels, axis=1)
    scored_K, inside_K = (jnp.sum(counts, axis=(0, 2)) for counts in (labels_BKT != IGNORED_LABEL, labels_BKT >= 0))
    decay_K = config.decay ** jnp.arange(config.positions)
    hard_K = decay_K * (1 - config.distill_weight) / jnp.maximum(inside_K, 1)
    soft_K = decay_K * config.distill_weight / jnp.maximum(scored_K, 1)
    distance_K = distance_share * soft_K
    given = (
        tuple(exits),
        labels_BKT,
        _shifted(target.hidden_of(hidden_BTD), -1),
        target.columns(drafter.ids),
        (hard_K, soft_K - distance_K, distance_K),
    )
    total, (loss_K, hits_KR) = score(target.config, dataclasses.replace(config, chunk=chunk), drafter.own_columns(), *given)
    return total, Metrics(loss_K / decay_K, hits_KR / jnp.maximum(scored_K, 1)[:, None], scored_K, inside_K)


def _shifted(x_BT: jax.Array, by: int) -> jax.Array:
    """`jnp.roll` along the text, ``[B, T, ...]``. Each part is resharded, since a single row and position would lose its
    split axis."""
    cut = -by % x_BT.shape[1]
    parts = (jax.sharding.reshard(part, jax.typeof(x_BT).sharding.spec) for part in (x_BT[:, cut:], x_BT[:, :cut]))
    return jnp.concatenate(list(parts), axis=1)


def _chunk_length(config: LossConfig, head: DrafterConfig | MedusaConfig, B: int, T: int) -> int:
    """N, positions in a chunk. Each chunk reads the LM head and adds to its gradient once, so small chunks waste bandwidth."""
    if config.chunk:
        return min(config.chunk, T)
    return chunk_length(B * config.positions * (head.draft_vocab or head.vocab_size), T)


def chunk_length(logits: int, T: int) -> int:
    """How many of T positions have their float32 logits at a time, so that a device makes `MAX_LOGIT_BYTES` bytes of them at most
    (but those of eight positions at least), where a position of all rows has so many ``logits``. Chunks are multiples of a TPU's
    tile (eight rows) and about equal, so that the last one has little padding."""
    mesh = jax.sharding.get_abstract_mesh().shape
    each = 4 * logits // (mesh["data"] * mesh["model"])
    most = max(8, MAX_LOGIT_BYTES // each // 8 * 8)
    return min(T, 8 * -(-T // (8 * -(-T // most))))


def _pad_to_chunks(x_BT: jax.Array, chunk: int) -> jax.Array:
    """``[B, T, ...]`` with T padded to a multiple of the chunk."""
    widths = [(0, 0)] * x_BT.ndim
    widths[1] = (0, -x_BT.shape[1] % chunk)
    return jnp.pad(x_BT, widths)


def _in_draft_vocabulary(drafter: Drafter, labels_BT: jax.Array) -> jax.Array:
    """Labels as columns of the head's logits; OUTSIDE_LABEL where there is none."""
    if drafter.ids is None:
        return labels_BT
    U = drafter.config.draft_vocab
    column_V = (
        jnp.full(drafter.config.vocab_size, OUTSIDE_LABEL, jnp.int32).at[drafter.ids[...]].set(jnp.arange(U, dtype=jnp.int32))
    )
    column_BT = column_V.at[labels_BT].get(out_sharding=P("data", None), mode="clip")
    return jnp.where(labels_BT == IGNORED_LABEL, IGNORED_LABEL, column_BT)


def _added_once(drafter: Drafter) -> Drafter:
    """The head with its matrices marked as `reduced`: each shard of the batch adds up its own gradients over all uses, and
    these are summed over shards once. `cross_entropy.score` does so for the LM head."""

    def mark(path, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if leaf.ndim != 2 or "lm_head" in name or "bigram" in name:
            return leaf
        return jax.sharding.reshard(leaf, P(*COLUMNS, reduced={"data"}))

    return jax.tree_util.tree_map_with_path(mark, drafter)
