"""A random pair of true size, and how often its drafts should be accepted. The draft head does all its work; then the
target's own continuation, known from a plain run, replaces the best beam (`redrafter_jax/decode/propose/scripted.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import drafter
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.medusa import MedusaConfig
from redrafter_jax.model.parts import evenly
from redrafter_jax.model.target import Target, TargetConfig

SUCCESSOR_STRIDE = 7919  # a random target follows token v by v + this
BLOCK_SCALE = 0.1  # what a block adds, relative to the stream


def random_target(key: jax.Array, config: TargetConfig, dtype) -> Target:
    """Random weights with a clear continuation: blocks that add little, and an output matrix that undoes the embedding.
    In purely random weights the two best logits are so close that rounding, not drafting, would decide what is accepted.

    Not under one jit, which would hold all matrices in float32 at once, beside the final ones.
    """
    target = Target(key, config, dtype)
    root = config.hidden_size**0.5
    target.embedding[...] = target.embedding[...] * root
    quiet = BLOCK_SCALE / config.num_hidden_layers**0.5
    for block in target.blocks:
        for out in (block.o.weight, block.experts.down if block.experts else block.down.weight):
            factor = getattr(out, "scale", out)  # of a quantised matrix, its scale
            factor[...] = factor[...] * quiet
    follows = jnp.roll(jax.sharding.reshard(target.embedding[...], P(None, None)), SUCCESSOR_STRIDE, axis=0)
    target.lm_head[...] = jax.sharding.reshard(follows.T / root, P(None, "model")).astype(dtype)
    return target


def head_config(config: TargetConfig, kind: str, draft_vocab: int = 0) -> DrafterConfig:
    """The shapes of a head, `full`, `slim` or `best`, which is slim and reads two inner layers, as far as there are;
    ``draft_vocab``: ids that it can draft, or 0."""
    shape = (drafter.full if kind == "full" else drafter.slim)(config.vocab_size, config.hidden_size)
    depths = evenly(config.num_hidden_layers, min(2, config.num_hidden_layers - 1)) if kind == "best" else ()
    return dataclasses.replace(shape, draft_vocab=draft_vocab, depths=depths)


def medusa_config(config: TargetConfig, kind: str, draft_vocab: int, heads: int, blocks: int) -> MedusaConfig:
    """The shapes of Medusa's heads: `full` with LM heads of their own, `slim` with the target's."""
    shape = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "num_heads": heads, "num_blocks": blocks}
    return MedusaConfig(**shape, tied=kind == "slim", draft_vocab=draft_vocab)


def random_head(key: jax.Array, config: DrafterConfig, dtype) -> Drafter:
    """A random head, made as `random_target` is. What it can draft, where that is not everything, is spread evenly over the
    vocabulary."""
    ids = jnp.arange(config.draft_vocab) * (config.vocab_size // max(config.draft_vocab, 1))
    return Drafter(key, config, dtype, ids)


def rates_for(tokens_per_step: float, length: int) -> list[float]:
    """The probability, the same at each of L depths, with which p + p^2 + ... + p^L = tokens per step - 1."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected([middle] * length) < tokens_per_step else (low, middle)
    return [high] * length


def expected(rates: list[float]) -> float:
    """Tokens per step when depth d is right with probability ``rates[d]`` and counts only if all before it are."""
    total, path = 1.0, 1.0
    for rate in rates:
        path *= rate
        total += path
    return total
