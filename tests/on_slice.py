"""A target small enough to compile for a TPU slice in seconds, its head, and the mark of tests that need the TPU compiler."""

import importlib.util

import pytest

from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.model import drafter
from redrafter_jax.model.target import TargetConfig

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='libtpu, the TPU compiler, is not installed (pip install "jax[tpu]")'
)
TARGET = TargetConfig(
    vocab_size=32000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=128,
)
HEAD = drafter.full(TARGET.vocab_size, TARGET.hidden_size)
MESH, BATCH, SHAPE = (2, 4), 8, Shape(4, 2)
