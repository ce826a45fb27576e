"""One training step of a draft head on a frozen target."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from redrafter_jax import loss, mesh
from redrafter_jax.model import attention
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target
from train.data import Batch


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW with a linear rise over ``warmup`` updates and a cosine to zero at ``steps``; biases do not decay. An update
    is made of ``accumulate`` calls of `step`, whose gradients are averaged."""

    steps: int
    rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1

    def rate_at(self, update: jax.Array | int) -> jax.Array:
        """The learning rate of an update, counted from 0."""
        return optax.warmup_cosine_decay_schedule(0.0, self.rate, min(self.warmup, self.steps // 2), self.steps)(update)

    def optimizer(self) -> optax.GradientTransformation:
        decay = optax.adamw(self.rate_at, b2=0.95, weight_decay=self.weight_decay, mask=_matrices)
        one = optax.chain(optax.clip_by_global_norm(self.clip), decay)
        return one if self.accumulate == 1 else optax.MultiSteps(one, self.accumulate).gradient_transformation()


def _matrices(drafter: Drafter):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, drafter)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadState:
    """What a step changes: the head, its optimizer's state, the number of calls of `step` so far."""

    step: jax.Array
    drafter: Drafter
    optimizer: optax.OptState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Of one step: the loss's parts, the norm of the gradient before clipping, the share of the batch that is not padding."""

    loss: loss.Metrics
    gradient_norm: jax.Array
    fill: jax.Array


def start(key: jax.Array, config: DrafterConfig, schedule: Schedule, spread: bool = False) -> HeadState:
    """Random weights; ``spread``: they and the optimizer's state are split over ``data`` as well as ``model``."""
    drafter = mesh.spread(Drafter(key, config), spread)
    return HeadState(jnp.int32(0), drafter, schedule.optimizer().init(drafter))


def step(state: HeadState, target: Target, batch: Batch, schedule: Schedule, config: loss.LossConfig) -> tuple[HeadState, Metrics]:
    """One update on a batch of rows; the target runs forward only."""

    def aim(drafter: Drafter) -> tuple[jax.Array, loss.Metrics]:
        return evaluate(drafter, target, batch, config)

    (_, parts), gradients = jax.value_and_grad(aim, has_aux=True)(state.drafter)
    metrics = Metrics(parts, optax.tree.norm(gradients), jnp.mean(batch.segments > 0))
    updates, optimizer = schedule.optimizer().update(gradients, state.optimizer, state.drafter)
    return HeadState(state.step + 1, optax.apply_updates(state.drafter, updates), optimizer), metrics


def evaluate(drafter: Drafter, target: Target, batch: Batch, config: loss.LossConfig) -> tuple[jax.Array, loss.Metrics]:
    """The loss of a head on a batch, and its parts."""
    hidden_BTD = read(target, batch)
    return loss.draft_loss(drafter, target, batch.tokens, batch.labels, hidden_BTD, config, batch.segments)


def read(target: Target, batch: Batch) -> jax.Array:
    """The target's hidden states ``[B, T, D]``; a token sees those before it in its own example."""
    same_BTT = batch.segments[:, :, None] == batch.segments[:, None, :]
    hidden_BTD, _ = target(batch.tokens, batch.positions, attention.causal(batch.segments > 0) & same_BTT)
    return jax.lax.stop_gradient(hidden_BTD)
