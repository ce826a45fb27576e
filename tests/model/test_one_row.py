"""A plain step of one row on a TPU: padded so that its products leave the vector unit, with the same result."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import loop
from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Recurrent, Shape
from redrafter_jax.model import attention, layers
from redrafter_jax.slices import compiler, topology
from tests import support

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='libtpu, the TPU compiler, is not installed (pip install "jax[tpu]")'
)
SPEC = P("data", None, "model")


def normal(*shape: int) -> jax.Array:
    return support.put(np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32))


def test_a_row_multiplied_as_one_of_two_is_multiplied_as_if_alone():
    x, weight = (
        normal(1, 1, 48),
        jax.device_put(np.random.default_rng(0).normal(size=(48, 32)).astype(np.float32), P(None, "model")),
    )
    alone, padded = layers.product(x, weight, SPEC), layers.of_two_rows(x, weight, SPEC)
    assert alone.shape == padded.shape
    np.testing.assert_allclose(padded, alone, rtol=1e-5, atol=1e-5)


def test_a_query_among_eight_attends_as_if_alone():
    q, part, cached = normal(2, 4, 1, 16), normal(2, 4, 1, 16), normal(2, 4, 32, 16)
    masks = support.put(np.ones((2, 1, 1), bool)), support.put(np.arange(32)[None, None] < np.array([[[7]], [[0]]]))
    operands = (q, (cached, part), (cached, part), masks[::-1])
    alone, padded = attention.softmax_mix(*operands), attention.of_eight_queries(*operands)
    assert alone.shape == padded.shape
    np.testing.assert_allclose(padded, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [AUTOREGRESSIVE, Shape(1, 2)], ids=["plain", "1x2"])
def test_the_tokens_are_the_same_with_everything_that_is_padded_on_a_tpu(mha, shape, monkeypatch):
    target, head = mha
    state = support.started(target, [[5, 6, 7]], 12, shape.length)
    taken = []

    def as_on_a_tpu(*operands, default, tpu=None):
        taken.append(tpu)
        return (tpu or default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", as_on_a_tpu)
    proposer = Recurrent(head, shape).prepare(target)
    one_round = jax.jit(lambda *given: loop.one_round(*given))  # traced here, whatever `loop.run` has traced before
    padded = state
    for _ in range(12):
        padded = one_round(target, proposer, padded)
    monkeypatch.undo()
    assert any(getattr(tpu, "func", None) is layers.of_two_rows for tpu in taken)
    assert shape.length or any(getattr(tpu, "func", None) is attention.of_eight_queries for tpu in taken)
    assert support.texts(padded) == support.texts(loop.run(target, proposer, state, 12))


def cycles(function, *shapes: tuple[tuple[int, ...], P]) -> float:
    """That the compiler for v5e expects."""
    slice_ = topology.find_slice("v5e:2x2")
    with jax.set_mesh(slice_.mesh(1, 4)):
        arrays = [compiler.abstract(shape, jnp.bfloat16, spec) for shape, spec in shapes]
        return sum(compiler.compile_program(jax.jit(function), *arrays).cycles.values())


@needs_compiler
def test_the_product_of_a_single_row_is_expected_to_take_less_than_half_on_a_tpu():
    x, weight = ((1, 1, 4096), P("data", None, None)), ((4096, 5504), P(None, "model"))
    as_it_is = functools.partial(layers.product, spec=SPEC)
    unpadded = lambda x, w: jnp.einsum("bni,io->bno", x, w, out_sharding=SPEC)  # noqa: E731
    assert cycles(as_it_is, x, weight) < 0.5 * cycles(unpadded, x, weight)


@needs_compiler
def test_a_shard_of_more_rows_is_multiplied_as_it_is():
    x, weight = ((8, 1, 4096), P("data", None, None)), ((4096, 5504), P(None, "model"))
    as_it_is = functools.partial(layers.product, spec=SPEC)
    unpadded = lambda x, w: jnp.einsum("bni,io->bno", x, w, out_sharding=SPEC)  # noqa: E731
    assert cycles(as_it_is, x, weight) == cycles(unpadded, x, weight)


@needs_compiler
def test_attention_with_one_query_per_head_is_expected_to_take_less_than_half_on_a_tpu(monkeypatch):
    q = ((8, 1, 16, 128), P("data", None, "model", None))
    new, cached = ((8, 16, 1, 128), P("data", "model", None, None)), ((8, 16, 2048, 128), P("data", "model", None, None))

    def attend(q, k, v, keys, values):
        visible = jnp.ones((8, 1, 1), bool, out_sharding=P("data"))
        length = jnp.full((8,), 2000, out_sharding=P("data"))
        return attention.attend(q, k, v, visible, (keys, values, length))

    padded = cycles(attend, q, new, new, cached, cached)
    monkeypatch.setattr(attention, "of_eight_queries", attention.softmax_mix)
    assert padded < 0.5 * cycles(lambda *arrays: attend(*arrays), q, new, new, cached, cached)
