"""Training the target beside its head: a low-rank adapter of the target, which a KL keeps near the original.

    loss = head + kl_weight KL(original || adapted) + text_weight (the adapted target's own loss on the text)

The head reads the adapted target, whose distributions are its soft labels. The head's gradient goes into the target in a share of
the steps (``through``), so that the target cannot make itself easy to predict unseen. The adapter is part of the state from the
first step, and the head learns alone first, in the very steps of `step.step`. What comes out is another target: its text is that
of the *merged* target. Not here: the adapter (`redrafter_jax/model/lora.py`), the KL (`redrafter_jax/drift.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from redrafter_jax import drift, loss
from redrafter_jax.devices import mesh
from redrafter_jax.model import lora, vocabulary
from redrafter_jax.model.target import Target, TargetConfig
from train.data.rows import Batch
from train.run import step as steps
from train.run.recipe import Recipe
from train.run.shapes import make_lora_config

ADAPTER_KEY, THROUGH_KEY = 1, 2  # folded into the run's seed: two streams of random numbers beside the head's


@dataclasses.dataclass(frozen=True)
class JointSchedule:
    """How the target is trained beside the head. head, adapter: the schedules of both; the adapter's is counted from its own first
    update; through, kl_weight, text_weight, seed: see `Recipe`."""

    head: steps.Schedule
    adapter: steps.Schedule
    lora: lora.LoraConfig
    through: float
    kl_weight: float
    text_weight: float
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, head: steps.Schedule) -> "JointSchedule":
        own = dataclasses.replace(
            head, steps=recipe.steps - recipe.joint_from, rate=recipe.rate * recipe.lora_rate, weight_decay=0.0
        )
        return cls(head, own, make_lora_config(recipe), recipe.through, recipe.kl_weight, recipe.text_weight, recipe.seed)

    def lets_through(self, step: jax.Array) -> jax.Array:
        """Whether a step, counted from 0, lets the head's gradient into the target: a function of seed and step."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), THROUGH_KEY), step)
        return jax.random.uniform(key) < self.through


def start(target: TargetConfig, schedule: JointSchedule, spread: bool = False) -> steps.AdapterState:
    """An adapter that does nothing yet, and its optimizer's state.

    Args:
      spread: both are split over ``data`` as well as ``model``.
    """
    key = jax.random.fold_in(jax.random.key(schedule.seed), ADAPTER_KEY)
    adapter = mesh.spread(lora.Adapter(key, target, schedule.lora), spread)
    return steps.AdapterState(adapter, schedule.adapter.optimizer().init(adapter))


def step(
    state: steps.HeadState, target: Target, batch: Batch, schedule: JointSchedule, config: loss.LossConfig
) -> tuple[steps.HeadState, steps.UpdateMetrics]:
    """One update of the head and of the target's adapter on a batch of rows; ``target`` is the original."""
    is_through = schedule.lets_through(state.step)
    weights, adapter = vocabulary.trainable(state.drafter), state.lora.adapter
    original_BTD, share = steps.read(target, batch).hidden, schedule.head.distance_share(state.step)

    def aim(weights, adapter: lora.Adapter):
        drafter = vocabulary.merge(weights, state.drafter)
        return losses(drafter, target, adapter, batch, original_BTD, is_through, schedule, config, share)

    of_both = jax.value_and_grad(aim, argnums=(0, 1), has_aux=True)
    (_, (parts, moved)), (of_head, of_adapter) = of_both(weights, adapter)
    state = steps.update_head(state, of_head, schedule.head)
    updates, optimizer = schedule.adapter.optimizer().update(of_adapter, state.lora.optimizer, adapter)
    state = dataclasses.replace(state, lora=steps.AdapterState(optax.apply_updates(adapter, updates), optimizer))
    joint = steps.JointMetrics(moved, is_through, optax.tree.norm(of_adapter))
    return state, steps.UpdateMetrics(parts, optax.tree.norm(of_head), jnp.mean(batch.segments > 0), joint)


def losses(
    drafter,
    target: Target,
    adapter: lora.Adapter,
    batch: Batch,
    original_BTD: jax.Array,
    is_through: jax.Array,
    schedule: JointSchedule,
    config: loss.LossConfig,
    distance_share: jax.Array | float = 0.0,
) -> tuple[jax.Array, tuple[loss.Metrics, drift.Drift]]:
    """The loss of both, and its parts.

    Args:
      original_BTD: the original target's hidden states.
      is_through: whether the head's gradient goes into the adapter.
      distance_share: as of `loss.draft_loss`.
    """
    text = steps.text_pass(lora.adapt(target, adapter, recompute=True), batch)
    seen_BTD = jnp.where(is_through, text.shown, jax.lax.stop_gradient(text.shown))
    total, parts = steps.head_loss(drafter, target, batch, seen_BTD, config, distance_share=distance_share)
    next_BT = drift.labels_of_next_tokens(batch.labels, batch.segments)
    moved = drift.measure(target, text.hidden, target, original_BTD, next_BT)
    return total + schedule.kl_weight * moved.kl + schedule.text_weight * moved.text, (parts, moved)


@jax.jit
def measure_drift(target: Target, adapter: lora.Adapter, batch: Batch) -> drift.Drift:
    """How far an adapter moves the target on a batch."""
    hidden = [steps.read(model, batch).hidden for model in (lora.adapt(target, adapter), target)]
    next_BT = drift.labels_of_next_tokens(batch.labels, batch.segments)
    return drift.measure(target, hidden[0], target, hidden[1], next_BT)
