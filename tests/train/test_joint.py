"""`--train-target lora`: the head first, then both; exact resuming, what trains what, meshes, and Medusa's heads."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.loss import LossConfig
from redrafter_jax.model import lora
from redrafter_jax.model.target import Target
from tests import small
from tests.training import examples, recipe, same, stops_after
from train import main
from train.data import rows
from train.run import joint, log, loop, shapes, step
from train.run.options import Options
from train.run.recipe import Recipe


def both(steps: int, **other) -> Recipe:
    return recipe(steps, **{"train_target": "lora", "lora_rank": 4, "lora_rate": 1.0, "evaluate_every": 0, "log_every": 1} | other)


def schedule_of(how: Recipe) -> joint.JointSchedule:
    return joint.JointSchedule.of(how, loop.make_schedule(how))


def test_the_head_learns_first_then_both_and_a_stopped_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    target = Target(jax.random.key(0), dataclasses.replace(small.CONFIG, num_hidden_layers=2))
    how = both(6, lora_start=0.34, head="slim", depths=1)
    whole = loop.train_pair(target, examples(), how, tmp_path / "whole")
    monkeypatch.setattr(loop, "read_batches", stops_after(rows.read_batches, 3))
    with pytest.raises(KeyboardInterrupt):
        loop.train_pair(target, examples(), how, tmp_path / "cut")
    monkeypatch.undo()
    same(loop.train_pair(target, examples(), how, tmp_path / "cut"), whole)
    lines = log.read(tmp_path / "whole")
    assert ["kl" in line for line in lines] == [False, False, True, True, True, True]
    assert lines[2]["kl"] == 0 and lines[2]["agreement"] == 1 and lines[-1]["kl"] > 0
    assert [line["through"] for line in lines[2:]] == [float(schedule_of(how).lets_through(part)) for part in range(2, 6)]


@functools.cache
def differentiated(mesh: tuple[int, int]):
    """The gradients of the loss by the head and by an adapter that does something, and the loss, as a function of whether the
    head's gradient is let through and of the weights of KL and text."""
    target, drafter = small.models(mesh)
    schedule = schedule_of(both(4))
    adapter = joint.start(target.config, schedule).adapter
    for block in adapter.blocks:
        for name in lora.ADAPTED:
            b = getattr(block, name).b
            b[...] = b[...] + 0.1 * jax.random.normal(jax.random.key(5), b.shape, out_sharding=jax.typeof(b[...]).sharding.spec)
    batch = rows.put_unpacked(np.random.default_rng(0).integers(0, small.V, (8, 16)))

    def aim(drafter, adapter, is_through, kl_weight, text_weight):
        weighted = dataclasses.replace(schedule, kl_weight=kl_weight, text_weight=text_weight)
        original = step.read(target, batch).hidden
        return joint.losses(drafter, target, adapter, batch, original, is_through, weighted, LossConfig(2, 0.5, chunk=5))[0]

    compiled = jax.jit(jax.value_and_grad(aim, argnums=(0, 1)))
    return lambda *how: compiled(drafter, adapter, *how)


def gradients(mesh: tuple[int, int], is_through: bool, kl_weight: float, text_weight: float = 0.0):
    with jax.set_mesh(make_mesh(*mesh)):
        total, found = differentiated(mesh)(is_through, kl_weight, text_weight)
        return float(total), *(jax.tree.map(np.asarray, jax.tree.leaves(each)) for each in found)


def largest(leaves) -> float:
    return max(np.abs(leaf).max() for leaf in leaves)


def test_the_heads_gradient_goes_into_the_target_where_it_is_let_through_and_the_kls_always():
    _, of_head, shut = gradients((1, 1), False, 0.0)
    assert largest(shut) == 0 and largest(of_head) > 1e-3
    _, of_head_too, opened = gradients((1, 1), True, 0.0)
    assert largest(opened) > 1e-3
    for ours, theirs in zip(of_head, of_head_too, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert largest(gradients((1, 1), False, 1.0)[2]) > 1e-3
    assert largest(gradients((1, 1), False, 0.0, 1.0)[2]) > 1e-3


def test_a_mesh_gives_the_loss_and_the_gradients_of_one_device():
    one, other = gradients((1, 1), True, 1.0, 0.5), gradients((2, 4), True, 1.0, 0.5)
    assert other[0] == pytest.approx(one[0], rel=1e-5)
    for ours, theirs in zip([*other[1], *other[2]], [*one[1], *one[2]], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_how_often_the_gradient_is_let_through_is_the_probability_and_follows_from_seed_and_step():
    drawn = {p: np.asarray(jax.vmap(schedule_of(both(4, through=p)).lets_through)(np.arange(2000))) for p in (0.0, 0.3, 1.0)}
    assert abs(drawn[0.3].mean() - 0.3) < 0.05
    assert drawn[0.0].sum() == 0 and drawn[1.0].all()


@pytest.mark.slow
def test_a_large_weight_keeps_the_target_near_the_original():
    (target, _), how, found = small.models(), both(12, lora_start=0.0, through=1.0, rate=1e-2), {}
    batch = rows.put_unpacked(np.stack([example["tokens"] for example in examples(4)]))
    start = functools.partial(loop.start_state, how, target.config, shapes.make_head_config(target.config, how), False)

    @jax.jit
    def update(state, beta):
        weighted = dataclasses.replace(schedule_of(how), kl_weight=beta)
        return joint.step(state, target, batch, weighted, LossConfig(how.positions))

    for beta in (0.0, 100.0):
        state = jax.jit(start)()
        for _ in range(how.steps):
            state, metrics = update(state, beta)
        found[beta] = metrics.joint.drift
    assert found[100.0].kl < 0.2 * found[0.0].kl and found[100.0].agreement >= found[0.0].agreement


@pytest.mark.slow
def test_medusas_heads_are_trained_beside_a_target_too_and_an_evaluation_is_of_the_adapted_target(tmp_path):
    how = both(2, lora_start=0.0, through=1.0, rate=1e-2, method="medusa", blocks=1, warmup=0)
    how = dataclasses.replace(how, evaluate_every=2, evaluation_rows=4)
    loop.train_pair(small.models()[0], examples(), how, tmp_path, examples(5))
    line = next(line for line in log.read(tmp_path) if "held_out_loss" in line)
    assert line["held_out_kl"] > 0 and 0 < line["held_out_agreement"] <= 1 and line["held_out_original_text"] > 0
    assert any(name.startswith("held_out_tokens_per_step") for name in line)


@pytest.mark.parametrize(
    "change, names",
    [({"through": 1.5}, "--through"), ({"kl_weight": -1.0}, "--kl-weight"), ({"lora_rank": 0}, "--lora-rank"),
     ({"lora_start": 1.0}, "--lora-start"), ({"lora_alpha": 0.0}, "--lora-alpha"), ({"lora_rate": float("nan")}, "--lora-rate"),
     ({"through": 0.0, "kl_weight": 0.0}, "nothing trains the target"),
     ({"labels": "greedy", "distill_weight": 0.0}, "--labels greedy"),
     ({"train_target": "none"}, "--lora-rank is of --train-target lora")],
)  # fmt: skip
def test_numbers_out_of_range_are_named(change, names):
    with pytest.raises(BadInput, match=names):
        both(4, **change).check()


def test_the_memory_plan_counts_the_adapter_and_no_mesh_repeats_trained_heads():
    few = dataclasses.replace(small.CONFIG, num_key_value_heads=2)
    alone, too = (main.load_of(Options(pathlib.Path("target"), recipe=how), few) for how in (recipe(4), both(4)))
    adapter = jax.eval_shape(lambda: lora.Adapter(jax.random.key(0), few, lora.LoraConfig(4, 1.0)))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(adapter))
    assert too.size - alone.size == 4 * 4 * numbers  # the adapter, its gradient and two moments, in float32
    assert alone.why_not(1, 4) is None
    assert too.why_not(1, 4) == "4 does not divide the target's num_key_value_heads 2"
