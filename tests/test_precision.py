"""Float32 is multiplied as float32: in the programs for TPUs and GPUs every product of float32 numbers says so."""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest

from redrafter_jax import loss
from redrafter_jax.decode import loop
from redrafter_jax.model import vocabulary
from tests import support
from tests.support import put

SHAPE = loop.Shape(2, 2)
PRODUCT = re.compile(r"stablehlo\.dot_general.*")


def products(lowered) -> list[str]:
    return PRODUCT.findall(lowered.as_text())


def programs(models, platform: str):
    """Prefill of several chunks, rounds, and the gradient of the loss."""
    target, drafter = models
    state = jax.eval_shape(lambda: support.started(target, [[1, 2, 3]], 8, SHAPE.length))
    given = (put([[1] * 300]), put([300]), put([8]), jnp.array([-1]), support.policy(1))
    bucket = loop.prefill.Bucket(512, 8, SHAPE.length)
    hidden = jnp.zeros((1, 8, target.config.hidden_size), target.norm[...].dtype)
    tokens = put([[1, 2, 3, 4, 5, 6, 7, 8]])

    def train(drafter):
        return loss.draft_loss(drafter, target, tokens, tokens, put(hidden), loss.LossConfig(3, 0.5))[0]

    yield loop.start.trace(target, *given, bucket=bucket).lower(lowering_platforms=(platform,))
    yield loop.run.trace(target, drafter, state, 5, SHAPE).lower(lowering_platforms=(platform,))
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
