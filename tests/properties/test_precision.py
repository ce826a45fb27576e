"""Float32 is multiplied as float32: in the programs for TPUs and GPUs every product of float32 numbers says so."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax import loss
from redrafter_jax.decode import loop
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.model import vocabulary
from tests import support
from tests.support import put
from train.data.rows import Batch
from train.run import step

SHAPE = Shape(2, 2)
PRODUCT = re.compile(r"stablehlo\.dot_general.*")


def products(lowered) -> list[str]:
    return PRODUCT.findall(lowered.as_text())


def programs(models, platform: str):
    """Prefill of several chunks, rounds, and the gradient of the loss."""
    target, drafter = models
    policy = support.policy(1)
    state = jax.eval_shape(lambda: support.started(target, [[1, 2, 3]], 8, SHAPE.length, policy))
    given = (put([[1] * 300]), put([300]), put([8]), put([[-1]]), policy)
    bucket = loop.prefill.Bucket(512, 8, SHAPE.length)
    hidden = jnp.zeros((2, 8, target.config.hidden_size), target.norm[...].dtype)
    tokens = put([[1, 2, 3, 4, 5, 6, 7, 8]] * 2)

    def train(drafter):
        return loss.draft_loss(drafter, target, tokens, tokens, put(hidden), loss.LossConfig(3, 0.5))[0]

    yield loop.start.trace(target, Plain(), *given, bucket=bucket).lower(lowering_platforms=(platform,))
    yield loop.run.trace(target, Recurrent(drafter, SHAPE), state, 5).lower(lowering_platforms=(platform,))
    yield jax.jit(jax.grad(train)).trace(drafter).lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_every_product_of_float32_is_exact_on_accelerators(mha, platform):
    for lowered in programs(mha, platform):
        found = products(lowered)
        assert len(found) > 5
        assert all("precision = [HIGHEST, HIGHEST]" in product for product in found)


def test_bfloat16_is_multiplied_as_it_is(mha):
    narrow = [vocabulary.cast(model, jnp.bfloat16) for model in mha]
    decoding = itertools.islice(programs(narrow, "tpu"), 2)
    found = [product for lowered in decoding for product in products(lowered)]
    assert found and not any("HIGHEST" in product for product in found)


def test_training_multiplies_the_target_exactly_and_the_heads_weights_as_the_device_does(mha):
    target, drafter = mha
    tokens = put(np.arange(16)[None])  # a single row, whose split axis is easily lost
    batch = Batch(tokens, tokens, put(np.ones((1, 16), int)), tokens)
    config, schedule = loss.LossConfig(3, 0.5), step.Schedule(10)
    state = jax.eval_shape(lambda: step.start(jax.random.key(0), drafter.config, schedule))
    update = jax.jit(functools.partial(step.step, schedule=schedule, config=config))
    lowered = update.trace(state, target, batch).lower(lowering_platforms=("tpu",))
    found = products(lowered)
    exact = [product for product in found if "HIGHEST" in product]
    of_layer = 9  # seven matrices, scores and mixed values, in one function that all layers call
    assert len(exact) == of_layer and len(found) > of_layer + 10
    assert lowered.as_text().count("call @_traced_once") == target.config.num_hidden_layers
