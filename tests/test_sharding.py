"""Decoding on meshes of eight simulated devices gives the tokens of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode import loop
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.mesh import make_mesh
from redrafter_jax.model.drafter import Drafter, full, slim
from redrafter_jax.model.target import Target, TargetConfig

CONFIG = TargetConfig(256, 64, 128, 2, 8, 8, 8)
PROMPTS = [[row + 1] * (row + 2) for row in range(8)]


def decode(shape: tuple[int, int], head, sampling: Sampling) -> list[list[int]]:
    jax.set_mesh(make_mesh(*shape))
    target = jax.jit(Target, static_argnums=(1, 2))(jax.random.key(0), CONFIG, jnp.float32)
    drafter = jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), head(256, 64), jnp.float32)
    engine = Engine(target, drafter, loop.Shape(4, 3))
    return [reply.token_ids for reply in engine.generate(PROMPTS, sampling, Limits(24), batch=8)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "coupled"])
@pytest.mark.parametrize("mesh_shape", [(8, 1), (1, 8), (2, 4), (4, 2)], ids=str)
def test_every_mesh_gives_the_tokens_of_one_device(mesh_shape, sampling):
    expected = decode((1, 1), full, sampling)
    assert decode(mesh_shape, full, sampling) == expected
    assert len(np.unique(expected)) > 8


def test_a_slim_head_and_filters_run_split_as_well():
    sampling = Sampling(1.0, 20, 0.9)
    assert decode((2, 4), slim, sampling) == decode((1, 1), slim, sampling)


def test_a_mesh_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="16 devices; 8 are visible"):
        make_mesh(4, 4)
