"""Figures at true size without weights: a random pair, and drafts that are right as often as asked for.

The draft head does all its work. Then the target's own continuation, known from a plain run, takes the place of the
best beam, at each depth with a given probability. What follows (tree, pass, acceptance, cache) is the real path.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import draft, loop, pack
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.model import drafter as heads
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.layers import take_rows
from redrafter_jax.model.target import Target, TargetConfig

STRIDE = 7919  # a random target follows token v by v + STRIDE
QUIET = 0.1  # what a block adds, beside the stream


def random_target(key: jax.Array, config: TargetConfig, dtype) -> Target:
    """Random weights with a clear continuation: blocks that add little, and an output matrix that undoes the embedding.
    In purely random weights the two best logits are so close that rounding, not drafting, would decide what is accepted.

    Not one program: that would make all matrices at once in float32, beside the ones that stay.
    """
    target = Target(key, config, dtype)
    root = config.hidden_size**0.5
    target.embedding[...] = target.embedding[...] * root
    quiet = QUIET / config.num_hidden_layers**0.5
    for block in target.blocks:
        for out in (block.o, block.down):
            out.weight[...] = out.weight[...] * quiet
    follows = jnp.roll(jax.sharding.reshard(target.embedding[...], P(None, None)), STRIDE, axis=0)
    target.lm_head[...] = jax.sharding.reshard(follows.T / root, P(None, "model")).astype(dtype)
    return target


def head_config(config: TargetConfig, kind: str, draft_vocab: int = 0) -> DrafterConfig:
    """The shapes of a head, `full` or `slim`; ``draft_vocab``: ids that it can draft, or 0."""
    shape = {"full": heads.full, "slim": heads.slim}[kind](config.vocab_size, config.hidden_size)
    return dataclasses.replace(shape, draft_vocab=draft_vocab)


def random_head(key: jax.Array, config: DrafterConfig, dtype) -> Drafter:
    """A random head, made as `random_target` is. What it can draft, where that is not everything, is spread evenly over the
    vocabulary."""
    ids = jnp.arange(config.draft_vocab) * (config.vocab_size // max(config.draft_vocab, 1))
    return Drafter(key, config, dtype, ids)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Known:
    """In place of a drafter: the head that drafts, each row's continuation ``[B, T]`` as `DecodeState.text`, and for each
    depth the probability ``[L]`` that the best beam holds the right token."""

    drafter: Drafter
    text: jax.Array
    rates: jax.Array


def known(drafter: Drafter, text_BT, rates) -> Known:
    """`Known` from what a plain run wrote."""
    text_BT = jax.device_put(text_BT, P("data", None))
    return Known(drafter, text_BT, jax.device_put(jnp.asarray(rates, jnp.float32), P(None)))


def propose(target: Target, known: Known, state: DecodeState, noise_BMV: jax.Array | None, shape: loop.Shape) -> pack.Tree:
    """As `loop.propose`, with the known continuation put into the best beam."""
    beams = loop.search(target, known.drafter, state, noise_BMV, shape)
    return pack.pack(state.g, put_in(beams, known, state), shape.tree, shape.budget)


def put_in(beams: draft.Beams, known: Known, state: DecodeState) -> draft.Beams:
    """The beams with the first of each step replaced, where a row is lucky at that depth, by the row's next token."""
    L = beams.tokens.shape[1]
    ahead_BL = jnp.minimum(state.count[:, None] + jnp.arange(L), known.text.shape[1] - 1)
    right_BL = take_rows(known.text, ahead_BL)
    draws_BL = jax.vmap(lambda key, count: jax.random.uniform(jax.random.fold_in(key, count), (L,)))(state.policy.keys, state.count)
    lucky_BL = draws_BL < known.rates
    first_W = jnp.arange(beams.tokens.shape[2]) == 0
    tokens = jnp.where(lucky_BL[..., None] & first_W, right_BL[..., None], beams.tokens)
    return draft.Beams(tokens, jnp.where(first_W, 0, beams.parents), jnp.where(first_W, 0.0, beams.scores))


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
