"""One training step of a draft head on a frozen target."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from redrafter_jax import loss
from redrafter_jax.devices import mesh
from redrafter_jax.drift import Drift
from redrafter_jax.files.heads import Head, HeadConfig
from redrafter_jax.model import attention, vocabulary
from redrafter_jax.model.lora import Adapter
from redrafter_jax.model.target import Pass, Target
from train.data.rows import Batch
from train.run import labels as greedy
from train.run.recipe import Labels


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW with a linear rise over ``warmup`` updates and a cosine to zero at ``steps``; biases do not decay. An update
    is made of ``accumulate`` calls of `step`, whose gradients are averaged. After ``distance_from`` updates a share of
    ``distance_weight`` of the soft labels' loss is the total variation."""

    steps: int
    rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    distance_weight: float = 0.0
    distance_from: int = 0

    def distance_share(self, step: jax.Array) -> jax.Array | float:
        """The share of the total variation in the soft labels' loss at a call of `step`, counted from 0."""
        if self.distance_weight == 0:
            return 0.0
        return jnp.where(step >= self.distance_from * self.accumulate, self.distance_weight, 0.0)

    def rate_at(self, update: jax.Array | int) -> jax.Array:
        """The learning rate of an update, counted from 0."""
        return optax.warmup_cosine_decay_schedule(0.0, self.rate, min(self.warmup, self.steps // 2), self.steps)(update)

    def optimizer(self) -> optax.GradientTransformation:
        decay = optax.adamw(self.rate_at, b2=0.95, weight_decay=self.weight_decay, mask=_matrices)
        one = optax.chain(optax.clip_by_global_norm(self.clip), decay)
        return one if self.accumulate == 1 else optax.MultiSteps(one, self.accumulate).gradient_transformation()


def _matrices(drafter: Head):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, drafter)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdapterState:
    """The target's adapter and its optimizer's state."""

    adapter: Adapter
    optimizer: optax.OptState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadState:
    """What a step changes: the head, its optimizer's state, the number of calls of `step` so far; and, where the target is trained
    too, its adapter, which is there from the first step and changes in those of `joint.step` alone."""

    step: jax.Array
    drafter: Head
    optimizer: optax.OptState
    lora: AdapterState | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JointMetrics:
    """Of a step that trains the target too: how far that is from the original; whether the head's gradient went into it; the norm
    of the adapter's gradient before clipping."""

    drift: Drift
    is_through: jax.Array
    gradient_norm: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UpdateMetrics:
    """Of one step: the loss's parts, the norm of the head's gradient before clipping, the share of the batch that is not padding,
    and what there is to say of a target that is trained too."""

    loss: loss.Metrics
    gradient_norm: jax.Array
    fill: jax.Array
    joint: JointMetrics | None = None


def start(key: jax.Array, config: HeadConfig, schedule: Schedule, ids: jax.Array | None = None, spread: bool = False) -> HeadState:
    """Random weights.

    Args:
      ids: the draft vocabulary, where the config has one.
      spread: the weights and the optimizer's state are split over ``data`` as well as ``model``.
    """
    drafter = mesh.spread(config.make(key, ids=ids), spread)
    return HeadState(jnp.int32(0), drafter, schedule.optimizer().init(vocabulary.trainable(drafter)))


def step(
    state: HeadState, target: Target, batch: Batch, schedule: Schedule, config: loss.LossConfig, labels: Labels = "text"
) -> tuple[HeadState, UpdateMetrics]:
    """One update on a batch of rows; the target runs forward only."""
    weights, share = vocabulary.trainable(state.drafter), schedule.distance_share(state.step)

    def aim(weights: Head) -> tuple[jax.Array, loss.Metrics]:
        return evaluate(vocabulary.merge(weights, state.drafter), target, batch, config, labels, share)

    (_, parts), gradients = jax.value_and_grad(aim, has_aux=True)(weights)
    metrics = UpdateMetrics(parts, optax.tree.norm(gradients), jnp.mean(batch.segments > 0))
    return update_head(state, gradients, schedule), metrics


def update_head(state: HeadState, gradients: Head, schedule: Schedule) -> HeadState:
    """The state after an update of the head along its gradients."""
    weights = vocabulary.trainable(state.drafter)
    updates, optimizer = schedule.optimizer().update(gradients, state.optimizer, weights)
    drafter = vocabulary.merge(optax.apply_updates(weights, updates), state.drafter)
    return dataclasses.replace(state, step=state.step + 1, drafter=drafter, optimizer=optimizer)


def evaluate(
    drafter: Head,
    target: Target,
    batch: Batch,
    config: loss.LossConfig,
    labels: Labels = "text",
    distance_share: jax.Array | float = 0.0,
) -> tuple[jax.Array, loss.Metrics]:
    """The loss of a head on a batch, and its parts."""
    text = read(target, batch)
    paths_BTK = greedy.paths(target, batch, text, config.positions + 1) if labels == "greedy" else None
    return head_loss(drafter, target, batch, text.shown, config, paths_BTK, distance_share)


def head_loss(
    drafter: Head,
    target: Target,
    batch: Batch,
    hidden_BTD: jax.Array,
    config: loss.LossConfig,
    paths_BTK: jax.Array | None = None,
    distance_share: jax.Array | float = 0.0,
) -> tuple[jax.Array, loss.Metrics]:
    """`loss.draft_loss` of a batch. The head's weights are float32 so that small updates add up; they are multiplied as the device
    does by default (bfloat16 on a TPU, TF32 on a GPU), several times faster than as float32."""
    with jax.default_matmul_precision("default"):
        given = (batch.tokens, batch.labels, hidden_BTD, config, batch.segments, paths_BTK, distance_share)
        return loss.draft_loss(drafter, target, *given)


def read(target: Target, batch: Batch) -> Pass:
    """What the target makes of a batch, without gradients."""
    return jax.lax.stop_gradient(text_pass(target, batch))


def text_pass(model: Target, batch: Batch) -> Pass:
    """A pass over a batch; a token sees those before it in its own example."""
    same_BTT = batch.segments[:, :, None] == batch.segments[:, None, :]
    # An example that would be read again as it grows (`Rope.rereads`) is read as it is in the end.
    lengths_BT = jnp.sum(same_BTT, axis=2, dtype=jnp.int32) if model.config.rope.rereads else None
    return model(batch.tokens, batch.positions, attention.causal(batch.segments > 0) & same_BTT, lengths_BN=lengths_BT)
