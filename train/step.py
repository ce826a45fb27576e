"""One training step of a draft head on a frozen target."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from redrafter_jax import loss
from redrafter_jax.model import attention
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW with a linear rise over ``warmup`` steps and a cosine to zero at ``steps``; biases do not decay."""

    steps: int
    rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0

    def optimizer(self) -> optax.GradientTransformation:
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, min(self.warmup, self.steps // 2), self.steps)
        decay = optax.adamw(rate, b2=0.95, weight_decay=self.weight_decay, mask=_matrices)
        return optax.chain(optax.clip_by_global_norm(self.clip), decay)


def _matrices(drafter: Drafter):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, drafter)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadState:
    """What a step changes: the head, its optimizer's state, the number of steps done."""

    step: jax.Array
    drafter: Drafter
    optimizer: optax.OptState


def start(key: jax.Array, config: DrafterConfig, schedule: Schedule) -> HeadState:
    drafter = Drafter(key, config)
    return HeadState(jnp.int32(0), drafter, schedule.optimizer().init(drafter))


def step(
    state: HeadState, target: Target, tokens_BT: jax.Array, labels_BT: jax.Array, schedule: Schedule, config: loss.LossConfig
) -> tuple[HeadState, loss.Metrics]:
    """One update on rows of T tokens; the target runs forward only."""
    hidden_BTD = read(target, tokens_BT)
    aim = jax.value_and_grad(loss.draft_loss, has_aux=True)
    (_, metrics), gradients = aim(state.drafter, target, tokens_BT, labels_BT, hidden_BTD, config)
    updates, optimizer = schedule.optimizer().update(gradients, state.optimizer, state.drafter)
    return HeadState(state.step + 1, optax.apply_updates(state.drafter, updates), optimizer), metrics


def read(target: Target, tokens_BT: jax.Array) -> jax.Array:
    """The target's hidden states ``[B, T, D]`` of whole rows."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    hidden_BTD, _ = target(tokens_BT, positions_BT, attention.causal(tokens_BT >= 0))
    return hidden_BTD
