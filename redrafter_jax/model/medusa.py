"""Medusa's heads (arXiv 2401.10774): each guesses the token at its own distance from h alone.

    z = h + silu(A h + a)        L times, for each of K heads
    logits = z C                 C is the head's own, or the target's for all of them

Head k, counted from 0, guesses the token k + 2 places behind the one that h was computed from; the target's own LM head makes
the next one, which is g. Weights are named and stored as in `files/medusa.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from redrafter_jax.model import layers
from redrafter_jax.model.draft_ids import as_ids
from redrafter_jax.model.target import Target, unembed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MedusaConfig:
    """The shapes of K heads of L residual blocks. ``tied``: all of them use the target's LM head; ``draft_vocab``: U, tokens
    that can be drafted, 0 for all; ``bias``: of the blocks; ``tree``: the paths that are drafted, the likelier ones first, each a
    tuple of ranks; None for the published tree (`decode/propose/medusa.py`)."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_blocks: int = 1
    tied: bool = True
    draft_vocab: int = 0
    bias: bool = True
    tree: tuple[tuple[int, ...], ...] | None = None
    candidates: ClassVar[int] = 0  # of a recurrent head alone
    depths: ClassVar[tuple[int, ...]] = ()  # likewise

    @property
    def has_fixed_tree(self) -> bool:
        """Whether what is drafted is no search and no draw."""
        return True

    @property
    def beyond_the_papers(self) -> list[str]:
        """As of a recurrent head's config: nothing."""
        return []

    @property
    def exit_size(self) -> int:
        """The width that an LM head reads."""
        return self.hidden_size

    def make(self, key, dtype=jnp.float32, ids: jax.Array | None = None) -> "MedusaHeads":
        """Untrained heads of these shapes."""
        return MedusaHeads(key, self, dtype, ids)


class MedusaHeads(nnx.Module):
    """K heads. The residual blocks start at zero, so untrained heads all make the target's own distribution of the next token."""

    def __init__(self, key, config: MedusaConfig, dtype=jnp.float32, ids: jax.Array | None = None):
        D, U = config.hidden_size, config.draft_vocab or config.vocab_size
        self.config = config
        block = functools.partial(layers.Linear, key, (D, D), layers.COLUMNS, dtype, bias=config.bias, scale=0.0)
        self.blocks = nnx.List([nnx.List([block() for _ in range(config.num_blocks)]) for _ in range(config.num_heads)])
        keys = jax.random.split(key, config.num_heads)
        own = [] if config.tied else [layers.param(each, (D, U), layers.COLUMNS, dtype) for each in keys]
        self.lm_heads = nnx.List(own)
        self.ids = as_ids(jnp.arange(U) if ids is None else ids) if config.draft_vocab else None

    def exits(self, h_BD: jax.Array) -> list[jax.Array]:
        """What each head's LM head reads, K arrays of the shape of ``h``, ``[B, ..., D]``."""
        return [functools.reduce(_residual, blocks, h_BD) for blocks in self.blocks]

    def text_exits(
        self, hidden_BTD: jax.Array, read: Callable[[int], tuple[jax.Array, jax.Array]], positions: int
    ) -> list[jax.Array]:
        """As `Drafter.text_exits`, of the first K heads; what is read makes no difference.

        Raises:
          ValueError: there are fewer heads.
        """
        if positions > self.config.num_heads:
            raise ValueError(f"{self.config.num_heads} heads cannot draft {positions} positions")
        return self.exits(hidden_BTD)[:positions]

    def weights_per_position(self) -> int:
        """As `Drafter.weights_per_position`."""
        return sum(leaf.size for leaf in jax.tree.leaves(self)) // self.config.num_heads

    def weights_per_place(self) -> int:
        """As of a recurrent head: none."""
        return 0

    def own_columns(self) -> tuple[jax.Array, ...] | None:
        """The LM head ``[D, U]`` of each head; None where they use the target's."""
        return tuple(layers.gather_weight(own, layers.COLUMNS) for own in self.lm_heads) or None

    def split(self) -> "MedusaHeads":
        """The heads as they decode, which is as they are (`Drafter.split`)."""
        return self

    def logits(self, h_BD: jax.Array, target: Target) -> jax.Array:
        """float32 logits ``[B, K, U]`` of what follows g, split over ``model`` in U; U is V without a draft vocabulary."""
        exits_BKD = jnp.stack(self.exits(h_BD[:, None]), axis=2)[:, 0]
        if self.config.tied:
            return target.unembed(exits_BKD, self.ids)
        each = [unembed(target.config, exits_BKD[:, k, None], own) for k, own in enumerate(self.lm_heads)]
        return jnp.concatenate(each, axis=1)


def _residual(z: jax.Array, block: layers.Linear) -> jax.Array:
    return z + layers.gather_features(jax.nn.silu(block(z)))
