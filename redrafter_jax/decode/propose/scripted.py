"""Scripted proposals for measurements: drafts that are accepted at a given rate, and guesses that cost nothing. The rest of
the round (tree, pass, acceptance, cache) is the real one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode.pack import Tree, pack_sequences
from redrafter_jax.decode.propose.proposer import Memory, Proposer, Round, View
from redrafter_jax.decode.propose.recurrent import Recurrent
from redrafter_jax.decode.propose.search import Beams
from redrafter_jax.model.layers import take_rows
from redrafter_jax.model.target import Target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scripted(Proposer):
    """The search of a head, whose best beam is overwritten, at each depth with a given probability, by the target's own
    continuation.

    tokens: ``[B, S]``, what `DecodeState.tokens` is to become; rates: ``[L]``, that probability at each depth.
    """

    drafts: Recurrent
    tokens: jax.Array
    rates: jax.Array

    @property
    def round(self) -> Round:
        return self.drafts.round

    @property
    def features(self) -> tuple[int, ...]:
        return self.drafts.features

    def propose(self, target: Target, view: View, memory: Memory) -> tuple[Tree, Memory]:
        with jax.named_scope("draft"):
            beams = self.overwrite(self.drafts.draft(target, view), view)
        with jax.named_scope("pack"):
            return self.drafts.pack(view.g, beams), memory

    def overwrite(self, beams: Beams, view: View) -> Beams:
        """`overwritten` by the row's next tokens."""
        L = beams.tokens.shape[1]
        ahead_BL = jnp.minimum(view.length[:, None] + 1 + jnp.arange(L), self.tokens.shape[1] - 1)
        return overwritten(beams, view, take_rows(self.tokens, ahead_BL), self.rates)


def overwritten(beams: Beams, view: View, right_BL: jax.Array, rates: jax.Array) -> Beams:
    """The beams, the first of each step replaced by the right token where the row's draw at that depth is below its rate; rates:
    one for each depth, or for all."""
    L = beams.tokens.shape[1]
    lucky_BL = jax.vmap(_draws, in_axes=(0, 0, None))(view.policy.keys_B, view.length, L) < rates
    first_W = jnp.arange(beams.tokens.shape[2]) == 0
    tokens = jnp.where(lucky_BL[..., None] & first_W, right_BL[..., None], beams.tokens)
    return Beams(tokens, jnp.where(first_W, 0, beams.parents), jnp.where(first_W, 0.0, beams.scores))


def scripted(drafts: Recurrent, tokens_BS, rates) -> Scripted:
    """`Scripted` from the tokens of a plain run."""
    tokens_BS = jax.device_put(tokens_BS, P("data", None))
    return Scripted(drafts, tokens_BS, jax.device_put(jnp.asarray(rates, jnp.float32), P(None)))


def _draws(key: jax.Array, position: jax.Array, count: int) -> jax.Array:
    """Uniform draws of a row at a position, independent of the target's noise there."""
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, position), count), (count,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Star(Proposer):
    """``width`` guesses at the next token: what a pass over 1 + ``width`` nodes costs, without any drafting."""

    width: int = dataclasses.field(metadata={"static": True})

    @property
    def round(self) -> Round:
        return Round(length=1, nodes=1 + self.width)

    def propose(self, target: Target, view: View, memory: Memory) -> tuple[Tree, Memory]:
        guesses_BW1 = ((view.g[:, None] + 1 + jnp.arange(self.width)) % target.config.vocab_size)[..., None]
        return pack_sequences(view.g, guesses_BW1, jnp.zeros_like(guesses_BW1, jnp.float32), self.round.nodes), memory
