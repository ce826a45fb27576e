"""Pre-training of the embedded pair's target, on rows of tokens: Muon on the matrices of the blocks, AdamW on the rest.
Real targets arrive trained; only the demo needs this. Not here: what keeps it from looping (`unlikelihood.py`)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from redrafter_jax import cross_entropy
from redrafter_jax.model.target import Target


@dataclasses.dataclass(frozen=True)
class PretrainSchedule:
    """Steps of ``batch`` rows; the learning rates rise over ``warmup`` steps, hold, and fall to zero over the last
    ``decay`` share of the run."""

    steps: int
    batch: int = 8
    warmup: int = 50
    decay: float = 0.6
    muon_rate: float = 0.02
    adam_rate: float = 3e-3

    def share(self, step: jax.Array) -> jax.Array:
        """The learning rate's factor at a step, 0..1."""
        falling = (self.steps - step) / max(1, int(self.decay * self.steps))
        return jnp.clip(jnp.minimum((step + 1) / self.warmup, falling), 0.0, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PretrainState:
    """What a step changes. The tied output matrix of ``target`` is stale until ``finished``."""

    step: jax.Array
    target: Target
    optimizer: optax.OptState


def optimizer(schedule: PretrainSchedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            lambda step: schedule.muon_rate * schedule.share(step),
            adam_learning_rate=lambda step: schedule.adam_rate * schedule.share(step),
            adam_b2=0.95,
            weight_decay=0.01,
            muon_weight_dimension_numbers=_matrices,
        ),
    )


def _matrices(params: Target):
    def dimensions(path, leaf):
        inside = any(getattr(key, "name", getattr(key, "key", None)) == "blocks" for key in path)
        return optax.contrib.MuonDimensionNumbers() if inside and leaf.ndim == 2 else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


def start(key: jax.Array, config, schedule: PretrainSchedule) -> PretrainState:
    return begin(Target(key, config), schedule)


def begin(target: Target, schedule: PretrainSchedule) -> PretrainState:
    """The state before the first update of a target that may have been trained before."""
    return PretrainState(jnp.int32(0), target, optimizer(schedule).init(_whole(target)))


def step(state: PretrainState, tokens_BT: jax.Array, schedule: PretrainSchedule) -> tuple[PretrainState, jax.Array]:
    """One update on rows of T tokens, each predicting the next; also the mean cross-entropy in nats."""
    nats, gradients = jax.value_and_grad(next_token_loss)(state.target, tokens_BT)
    return apply(state, gradients, schedule), nats


def apply(state: PretrainState, gradients: Target, schedule: PretrainSchedule) -> PretrainState:
    """The state after an update along these gradients."""
    # Newton-Schulz contracts over both axes of a matrix: the demo's target is small enough to update it unsharded.
    updates, optimizer_state = optimizer(schedule).update(_whole(gradients), state.optimizer, _whole(state.target))
    target = jax.tree.map(lambda w, u: w + jax.sharding.reshard(u, jax.typeof(w).sharding), state.target, updates)
    return PretrainState(state.step + 1, target, optimizer_state)


def finished(target: Target) -> Target:
    """The target with its tied output matrix brought up to date, ready to decode."""
    ready = jax.tree.map(lambda leaf: leaf, target)
    ready.lm_head[...] = jax.sharding.reshard(target.embedding[...].T, jax.typeof(target.lm_head[...]).sharding)
    return ready


def next_token_loss(target: Target, tokens_BT: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of tokens 1..T-1 of every row."""
    return jnp.mean(next_token_losses(target, tokens_BT))


def next_token_losses(target: Target, tokens_BT: jax.Array) -> jax.Array:
    """``[B, T-1]`` cross-entropies in nats, through the tied embedding."""
    return cross_entropy.of_next_tokens(target, tokens_BT, target.embedding[...].T)


def _whole(tree):
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, P()), tree)
