"""Matrices of eight bits: the values, the scales, the product, and a target made of them."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from redrafter_jax.devices import placement
from redrafter_jax.errors import BadInput
from redrafter_jax.files import tensors, weights
from redrafter_jax.model import attention, layers
from redrafter_jax.model.quantised import FORMATS, Quantised, check_device, quantise, widen
from redrafter_jax.model.target import Target
from tests.support import MODELS, load_target, put

IDS = np.random.default_rng(0).integers(0, 503, (2, 20))


def drawn(*shape: int, dtype=np.float32) -> np.ndarray:
    matrix = np.random.default_rng(1).normal(size=shape).astype(dtype)
    matrix[..., 3] = 0  # an output that has no weights
    return matrix


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORMATS)
def test_each_channel_is_scaled_by_its_largest_weight_and_rounded_to_the_nearest(name, dtype):
    matrix = drawn(33, 8, dtype=dtype)
    found = quantise(jnp.asarray(matrix), name)
    for channel, column in enumerate(matrix.astype(np.float32).T):
        scale = np.float32(max(abs(column)) / np.float32(FORMATS[name].largest)) or np.float32(1)
        exact = column / scale
        expected = np.round(exact).astype(np.int8) if name == "int8" else exact.astype(ml_dtypes.float8_e4m3fn)
        np.testing.assert_allclose(found.scale[channel], scale, rtol=1e-7)
        np.testing.assert_array_equal(np.asarray(found.values[:, channel]), expected)
    assert found.values.dtype == FORMATS[name].dtype and found.shape == matrix.shape and found.size == matrix.size
    limits = jnp.iinfo if name == "int8" else jnp.finfo
    assert FORMATS[name].largest == float(limits(FORMATS[name].dtype).max)
    if name == "int8":
        assert abs(np.asarray(found.values[...], np.int32)).max() == 127
        assert (abs(np.asarray(widen(found)) - matrix.astype(np.float32)) <= 0.501 * np.asarray(found.scale[...])).all()


def test_a_device_without_a_format_is_said(monkeypatch):
    check_device("fp8")
    real = jax.jit

    def without_float8(function):
        if real(function).eval_shape(jnp.ones(8)) is not None:
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    monkeypatch.setattr(jax, "jit", without_float8)
    with pytest.raises(BadInput, match="^--weights fp8: cpu does not compute with float8_e4m3fn; take another format$"):
        check_device("fp8", "--weights")


def test_a_stack_of_matrices_has_scales_of_its_own_for_each():
    stack = drawn(3, 9, 8)
    found = quantise(jnp.asarray(stack), "int8")
    for number, matrix in enumerate(stack):
        alone = quantise(jnp.asarray(matrix), "int8")
        np.testing.assert_array_equal(found.values[number], alone.values[...])
        np.testing.assert_array_equal(found.scale[number], alone.scale[...])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 5])
def test_the_product_is_that_of_the_matrix_which_the_values_stand_for(rows, dtype):
    matrix = quantise(jnp.asarray(drawn(33, 8)), "int8")
    x = put(np.random.default_rng(2).normal(size=(1, rows, 33)), np.float32).astype(dtype)
    y = layers.times(x, matrix)
    assert y.dtype == dtype
    expected = np.asarray(x, np.float32) @ np.asarray(widen(matrix))
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=1e-5 if dtype == "float32" else 0.02, atol=1e-2)


def logits(target: Target) -> np.ndarray:
    positions = put(np.broadcast_to(np.arange(IDS.shape[1]), IDS.shape), np.int32)
    return np.asarray(target.unembed(target(put(IDS, np.int32), positions, attention.causal(positions >= 0)).hidden))


@pytest.mark.parametrize("name", FORMATS)
def test_a_target_computes_with_the_matrices_that_its_values_stand_for(name):
    quantised = weights.load_target(MODELS / "target_gqa", weights=name)
    assert quantised.config == dataclasses.replace(load_target("gqa").config, weight_format=name)
    found = {path: leaf for path, leaf in tensors.leaves(quantised)}
    floats = weights.load_target(MODELS / "target_gqa")
    for block, wide in zip(quantised.blocks, floats.blocks, strict=True):
        for part in ("q", "k", "v", "o", "gate", "up", "down"):
            matrix = getattr(block, part).weight
            assert isinstance(matrix, Quantised) and matrix.values.dtype == FORMATS[name].dtype
            getattr(wide, part).weight[...] = widen(matrix)
    for path, leaf in tensors.leaves(load_target("gqa")):  # what is kept is kept
        if path in found:
            np.testing.assert_array_equal(found[path], leaf)
    expected, original = logits(floats), logits(load_target("gqa"))
    np.testing.assert_allclose(logits(quantised), expected, atol=1e-4)
    assert 1e-3 < abs(expected - original).max() < 0.2 * abs(original).max()


def test_bytes_are_those_of_the_values_and_scales():
    config = dataclasses.replace(load_target("mha").config, weight_format="int8")
    target = weights.load_target(MODELS / "target_mha", "bfloat16", weights="int8")
    assert placement.bytes_of_target(config, "bfloat16") == sum(leaf.nbytes for leaf in jax.tree.leaves(target))
    D, F, layers_, V = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size
    matrices, outputs = layers_ * (4 * D * D + 3 * D * F), layers_ * (5 * D + 2 * F)
    assert placement.bytes_of_target(config, "bfloat16") == matrices + 4 * outputs + 2 * (2 * V * D + (2 * layers_ + 1) * D)
    assert placement.parameters_of(target) == placement.parameters_of(load_target("mha"))
