"""Low-rank adapters: nothing at first, the merged target later, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from redrafter_jax.devices import mesh
from redrafter_jax.model import attention, lora
from tests import small
from tests.support import load_target, put

TOKENS = np.random.default_rng(0).integers(1, 60, (4, 12)).astype(np.int32)


def hidden(target) -> np.ndarray:
    def read(target, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape, out_sharding=jax.typeof(tokens).sharding)
        return target(tokens, positions, attention.causal(tokens >= 0)).hidden

    return np.asarray(jax.jit(read)(target, put(TOKENS)))


def random_adapter(target, scale: float = 0.05) -> lora.Adapter:
    """An adapter whose B are not zero."""
    made = lora.Adapter(jax.random.key(1), target.config, lora.LoraConfig(4, 8.0))
    for number, block in enumerate(made.blocks):
        for place, name in enumerate(lora.ADAPTED):
            b = getattr(block, name).b
            key = jax.random.key(10 * number + place)
            b[...] = scale * jax.random.normal(key, b.shape, out_sharding=jax.typeof(b[...]).sharding.spec)
    return made


@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_an_untrained_adapter_leaves_the_target_as_it_is_bit_for_bit(name):
    target = load_target(name)
    adapter = lora.Adapter(jax.random.key(1), target.config, lora.LoraConfig(4, 8.0))
    np.testing.assert_array_equal(hidden(lora.adapt(target, adapter)), hidden(target))
    jax.tree.map(np.testing.assert_array_equal, lora.merge(target, adapter), target)


def test_the_merged_target_is_the_adapted_one():
    target = load_target("gqa")
    adapter, before = random_adapter(target), hidden(target)
    adapted = hidden(lora.adapt(target, adapter))
    assert np.abs(adapted - before).max() > 0.1
    np.testing.assert_allclose(hidden(lora.merge(target, adapter)), adapted, atol=2e-5)
    np.testing.assert_array_equal(hidden(target), before)  # the target itself is as it was


@pytest.mark.parametrize("spread", [False, True])
def test_a_mesh_gives_what_one_device_gives(spread):
    single, _ = small.models()
    one = hidden(lora.adapt(single, random_adapter(single)))
    split = mesh.spread(small.models((2, 4))[0], spread)
    adapter = mesh.spread(random_adapter(split), spread)
    assert jax.typeof(adapter.blocks[0].down.a[...]).sharding.spec == P("model", "data" if spread else None)
    np.testing.assert_allclose(hidden(lora.adapt(split, adapter)), one, atol=2e-5)
    np.testing.assert_allclose(hidden(lora.merge(split, adapter)), one, atol=2e-5)
