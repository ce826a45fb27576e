"""The target and the draft head against vectors made by transformers and by the published ReDrafter."""

import filecmp
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from redrafter_jax.decode.propose import recurrent, search
from redrafter_jax.files import config, weights
from redrafter_jax.model import attention, cache, layers
from tests.support import MODELS, PAIRS, golden, load_target, put

TARGETS = sorted(set(PAIRS.values()))
TOLERANCE = 2e-4


@jax.jit
def run_target(target, ids, positions, kv, valid):
    return target(ids, positions, attention.causal(valid), kv)


def read(target, ids, kv=None, first=0, valid=None, features=()):
    positions = put(np.broadcast_to(first + np.arange(ids.shape[1]), ids.shape), np.int32)
    valid = put(np.ones(ids.shape, bool) if valid is None else valid)
    return run_target(target.showing(features), put(ids), positions, kv, valid)


@pytest.mark.parametrize("name", TARGETS)
def test_hidden_states_and_logits_are_those_of_transformers(name):
    target, (vectors, _) = load_target(name), golden(f"target_{name}")
    hidden = read(target, vectors["plain/input_ids"]).hidden
    np.testing.assert_allclose(hidden, vectors["plain/last_hidden"], atol=TOLERANCE)
    np.testing.assert_allclose(target.unembed(hidden), vectors["plain/logits"], atol=TOLERANCE)


@pytest.mark.parametrize("name", TARGETS)
def test_the_features_of_a_layer_are_what_a_target_cut_off_behind_it_ends_with(name):
    target, (vectors, _) = load_target(name), golden(f"target_{name}")
    ids, last = vectors["plain/input_ids"], target.config.num_hidden_layers - 1
    made = read(target, ids, features=(last, 0))
    assert read(target, ids).features is None
    of_last, of_first = np.split(np.asarray(made.features), 2, axis=-1)
    cut_off = nnx.clone(target)
    cut_off.blocks = nnx.List([target.blocks[0]])
    for features, model in ((of_last, target), (of_first, cut_off)):
        normed = layers.rms_norm(put(features), target.norm[...], target.config.rms_norm_eps)
        np.testing.assert_allclose(normed, read(model, ids).hidden, atol=1e-5)
    assert not np.allclose(of_last, of_first, atol=1e-2)


@pytest.mark.parametrize("name", TARGETS)
def test_the_logits_of_some_tokens_are_those_among_all(name):
    target, (vectors, _) = load_target(name), golden(f"target_{name}")
    hidden, ids = read(target, vectors["plain/input_ids"]).hidden, np.array([3, 77, 140])
    some = target.unembed(hidden, put(ids, np.int32))
    np.testing.assert_allclose(some, np.asarray(target.unembed(hidden))[..., ids], atol=1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_rows_of_different_lengths_give_what_transformers_gives_for_padded_ones(name):
    target, (vectors, _) = load_target(name), golden(f"target_{name}")
    ids, mask = vectors["padded/input_ids"], vectors["padded/attention_mask"].astype(bool)
    left = np.stack([np.concatenate([row[m], row[~m]]) for row, m in zip(ids, mask, strict=True)])
    hidden = read(target, left, valid=np.sort(mask, axis=1)[:, ::-1]).hidden
    for row, m in enumerate(mask):
        np.testing.assert_allclose(target.unembed(hidden)[row, : m.sum()], vectors["padded/logits"][row][m], atol=TOLERANCE)


@pytest.mark.parametrize("name", TARGETS)
def test_the_cache_holds_rotated_keys_and_decoding_from_it_changes_nothing(name):
    target, (vectors, meta) = load_target(name), golden(f"target_{name}")
    ids, prefix, c = vectors["plain/input_ids"], meta["prefill_P"], target.config
    rows = read(target, ids[:, :prefix]).rows
    for layer in (layer for layer in range(c.num_hidden_layers) if f"kv/key_layer{layer}" in vectors):
        np.testing.assert_allclose(rows.keys[layer], vectors[f"kv/key_layer{layer}"], atol=TOLERANCE)
        np.testing.assert_allclose(rows.values[layer], vectors[f"kv/value_layer{layer}"], atol=TOLERANCE)
    kv = cache.empty(c.num_hidden_layers, len(ids), c.num_key_value_heads, ids.shape[1] + 3, c.head_dim, jnp.float32)
    kv = cache.append(kv, rows, put([prefix] * len(ids), np.int32))
    for index in range(prefix, ids.shape[1]):
        made = read(target, ids[:, index : index + 1], kv, index)
        hidden, rows = made.hidden, made.rows
        np.testing.assert_allclose(target.unembed(hidden)[:, 0], vectors["incr/logits"][:, index - prefix], atol=TOLERANCE)
        kv = cache.append(kv, rows, put([1] * len(ids), np.int32))


@pytest.mark.parametrize("name", TARGETS)
def test_rotary_frequencies_are_those_of_transformers(name):
    c = load_target(name).config
    ours = c.rope.inverse_frequencies(c.head_dim, jnp.asarray(1))
    np.testing.assert_allclose(ours, golden(f"target_{name}")[0]["rope/inv_freq"], rtol=1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_both_layouts_of_config_json_mean_the_same(name):
    classic, new = (json.loads((MODELS / f"target_{name}" / f).read_text()) for f in ("config.json", "config_v5.json"))
    assert config.target_config(classic) == config.target_config(new)


def test_the_head_advances_exits_and_scores_as_published(pair):
    name, target, drafter = pair
    vectors, _ = golden(f"drafter_{name}")
    tokens, h = put(vectors["forced/tokens"]), put(vectors["h"])
    embedded = target.embed(tokens)
    np.testing.assert_allclose(embedded, vectors["forced/embeddings"], atol=1e-6)
    state = jnp.zeros_like(h)
    for step in range(tokens.shape[1]):
        state = drafter.advance(state, embedded[:, step])
        np.testing.assert_allclose(state, vectors["forced/state"][:, step], atol=1e-5)
        logits = drafter.unembed(drafter.exit(drafter.context(h), state), target)
        np.testing.assert_allclose(logits, vectors["forced/raw_logits"][:, step], atol=TOLERANCE)


@pytest.mark.parametrize("shape", ["1x2", "3x4", "10x5", "45x5"])
@pytest.mark.parametrize("draft_top_k", [50, 0])
def test_the_beams_are_those_of_the_published_search(pair, shape, draft_top_k):
    name, target, drafter = pair
    vectors, _ = golden(f"drafter_{name}")
    prefix = "" if draft_top_k else "nowarp/"
    if f"{prefix}beams_{shape}" not in vectors:
        pytest.skip("the vectors have no such search")
    width, length = map(int, shape.split("x"))
    draft = jax.jit(recurrent.draft, static_argnames=("width", "length", "draft_top_k"))
    h, g = put(vectors["h"]), put(vectors["init_token"])
    beams = draft(target, drafter, h, g, width=width, length=length - 1, draft_top_k=draft_top_k)
    tokens, scores = search.sequences(beams)
    np.testing.assert_array_equal(tokens, vectors[f"{prefix}beams_{shape}"][:, :, 1:])
    np.testing.assert_allclose(scores[..., -1], vectors[f"{prefix}score_{shape}"], atol=TOLERANCE)


@pytest.mark.parametrize("name", list(PAIRS))
def test_apples_format_survives_a_round_trip_byte_for_byte(name, tmp_path):
    folder = MODELS / f"drafter_{name}"
    weights.save_drafter(weights.load_drafter(folder), tmp_path)
    for file in ("config.json", "model.safetensors"):
        assert filecmp.cmp(tmp_path / file, folder / file, shallow=False)


def test_root_mean_square_uses_the_configs_eps():
    tiny = jnp.full((1, 1, 4), 1e-3)
    assert abs(float(layers.rms_norm(tiny, jnp.ones(4), 1e-6)[0, 0, 0]) - 1e-3 / np.sqrt(2e-6)) < 1e-5
