"""Each kind of rotary positions against transformers' own, and what a config.json may not say of it."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from redrafter_jax.errors import BadInput
from redrafter_jax.families import rope as families_rope
from redrafter_jax.model import rope
from tests.support import put

HEAD_DIM, CONTEXT, ORIGINAL = 24, 512, 64
YARN = {"rope_type": "yarn", "factor": 6.0, "rope_theta": 5000.0, "original_max_position_embeddings": ORIGINAL}
LONG = {
    "rope_type": "longrope", "rope_theta": 5000.0, "original_max_position_embeddings": ORIGINAL,
    "short_factor": np.linspace(1, 1.5, 12).tolist(), "long_factor": np.linspace(1, 40, 12).tolist(),
}  # fmt: skip
KINDS = {
    "linear": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 5000.0},
    "llama3": YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": YARN,
    "yarn of no original length": {key: value for key, value in YARN.items() if not key.startswith("original")},
    "yarn with a factor of attention": YARN | {"attention_factor": 0.8},
    "yarn with both scales": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    "yarn with one scale": YARN | {"mscale": 0.7, "mscale_all_dim": 0},
    "yarn with other turns": YARN | {"beta_fast": 4.0, "beta_slow": 0.25, "truncate": False},
    "yarn that divides nothing": YARN | {"factor": 1.0},
    "yarn of one turn": YARN | {"beta_fast": 3, "beta_slow": 3, "truncate": False},
    "longrope": LONG,
    "longrope with a factor": LONG | {"factor": 3.0},
    "longrope with a factor of attention": LONG | {"attention_factor": 1.3},
    "a part": LONG | {"partial_rotary_factor": 0.7, "short_factor": [1.1] * 8, "long_factor": [1.0, 2, 3, 4, 5, 6, 7, 8]},
    "a part of yarn": YARN | {"partial_rotary_factor": 0.5},
    "a part of dynamic": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
}  # fmt: skip


def read(scaling: dict, **fields) -> rope.Rope:
    return families_rope.read({"rope_parameters": scaling} | fields, HEAD_DIM, CONTEXT, "--target", turns_in_part=True)


@pytest.mark.parametrize("name", KINDS)
def test_frequencies_and_factor_of_attention_are_those_of_transformers(name):
    scaling = KINDS[name]
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "head_dim": HEAD_DIM}
    config = transformers.LlamaConfig(**sizes, rope_parameters=dict(scaling))
    ours = read(scaling)
    for length in (ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, CONTEXT, CONTEXT + 40):
        theirs, attention = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, seq_len=length)
        found = ours.inverse_frequencies(HEAD_DIM, jnp.array([length]))[0]
        np.testing.assert_allclose(found, theirs, rtol=1e-5)
        assert ours.attention_factor == pytest.approx(attention)
        positions = put(np.array([[0, 1, 70]]))
        cos, _ = rope.rope_table(ours, HEAD_DIM, positions, jnp.full_like(positions, length))
        angles = np.array([[0], [1], [70]]) * np.tile(theirs, 2)
        np.testing.assert_allclose(cos[0], np.cos(angles) * attention, atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_rope_is_written_as_it_was_read(name):
    found = read(KINDS[name])
    fields = families_rope.fields_of(found)
    assert families_rope.read(fields, HEAD_DIM, CONTEXT, "--target", turns_in_part=True) == found


def test_only_a_part_of_each_head_turns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, HEAD_DIM)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 9, 90, 91]])
    ours = read(KINDS["a part"])
    table = rope.rope_table(ours, HEAD_DIM, put(positions), put(positions + 1))
    found = rope.rotate(put(x), table)
    assert table[0].shape[-1] == ours.width(HEAD_DIM) == 16
    theirs = apply_rotary_pos_emb(*[torch.tensor(x)] * 2, *[torch.tensor(np.asarray(t)) for t in table], unsqueeze_dim=2)[0]
    np.testing.assert_allclose(found, theirs, atol=1e-6)
    np.testing.assert_array_equal(found[..., 16:], x[..., 16:])


def test_a_token_is_turned_by_the_length_of_the_text_that_it_arrives_with():
    ours = read(LONG)
    short, long = (ours.inverse_frequencies(HEAD_DIM, jnp.array([length]))[0] for length in (ORIGINAL, ORIGINAL + 1))
    found = ours.inverse_frequencies(HEAD_DIM, jnp.array([[1, ORIGINAL], [ORIGINAL + 1, 500]]))
    np.testing.assert_array_equal(found, np.stack([[short, short], [long, long]]))
    assert np.all(short[1:] > long[1:])


def test_a_text_that_would_be_read_again_arrives_as_a_whole():
    positions = put(np.array([[0, 1, 2], [4, 5, 6]]))
    again = rope.Rope(rereads=True)
    np.testing.assert_array_equal(rope.lengths_alone(again, positions, False), [[3, 3, 3], [7, 7, 7]])
    np.testing.assert_array_equal(rope.lengths_alone(again, positions, True), [[1, 2, 3], [5, 6, 7]])
    np.testing.assert_array_equal(rope.lengths_alone(rope.Rope(), positions, False), [[1, 2, 3], [5, 6, 7]])


def test_the_original_length_beside_the_scaling_is_preferred_as_in_transformers():
    assert read(YARN, original_max_position_embeddings=128).original_length == 128
    assert read({key: value for key, value in YARN.items() if not key.startswith("original")}).original_length == CONTEXT


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "spiral"}, "rope type 'spiral' is not supported; default, linear, dynamic, llama3, yarn and longrope are"),
        ({"rope_type": ["yarn"]}, "rope type .* is not supported"),
        (YARN | {"factor": None}, "rope type 'yarn': factor in config.json should be a number above 0"),
        (YARN | {"factor": -2}, "rope type 'yarn': factor"),
        (YARN | {"beta_fast": 1, "beta_slow": 2}, "beta_fast in config.json should be at least beta_slow 2, not 1"),
        (YARN | {"beta_fast": "many"}, "beta_fast in config.json should be a number"),
        (YARN | {"truncate": "no"}, "truncate in config.json should be true or false"),
        (YARN | {"attention_factor": -1.0}, "attention_factor in config.json should be a number above 0"),
        (YARN | {"mscale": [1]}, "mscale in config.json should be a number"),
        (YARN | {"rope_theta": 1.0}, "rope_theta in config.json should be above 1, not 1"),
        (
            YARN | {"original_max_position_embeddings": 0},
            "original_max_position_embeddings in config.json should be a whole number",
        ),
        (LONG | {"short_factor": None}, "short_factor in config.json should be a list of 12 numbers"),
        (LONG | {"long_factor": [1.0] * 11}, "long_factor in config.json should be a list of 12 numbers, .* not a list of 11"),
        (LONG | {"long_factor": [1.0] * 11 + [0]}, "long_factor in config.json should be a number above 0"),
        (LONG | {"long_factor": [1.0] * 11 + [None]}, "long_factor in config.json should be a number above 0"),
        (LONG | {"original_max_position_embeddings": 1}, "should be a whole number from 2"),
        (LONG | {"attention_factor": "big"}, "attention_factor in config.json should be a number"),
        ({"partial_rotary_factor": 0.05}, "should turn an even number of features; 0.05 of a head_dim of 24 is 1"),
        ({"partial_rotary_factor": 0.3}, "should turn an even number of features; 0.3 of a head_dim of 24 is 7"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor in config.json should be a number above 0"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor in config.json should be a number above 0"),
        ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.1}, "rope type 'dynamic' needs"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(scaling, named):
    with pytest.raises(BadInput, match=named):
        read(scaling)


def test_a_family_whose_heads_turn_as_a_whole_refuses_a_part():
    with pytest.raises(BadInput, match="partial_rotary_factor is not supported for this model_type"):
        families_rope.read({"partial_rotary_factor": 0.5}, HEAD_DIM, CONTEXT, "--target")
