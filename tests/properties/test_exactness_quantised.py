"""Same seed, same text for a quantised target: plain and speculative decoding share its weights, on one device and on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import weights
from redrafter_jax.model.drafter import Drafter, full
from redrafter_jax.model.target import Target, TargetConfig
from tests import support
from tests.support import MODELS, PROMPTS

NEW = 40
GREEDY, SAMPLED = Sampling(), Sampling(1.0, 20, 0.95)
CONFIG = TargetConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
)


def texts(engine: Engine, way: Sampling, batch: int) -> list[list[int]]:
    return [reply.token_ids for reply in engine.generate(PROMPTS, way, Limits(NEW), batch=batch)]


@functools.cache
def target(name: str):
    return weights.load_target(MODELS / "target_mha", weights=name)


@functools.cache
def plain(name: str) -> dict[Sampling, list[list[int]]]:
    """What plain decoding gives, each prompt alone."""
    return {way: texts(Engine(target(name)), way, 1) for way in (GREEDY, SAMPLED)}


WAYS = {
    "the head": lambda head: Recurrent(head, Shape(4, 4)),
    "the head and a lookup": lambda head: Union(Recurrent(head, Shape(2, 3)), Lookup(4, 1, 5)),
    "a small model": lambda head: SmallModel(support.small_model(), Shape(1, 4)),
}


@pytest.mark.parametrize("name", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way == "the head" else pytest.mark.slow) for way in WAYS])
def test_no_draft_changes_a_token_of_a_quantised_target_alone_or_in_a_batch(mha, name, way):
    engine = Engine(target(name), WAYS[way](mha[1]))
    for sampling, expected in plain(name).items():
        assert texts(engine, sampling, 5) == expected
    assert texts(engine, SAMPLED, 1) == expected


def test_a_quantised_target_has_a_text_of_its_own(mha):
    assert texts(Engine(mha[0]), SAMPLED, 1) != plain("int8")[SAMPLED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random target on disk, that eight shards can split."""
    jax.set_mesh(make_mesh())
    path = tmp_path_factory.mktemp("target")
    weights.save_target(jax.jit(Target, static_argnums=(1, 2))(jax.random.key(0), CONFIG, jnp.float32), path)
    return path


def test_no_draft_changes_a_token_of_experts_in_eight_bits():
    config = dataclasses.replace(CONFIG, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=16, weight_format="int8")
    experts = jax.jit(Target, static_argnums=(1, 2))(jax.random.key(0), config, jnp.float32)
    drafter = jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), full(256, 64), jnp.float32)
    prompts = [[row + 1] * (row + 2) for row in range(3)]
    found = [
        [reply.token_ids for reply in engine.generate(prompts, SAMPLED, Limits(16), batch=batch)]
        for engine, batch in ((Engine(experts), 1), (Engine(experts, Recurrent(drafter, Shape(4, 3))), 3))
    ]
    assert found[0] == found[1] and len({token for ids in found[0] for token in ids}) > 8


def decode(folder, mesh_shape: tuple[int, int], sampling: Sampling) -> list[list[int]]:
    jax.set_mesh(make_mesh(*mesh_shape))
    drafter = jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), full(256, 64), jnp.float32)
    engine = Engine(weights.load_target(folder, weights="int8"), Recurrent(drafter, Shape(4, 3)))
    prompts = [[row + 1] * (row + 2) for row in range(8)]
    return [reply.token_ids for reply in engine.generate(prompts, sampling, Limits(24), batch=8)]


@pytest.mark.parametrize("sampling", [pytest.param(GREEDY, marks=pytest.mark.slow), SAMPLED], ids=["greedy", "sampled"])
def test_a_mesh_gives_the_tokens_of_one_device(folder, sampling):
    assert decode(folder, (2, 4), sampling) == decode(folder, (1, 1), sampling)
