"""Parts of a head beyond the paper's: what an untrained one changes, what each computes, files, and what Apple's format refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape, draft
from redrafter_jax.devices import placement
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, weights
from redrafter_jax.model import attention
from redrafter_jax.model.drafter import Drafter, DrafterConfig, slim
from redrafter_jax.model.parts import all_features, evenly, pick_features
from redrafter_jax.slices import roofline
from tests.support import put
from train.run import beginning

RANK = 8


def with_parts(V: int, D: int, **parts) -> DrafterConfig:
    return DrafterConfig(vocab_size=V, hidden_size=D, exit_size=D, tied=True, **parts)


def noisy(head: Drafter) -> Drafter:
    """The head with numbers where untrained parts have zeros."""
    head.depths.mix.weight[...] = 0.2 * jax.random.normal(jax.random.key(6), head.depths.mix.weight.shape)
    head.bigram.columns[...] = jax.random.normal(jax.random.key(5), head.bigram.columns.shape)
    return head


@pytest.fixture(scope="module")
def head(mha) -> Drafter:
    """A head with all parts, each of which does something."""
    shapes, parts = mha[0].config, dict(bigram=RANK, gated=True, depths=(0, 2))
    return noisy(Drafter(jax.random.key(2), with_parts(shapes.vocab_size, shapes.hidden_size, **parts)))


def test_an_untrained_bigram_term_and_features_change_nothing_and_untrained_gates_little(mha):
    target, _ = mha
    V, D = target.config.vocab_size, target.config.hidden_size
    rng = np.random.default_rng(0)
    h, tokens = put(rng.normal(size=(3, 3 * D)), np.float32), put(rng.integers(0, V, 3), np.int32)
    found, some = [], ({"bigram": RANK}, {"depths": (0, 2)}, {"gated": True})
    for shapes in (slim(V, D), *(with_parts(V, D, **part) for part in some)):
        drafter, state = Drafter(jax.random.key(2), shapes), jnp.zeros_like(h[:, :D])
        for _ in range(3):
            state = drafter.advance(state, target.embed(tokens))
        context = drafter.context(h if shapes.depths else h[:, :D])
        found.append((state, drafter.unembed(drafter.exit(context, state, tokens), target)))
    (plain, plain_logits), (_, bigram_logits), (_, features_logits), (gated, gated_logits) = found
    np.testing.assert_array_equal(bigram_logits, plain_logits)
    np.testing.assert_array_equal(features_logits, plain_logits)
    assert 0 < np.abs(gated - plain).max() < 0.1 * np.abs(plain).max()
    assert np.corrcoef(np.ravel(gated_logits), np.ravel(plain_logits))[0, 1] > 0.99


def test_a_beam_drafts_what_the_formulas_say(mha, head):
    """One beam is a chain: each token the likeliest of the logits with R[x] C added, x the token before it; h with the
    inner layers' outputs, each divided by its root mean square, times M."""
    target, _ = mha
    D, same = target.config.hidden_size, Drafter(jax.random.key(2), dataclasses.replace(head.config, depths=()))
    same = beginning.grow(head, same)  # without the features
    shown = np.random.default_rng(1).normal(size=(2, 3 * D)).astype(np.float32) * np.repeat([1, 9, 0.1], D).astype(np.float32)
    parts = [part / np.sqrt(np.mean(part**2, axis=-1, keepdims=True)) for part in (shown[:, D : 2 * D], shown[:, 2 * D :])]
    h = put(shown[:, :D] + np.concatenate(parts, axis=-1) @ np.asarray(head.depths.mix.weight[...]), np.float32)
    g = put([3, 7], np.int32)
    beams = jax.jit(draft, static_argnames=("width", "length"))(target, head, put(shown, np.float32), g, 1, 3)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    of = lambda layer, x: np.asarray(x @ layer.weight[...] + (0 if layer.bias is None else layer.bias[...]))  # noqa: E731
    state, token = np.zeros_like(h), np.asarray(g)
    for step in range(3):
        e, gates = np.asarray(target.embedding[...])[token], head.gates
        keep = sigmoid(of(gates.keep_w, e) + of(gates.keep_u, state))
        read = sigmoid(of(gates.read_w, e) + of(gates.read_u, state))
        new = of(head.rnn_w, e) + of(head.rnn_u, read * state)
        state = keep * state + (1 - keep) * new * sigmoid(new)
        z = np.asarray(same.exit(same.context(h), put(state, np.float32), put(token, np.int32)))[:, :-RANK]
        logits = z @ np.asarray(target.lm_head[...]) + np.asarray(head.bigram.rows[...])[token] @ np.asarray(
            head.bigram.columns[...]
        )
        token = logits.argmax(-1)
        np.testing.assert_array_equal(beams.tokens[:, step, 0], token)


def test_what_is_written_is_read_and_says_its_parts(tmp_path, head):
    weights.save_drafter(head, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["bigram_rank"], fields["gated_state"], fields["target_depths"]) == (RANK, True, [0, 2])
    read = weights.load_drafter(tmp_path)
    assert read.config == head.config
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(head), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_head_without_parts_is_written_as_ever(tmp_path, mha):
    weights.save_drafter(mha[1], tmp_path)
    assert not {"bigram_rank", "gated_state", "target_depths"} & set(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"bigram_rank": 0}, "bigram_rank in config.json should be a whole number from 1 to"),
        ({"bigram_rank": 1 << 20}, "bigram_rank"),
        ({"gated_state": "yes"}, "gated_state"),
        ({"target_depths": [2, 0]}, "target_depths in config.json should be layers from 0 on, ascending, not"),
        ({"target_depths": []}, "target_depths"),
        ({"target_depths": [1.0]}, "target_depths"),
        ({"target_depths": 3}, "target_depths"),
        ({"gated_state": True, "rnn": False}, "gated_state in config.json is of a recurrent state, and rnn is false"),
    ],
)
def test_wrong_parts_are_one_sentence(fields, sentence, tmp_path, head):
    weights.save_drafter(head, tmp_path)
    with pytest.raises(BadInput, match=sentence):
        config.drafter_config(json.loads((tmp_path / "config.json").read_text()) | fields)


def test_apples_format_refuses_what_it_has_no_place_for(tmp_path, mha, head):
    with pytest.raises(
        BadInput, match="the head has a bigram term and gates and features of inner layers, and Apple's architecture"
    ):
        weights.save_drafter(head, tmp_path / "head", target=mha[0])
    assert not (tmp_path / "head").exists()


def test_the_parts_are_counted(mha):
    """A row of the bigram's table is read, and its columns multiplied; the gates are four matrices of every drafted token,
    those of features are multiplied once in a round."""
    target = mha[0].config
    V, D = target.vocab_size, target.hidden_size
    kinds = {}, {"bigram": RANK}, {"gated": True}, {"depths": (0, 1)}
    plain, bigram, gated, features = (with_parts(V, D, **parts) for parts in kinds)
    size = lambda shapes: placement.bytes_of_head(shapes, "float32")  # noqa: E731
    assert size(bigram) - size(plain) == 4 * 2 * V * RANK
    assert size(gated) - size(plain) == 4 * (4 * D * D + 2 * D)
    work = [roofline.draft(roofline.Setting(target, shapes, 1, 1, 1, 64, 4), 2, 3) for shapes in (plain, bigram, gated, features)]
    assert work[1].flops - work[0].flops == 2 * 2 * 3 * V * RANK
    assert work[2].flops - work[0].flops == 2 * 2 * 3 * 4 * D * D
    assert size(features) - size(plain) == work[3].bytes - work[0].bytes == 4 * 2 * D * D
    assert work[3].flops - work[0].flops == 2 * 2 * D * D
    made = [placement.abstract_head(shapes) for shapes in (plain, features)]
    assert made[0].weights_per_position() == made[1].weights_per_position()
    assert [each.weights_per_place() for each in made] == [0, 2 * D * D]


def test_a_target_that_shows_inner_layers_says_the_same(mha):
    target, _ = mha
    tokens = put(np.random.default_rng(3).integers(0, target.config.vocab_size, (2, 7)), np.int32)
    positions, visible = put(np.tile(np.arange(7), (2, 1)), np.int32), attention.causal(tokens >= 0)
    plain, made = target(tokens, positions, visible), target.showing((0, 1))(tokens, positions, visible)
    assert plain.features is None and target.features == () and target.showing(()) is target
    np.testing.assert_array_equal(made.hidden, plain.hidden)
    np.testing.assert_array_equal(made.shown, np.concatenate([plain.hidden, made.features], axis=-1))


def test_layers_part_a_target_evenly():
    assert evenly(6, 2) == (1, 3) and evenly(32, 2) == (10, 20) and evenly(2, 1) == (0,) and evenly(28, 0) == ()
    assert all(len(set(evenly(layers, count))) == count for layers in range(1, 40) for count in range(layers))
    assert evenly(2, 2) == (0, 1) and evenly(1, 2) == (0, 0) and evenly(4, 5) == (0, 1, 2, 3, 3)  # of a target that is cut


def test_a_part_of_what_a_target_shows_is_picked():
    shown = jnp.arange(12.0).reshape(2, 6)  # D = 2: a hidden state and two layers
    np.testing.assert_array_equal(pick_features(shown, (1, 4), (4,)), shown[:, [0, 1, 4, 5]])
    np.testing.assert_array_equal(pick_features(shown, (1, 4), ()), shown[:, :2])
    assert pick_features(shown, (1, 4), (1, 4)) is shown
    assert all_features([(4,), (), (1, 4)]) == (1, 4)


def test_layers_that_a_target_lacks_are_refused_before_anything_runs(mha, head):
    wrong = Drafter(jax.random.key(0), dataclasses.replace(head.config, depths=(0, 7)))
    with pytest.raises(BadInput, match=r"what drafts reads layers \[0, 7\], counted from 0, of a target that has 3"):
        Engine(mha[0], Recurrent(wrong, Shape(1, 2)))


def test_a_head_of_a_deeper_target_is_refused(mha, head):
    shallow = dataclasses.replace(mha[0].config, num_hidden_layers=2)
    with pytest.raises(BadInput, match="reads what layer 2 of its target puts out, counted from 0, but this target has 2 layers"):
        config.check_pair(shallow, head.config)
