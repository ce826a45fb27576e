"""Parts of a head beyond the paper's: what an untrained one changes, what each computes, files, and what Apple's format refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode.propose.recurrent import draft
from redrafter_jax.devices import placement
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, weights
from redrafter_jax.model.drafter import Drafter, DrafterConfig, slim
from redrafter_jax.slices import roofline
from tests.support import put

RANK = 8


def with_parts(V: int, D: int, **parts) -> DrafterConfig:
    return DrafterConfig(vocab_size=V, hidden_size=D, exit_size=D, tied=True, **parts)


def noisy(head: Drafter) -> Drafter:
    """The head with numbers where an untrained part has zeros."""
    head.bigram.columns[...] = jax.random.normal(jax.random.key(5), head.bigram.columns.shape)
    return head


@pytest.fixture(scope="module")
def head(mha) -> Drafter:
    """A head with both parts, whose bigram term does something."""
    shapes = mha[0].config
    return noisy(Drafter(jax.random.key(2), with_parts(shapes.vocab_size, shapes.hidden_size, bigram=RANK, gated=True)))


def test_an_untrained_bigram_term_changes_nothing_and_untrained_gates_little(mha):
    target, _ = mha
    V, D = target.config.vocab_size, target.config.hidden_size
    rng = np.random.default_rng(0)
    h, tokens = put(rng.normal(size=(3, D)), np.float32), put(rng.integers(0, V, 3), np.int32)
    found = []
    for shapes in (slim(V, D), with_parts(V, D, bigram=RANK), with_parts(V, D, gated=True)):
        drafter, state = Drafter(jax.random.key(2), shapes), jnp.zeros_like(h)
        for _ in range(3):
            state = drafter.advance(state, target.embed(tokens))
        found.append((state, drafter.unembed(drafter.exit(drafter.context(h), state, tokens), target)))
    (plain, plain_logits), (_, bigram_logits), (gated, gated_logits) = found
    np.testing.assert_array_equal(bigram_logits, plain_logits)
    assert 0 < np.abs(gated - plain).max() < 0.1 * np.abs(plain).max()
    assert np.corrcoef(np.ravel(gated_logits), np.ravel(plain_logits))[0, 1] > 0.99


def test_a_beam_drafts_what_the_formulas_say(mha, head):
    """One beam is a chain: each token the likeliest of the logits with R[x] C added, x the token before it."""
    target, _ = mha
    h = put(np.random.default_rng(1).normal(size=(2, target.config.hidden_size)), np.float32)
    g = put([3, 7], np.int32)
    beams = jax.jit(draft, static_argnames=("width", "length"))(target, head, h, g, 1, 3)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    of = lambda layer, x: np.asarray(x @ layer.weight[...] + (0 if layer.bias is None else layer.bias[...]))  # noqa: E731
    state, token = np.zeros_like(h), np.asarray(g)
    for step in range(3):
        e, gates = np.asarray(target.embedding[...])[token], head.gates
        keep = sigmoid(of(gates.keep_w, e) + of(gates.keep_u, state))
        read = sigmoid(of(gates.read_w, e) + of(gates.read_u, state))
        new = of(head.rnn_w, e) + of(head.rnn_u, read * state)
        state = keep * state + (1 - keep) * new * sigmoid(new)
        z = np.asarray(head.exit(head.context(h), put(state, np.float32), put(token, np.int32)))[:, :-RANK]
        logits = z @ np.asarray(target.lm_head[...]) + np.asarray(head.bigram.rows[...])[token] @ np.asarray(
            head.bigram.columns[...]
        )
        token = logits.argmax(-1)
        np.testing.assert_array_equal(beams.tokens[:, step, 0], token)


def test_what_is_written_is_read_and_says_its_parts(tmp_path, head):
    weights.save_drafter(head, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["bigram_rank"], fields["gated_state"]) == (RANK, True)
    read = weights.load_drafter(tmp_path)
    assert read.config == head.config
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(head), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_head_without_parts_is_written_as_ever(tmp_path, mha):
    weights.save_drafter(mha[1], tmp_path)
    assert not {"bigram_rank", "gated_state"} & set(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"bigram_rank": 0}, "bigram_rank in config.json should be a whole number from 1 to"),
        ({"bigram_rank": 1 << 20}, "bigram_rank"),
        ({"gated_state": "yes"}, "gated_state"),
        ({"gated_state": True, "rnn": False}, "gated_state in config.json is of a recurrent state, and rnn is false"),
    ],
)
def test_wrong_parts_are_one_sentence(fields, sentence, tmp_path, head):
    weights.save_drafter(head, tmp_path)
    with pytest.raises(BadInput, match=sentence):
        config.drafter_config(json.loads((tmp_path / "config.json").read_text()) | fields)


def test_apples_format_refuses_what_it_has_no_place_for(tmp_path, mha, head):
    with pytest.raises(BadInput, match="the head has a bigram term and gates, and Apple's architecture has no place for that"):
        weights.save_drafter(head, tmp_path / "head", target=mha[0])
    assert not (tmp_path / "head").exists()


def test_the_parts_are_counted(mha):
    """A row of the bigram's table is read, and its columns multiplied; the gates are four matrices of every drafted token."""
    target = mha[0].config
    V, D = target.vocab_size, target.hidden_size
    plain, bigram, gated = (with_parts(V, D, **parts) for parts in ({}, {"bigram": RANK}, {"gated": True}))
    size = lambda shapes: placement.bytes_of_head(shapes, "float32")  # noqa: E731
    assert size(bigram) - size(plain) == 4 * 2 * V * RANK
    assert size(gated) - size(plain) == 4 * (4 * D * D + 2 * D)
    work = [roofline.draft(roofline.Setting(target, shapes, 1, 1, 1, 64, 4), 2, 3) for shapes in (plain, bigram, gated)]
    assert work[1].flops - work[0].flops == 2 * 2 * 3 * V * RANK
    assert work[2].flops - work[0].flops == 2 * 2 * 3 * 4 * D * D
