"""Pre-training of the embedded pair's target, on rows of tokens. Real targets arrive trained; only the demo needs this.

Muon on the matrices of the blocks and AdamW on the rest. From the step at which the learning rate starts to fall, some
rows are made to repeat themselves, and the target learns to make each repetition less likely than the one before
(DITTO, arXiv 2206.02369): a small model's greedy text otherwise ends in loops (docs/decisions.md).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import attention
from redrafter_jax.model.layers import pick
from redrafter_jax.model.target import Target

FADING = 0.5  # how likely a repeated token should be, as a share of how likely it was one repetition before
LONGEST_PERIOD = 48


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps of ``batch`` rows; the learning rates rise over ``warmup`` steps, hold, and fall to zero over the last
    ``decay`` share of the run."""

    steps: int
    batch: int = 8
    warmup: int = 50
    decay: float = 0.6
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    seed: int = 0
    looped: float = 0.25
    """Share of a batch's rows that are made to repeat themselves once the learning rate falls."""

    @property
    def falls_from(self) -> int:
        """The step at which the learning rate starts to fall."""
        return self.steps - max(1, int(self.decay * self.steps))

    def share(self, step: jax.Array) -> jax.Array:
        """The learning rate's factor at a step, 0..1."""
        falling = (self.steps - step) / (self.steps - self.falls_from)
        return jnp.clip(jnp.minimum((step + 1) / self.warmup, falling), 0.0, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PretrainState:
    """What a step changes. The tied output matrix of ``target`` is stale until ``finished``."""

    step: jax.Array
    target: Target
    optimizer: optax.OptState


def optimizer(schedule: Schedule) -> optax.GradientTransformation:
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


def start(key: jax.Array, config, schedule: Schedule) -> PretrainState:
    target = Target(key, config)
    return PretrainState(jnp.int32(0), target, optimizer(schedule).init(_whole(target)))


def step(state: PretrainState, tokens_BT: jax.Array, schedule: Schedule) -> tuple[PretrainState, jax.Array]:
    """One update on rows of T tokens, each predicting the next; also the mean cross-entropy in nats of ordinary text."""
    count = round(schedule.looped * tokens_BT.shape[0])
    rows = jnp.zeros_like(tokens_BT[:, 0]) + jnp.arange(tokens_BT.shape[0])
    looped_B = (rows < count) & (state.step >= schedule.falls_from)
    key = jax.random.fold_in(jax.random.key(schedule.seed), state.step)
    (_, nats), gradients = jax.value_and_grad(training_loss, has_aux=True)(state.target, tokens_BT, looped_B, key)
    # Newton-Schulz contracts over both axes of a matrix: the demo's target is small enough to update it unsharded.
    updates, optimizer_state = optimizer(schedule).update(_whole(gradients), state.optimizer, _whole(state.target))
    target = jax.tree.map(lambda w, u: w + jax.sharding.reshard(u, jax.typeof(w).sharding), state.target, updates)
    return PretrainState(state.step + 1, target, optimizer_state), nats


def training_loss(target: Target, tokens_BT: jax.Array, looped_B: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean loss: cross-entropy, but for the repetitions in the rows that are to loop, which should fade. Also the mean
    cross-entropy in nats without them."""
    tokens_BT, period_B, again_BT = loop_rows(key, tokens_BT, looped_B)
    nats_BT = next_token_losses(target, tokens_BT)
    again_BT = again_BT[:, 1:]  # of the labels
    earlier_BT = jnp.maximum(jnp.arange(nats_BT.shape[1]) - period_B[:, None], 0)
    likely_BT, before_BT = jnp.exp(-nats_BT), jax.lax.stop_gradient(jnp.exp(-pick(nats_BT, earlier_BT)))
    fading_BT = -jnp.log(jnp.maximum(1 - jnp.abs(likely_BT - FADING * before_BT), 1e-4))
    text = jnp.sum(nats_BT, where=~again_BT) / jnp.sum(~again_BT)
    return jnp.mean(jnp.where(again_BT, fading_BT, nats_BT)), text


def loop_rows(key: jax.Array, tokens_BT: jax.Array, looped_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows that from a random place in their first half on repeat a stretch of 1 to LONGEST_PERIOD tokens, the others as
    they are; the periods ``[B]``; and which tokens repeat the one a period before ``[B, T]``."""
    B, T = tokens_BT.shape
    draw = jax.random.split(key)
    spec = jax.typeof(looped_B).sharding.spec
    period_B = jax.random.randint(draw[0], (B,), 1, LONGEST_PERIOD + 1, out_sharding=spec)
    start_B = jax.random.randint(draw[1], (B,), 0, max(1, T // 2), out_sharding=spec)
    place_BT = jnp.arange(T) - start_B[:, None]
    again_BT = (place_BT >= period_B[:, None]) & looped_B[:, None]
    source_BT = jnp.where(again_BT, start_B[:, None] + place_BT % period_B[:, None], jnp.arange(T))
    return pick(tokens_BT, source_BT), period_B, again_BT


def next_token_loss(target: Target, tokens_BT: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of tokens 1..T-1 of every row."""
    return jnp.mean(next_token_losses(target, tokens_BT))


def next_token_losses(target: Target, tokens_BT: jax.Array) -> jax.Array:
    """``[B, T-1]`` cross-entropies in nats, through the tied embedding."""
    inputs, labels = tokens_BT[:, :-1], tokens_BT[:, 1:]
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    hidden, _ = target(inputs, positions, attention.causal(inputs >= 0))
    logits = jnp.einsum("btd,vd->btv", hidden, target.embedding[...], out_sharding=P("data", None, None))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _whole(tree):
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, P()), tree)
