"""A target of one layer and its head, which compile fast and are split over eight devices too."""

import jax
import jax.numpy as jnp

from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.model.drafter import Drafter, full
from redrafter_jax.model.target import Target, TargetConfig

V = 64
CONFIG = TargetConfig(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=4,
)


def models(mesh: tuple[int, int] = (1, 1)) -> tuple[Target, Drafter]:
    """The same weights on any mesh, which is set."""
    jax.set_mesh(make_mesh(*mesh))
    target = jax.jit(Target, static_argnums=(1, 2))(jax.random.key(1), CONFIG, jnp.float32)
    target.lm_head[...] = target.lm_head[...] * 2
    return target, jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(2), full(V, 32), jnp.float32)
