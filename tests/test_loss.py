"""The training loss against the published one: value, accuracies, the gradient of every tensor; and its soft labels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infer.evaluate import metrics
from redrafter_jax import loss
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import tensors, weights
from redrafter_jax.model.drafter import Drafter, DrafterConfig, full, slim
from redrafter_jax.model.target import Target, TargetConfig
from tests.losses import draw_packed_rows, straightforward
from tests.support import MODELS, golden, put
from train.data import rows as data
from train.run import evaluation, step


@functools.partial(jax.jit, static_argnames="config")
def evaluate(drafter, target, tokens, labels, hidden, config):
    return jax.value_and_grad(loss.draft_loss, has_aux=True)(drafter, target, tokens, labels, hidden, config)


@pytest.mark.parametrize("chunk", [7, 64])
def test_loss_accuracy_and_gradients_are_the_published_ones(pair, chunk):
    name, target, drafter = pair
    vectors, _ = golden(f"train_{name}")
    config = loss.LossConfig(len(vectors["n_scored"]), chunk=chunk)
    inputs = (put(vectors[key]) for key in ("input_ids", "labels", "target_last_hidden"))
    (total, metrics), gradients = evaluate(drafter, target, *inputs, config)
    assert abs(float(total) - float(vectors["loss"])) < 2e-4
    np.testing.assert_array_equal(metrics.scored, vectors["n_scored"])
    ranks = vectors["topk_accuracy"].shape[1]
    np.testing.assert_allclose(metrics.accuracy[:, :ranks], vectors["topk_accuracy"], atol=1e-6)
    named = {weights._drafter_name(path, drafter.config): leaf for path, leaf in tensors.leaves(gradients)}
    assert {name for name, _ in named} == {key.removeprefix("grad/") for key in vectors if key.startswith("grad/")}
    for (tensor, flipped), leaf in named.items():
        np.testing.assert_allclose(np.asarray(leaf).T if flipped else leaf, vectors[f"grad/{tensor}"], atol=5e-5)


def test_soft_labels_are_the_targets_distributions_and_mix_linearly(mha):
    target, drafter = mha
    vectors, _ = golden("train_mha_rnn")
    tokens, hidden = put(vectors["input_ids"]), put(vectors["target_last_hidden"])
    totals = [float(evaluate(drafter, target, tokens, tokens, hidden, loss.LossConfig(2, w))[0][0]) for w in (0.0, 1.0, 0.25)]
    assert abs(totals[2] - (0.75 * totals[0] + 0.25 * totals[1])) < 1e-3
    p = np.asarray(jax.nn.softmax(target.unembed(hidden)))
    B, T = tokens.shape
    expected = 0.0
    for i in range(2):
        losses = []
        for t in range(T - 2 - i):
            state = jnp.zeros_like(hidden[:, 0])
            for read in range(i + 1):
                state = drafter.advance(state, target.embed(tokens[:, t + 1 + read]))
            logq = np.asarray(jax.nn.log_softmax(drafter.unembed(drafter.exit(drafter.context(hidden[:, t]), state), target)))
            losses += [-(p[b, t + 1 + i] * logq[b]).sum() for b in range(B)]
        expected += np.mean(losses)
    assert abs(totals[1] - expected) < 1e-3


def test_a_row_without_labels_gives_zero_and_not_nan(mha):
    target, drafter = mha
    vectors, _ = golden("train_mha_rnn")
    tokens, hidden = put(vectors["input_ids"]), put(vectors["target_last_hidden"])
    nothing = put(np.full(tokens.shape, loss.IGNORED_LABEL))
    (total, metrics), gradients = evaluate(drafter, target, tokens, nothing, hidden, loss.LossConfig(2))
    assert float(total) == 0 and metrics.scored.tolist() == [0, 0]
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(gradients))


def test_the_logits_of_all_positions_never_exist_at_once():
    B, T, V, D, K = 4, 512, 8192, 16, 4
    target = jax.eval_shape(
        lambda: Target(
            jax.random.key(0),
            TargetConfig(
                vocab_size=V,
                hidden_size=D,
                intermediate_size=D,
                num_hidden_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                head_dim=D,
            ),
        )
    )
    drafter = jax.eval_shape(lambda: Drafter(jax.random.key(0), full(V, D)))
    tokens, hidden = put(np.zeros((B, T)), np.int32), put(np.zeros((B, T, D)), np.float32)
    program = evaluate.lower(drafter, target, tokens, tokens, hidden, loss.LossConfig(K, 0.5, chunk=8)).compile()
    assert program.memory_analysis().temp_size_in_bytes < K * B * T * V * 4 / 4


@pytest.mark.parametrize(
    ("mesh_shape", "V", "U", "B", "T", "N"),
    [
        ((1, 1), 32000, 0, 8, 2048, 48),
        ((8, 1), 32000, 0, 8, 2048, 416),
        ((1, 8), 32000, 0, 8, 2048, 416),
        ((8, 1), 32000, 0, 8, 420, 216),  # two even ones
        ((1, 1), 128256, 0, 32, 2048, 8),  # no fewer, though these make more
        ((1, 1), 128256, 4096, 8, 2048, 344),
        ((1, 1), 2048, 0, 8, 250, 250),  # all of them
    ],
)
def test_as_many_logits_are_made_at_a_time_as_a_device_has_room_for(mesh_shape, V, U, B, T, N):
    head, each = (
        DrafterConfig(vocab_size=V, hidden_size=64, exit_size=64, tied=True, draft_vocab=U),
        4 * 5 * B * (U or V) // math.prod(mesh_shape),
    )
    assert N * each <= loss.MAX_LOGIT_BYTES or N == 8
    assert -T % N < 8 * -(-T // N)  # little is filling
    with jax.set_mesh(make_mesh(*mesh_shape)):
        assert loss._chunk_length(loss.LossConfig(5), head, B, T) == N
        assert loss._chunk_length(loss.LossConfig(5, chunk=3), head, B, T) == 3


@pytest.mark.parametrize("kind", ["full", "slim"])
@pytest.mark.parametrize("soft", [0.0, 0.3, 1.0])
def test_value_and_gradients_are_those_of_the_straightforward_form_with_packed_rows(kind, soft, mha):
    target, _ = mha
    V, D = target.config.vocab_size, target.config.hidden_size
    drafter = Drafter(jax.random.key(2), {"full": full, "slim": slim}[kind](V, D))
    tokens, labels, hidden, segments = draw_packed_rows(target.config)
    config = loss.LossConfig(3, soft, chunk=5)
    value, gradient = jax.jit(jax.value_and_grad(straightforward), static_argnames="config")(
        drafter, target, tokens, labels, hidden, segments, config=config
    )
    ours = jax.jit(jax.value_and_grad(loss.draft_loss, has_aux=True), static_argnames="config")
    (total, _), gradients = ours(drafter, target, tokens, labels, hidden, config=config, segments_BT=segments)
    assert float(total) == pytest.approx(float(value), rel=1e-5)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_paths_that_are_the_text_give_the_loss_of_the_text(mha):
    target, _ = mha
    V, D, K = target.config.vocab_size, target.config.hidden_size, 3
    drafter = Drafter(jax.random.key(2), full(V, D))
    rng = np.random.default_rng(0)
    tokens, hidden = put(rng.integers(0, V, (2, 23)), np.int32), put(rng.normal(size=(2, 23, D)), np.float32)
    segments = put([[1] * 9 + [2] * 14, [1] * 20 + [0] * 3], np.int32)
    paths = put(np.stack([np.roll(tokens, -1 - i, axis=1) for i in range(K + 1)], axis=-1))
    ours = jax.jit(loss.draft_loss, static_argnames="config")
    given = dict(config=loss.LossConfig(K, chunk=5), segments_BT=segments)
    plain, other = (ours(drafter, target, tokens, tokens, hidden, **given, paths_BTK=each) for each in (None, paths))
    assert float(plain[0]) == pytest.approx(float(other[0]), rel=1e-6) and float(plain[0]) > 1
    np.testing.assert_array_equal(plain[1].scored, other[1].scored)
    different = put(np.roll(paths, 1, axis=0))  # the other row's
    assert float(ours(drafter, target, tokens, tokens, hidden, **given, paths_BTK=different)[0]) != pytest.approx(float(plain[0]))


@pytest.mark.parametrize("name", ["target_mha", "target_tied"])  # with an LM head of its own, and without
def test_bits_per_byte_are_those_of_the_targets_own_logits(name):
    target = weights.load_target(MODELS / name)
    stream = np.random.default_rng(0).integers(0, target.config.vocab_size, 60)
    hidden = step.read(target, data.put_unpacked(stream[None])).hidden
    logits = np.asarray(target.unembed(hidden), np.float64)[0, :-1]
    nats = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(59), stream[1:]]
    found = metrics.bits_per_byte(target, stream, bytes_=120, row_length=60, rows=1)
    assert found == pytest.approx(nats.mean() / np.log(2) * 60 / 120, rel=1e-4)


def test_two_batches_with_a_draft_vocabulary_weigh_as_one_batch_of_both():
    """Of the first batch's labels nearly all can be drafted, of the second's nearly none; and padding differs too."""
    config, rng = (
        TargetConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        ),
        np.random.default_rng(0),
    )
    target, ids = Target(jax.random.key(0), config), np.arange(8, dtype=np.int32)
    drafter = Drafter(
        jax.random.key(1),
        DrafterConfig(vocab_size=64, hidden_size=16, exit_size=16, num_blocks=1, rnn=True, tied=False, draft_vocab=8),
        ids=ids,
    )
    tokens = np.concatenate([rng.integers(0, 9, (2, 12)), rng.integers(6, 64, (2, 12))])
    labels = np.where(np.arange(12) < np.array([[12], [12], [7], [5]]), tokens, loss.IGNORED_LABEL)
    hidden = rng.normal(size=(4, 12, 16)).astype(np.float32)
    how = jax.jit(functools.partial(loss.draft_loss, config=loss.LossConfig(2)))
    of_rows = [
        np.where(np.isin(np.arange(4), rows)[:, None], labels, loss.IGNORED_LABEL) for rows in ([0, 1], [2, 3], [0, 1, 2, 3])
    ]
    parts = [how(drafter, target, *map(put, (tokens, counts, hidden)))[1] for counts in of_rows]
    shares = [part.inside / part.scored for part in parts[:2]]
    assert min(shares[0]) > 0.7 and max(shares[1]) < 0.4
    two, one = evaluation.join_metrics(parts[:2]), evaluation.join_metrics(parts[2:])
    assert abs(two["loss"] - one["loss"]) < 1e-5
    np.testing.assert_allclose(two["accuracy"], one["accuracy"], atol=2e-4)
