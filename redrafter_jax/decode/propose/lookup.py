"""Prompt lookup: the row's last tokens found again among its own, and what followed them there proposed (no weights).

    slot      0  1  2  3  4  5  6  7
    token     a  b  c  d  x  a  b  c        length 7: c, the newest token, is g
    match     .  .  3  .  .  .  .  .        three tokens up to slot 2 are the last three, so d x a b ... is proposed

Pure masked operations over ``tokens [B, S]``, on the device. The method is Saxena's prompt lookup decoding
(github.com/apoorvumang/prompt-lookup-decoding).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import sample
from redrafter_jax.decode.pack import Tree, pack_sequences
from redrafter_jax.decode.propose.lookup_sizes import LookupSizes
from redrafter_jax.decode.propose.proposer import Memory, Proposer, Round, View
from redrafter_jax.model.layers import take_rows

HIT_RATES = (0.33, 0.53, 0.64, 0.76, 0.76, 0.76, 0.77, 0.91)
"""The share of matches of 1, 2, ... tokens (the last entry: that many or more) whose next token is the target's own.
`python -m infer.benchmark.lookup` on a CPU with the embedded pair, greedy, 128 new tokens for each of 10 starts of Python
code (every second one of infer/demo_pair/prompts.jsonl) and 12 functions of the standard library that the prompt begins to
repeat under another name: 0.325, 0.526, 0.644, 0.775, 0.752, 0.755, 0.768, 0.907 of 618 to 82, and 604, matches."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lookup(LookupSizes, Proposer):
    """Drafts the L tokens that followed each of the ``width`` best matches. A match has ``shortest`` to ``longest`` tokens;
    longer ones are better, and of equally long ones the latest. Where fewer than L tokens follow a match, they repeat.
    Without a match nothing is drafted. The fields are those of `LookupSizes`.

    Raises:
      BadInput: a number is out of its range.
    """

    @property
    def round(self) -> Round:
        return Round(self.length, self.nodes)

    @property
    def name(self) -> str:
        return "lookup"

    def propose(self, target, view: View, memory: Memory) -> tuple[Tree, Memory]:
        with jax.named_scope("draft"):
            matched_BW, end_BW = matches(view.tokens, view.length, self.longest, self.width)
            tokens_BWL = continuations(view.tokens, view.length, end_BW, self.length)
            scores_BWL = jnp.where((matched_BW >= self.shortest)[..., None], prior(matched_BW, self.length), -jnp.inf)
        with jax.named_scope("pack"):
            return pack_sequences(view.g, tokens_BWL, scores_BWL, self.round.nodes), memory


def matches(tokens_BS: jax.Array, length_B: jax.Array, longest: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The ``width`` longest matches of the tokens up to slot ``length``, among equal ones the latest: how many tokens matched
    (at most ``longest``; 0 for none) and the slot where the match ends, both ``[B, W]`` int32."""
    S = tokens_BS.shape[1]
    slots = jnp.arange(S)
    running_BS = slots < length_B[:, None]
    matched_BS = jnp.zeros_like(tokens_BS)
    for back in range(longest):
        newest_B = take_rows(tokens_BS, length_B[:, None] - back)
        there_BS = jnp.pad(tokens_BS, ((0, 0), (back, 0)), constant_values=-1)[:, :S]  # the token `back` slots before
        running_BS = running_BS & (there_BS == newest_B)
        matched_BS += running_BS
    # One number for both: exact in float32 below 2^24.
    rank_BW, end_BW = sample.top_k((matched_BS * S + slots).astype(jnp.float32), width)
    return rank_BW.astype(jnp.int32) // S, end_BW


def continuations(tokens_BS: jax.Array, length_B: jax.Array, end_BW: jax.Array, length: int) -> jax.Array:
    """The L tokens ``[B, W, L]`` that follow slot ``end``; past the newest token they repeat from ``end`` + 1."""
    period_BW = jnp.maximum(length_B[:, None] - end_BW, 1)
    ahead_BWL = jnp.arange(length) % period_BW[..., None]
    return jax.vmap(lambda row, at: row.at[at].get(mode="clip"))(tokens_BS, end_BW[..., None] + 1 + ahead_BWL)


def prior(matched_BW: jax.Array, length: int) -> jax.Array:
    """The log-probability ``[B, W, L]`` that the first 1..L tokens after a match are all accepted. An accepted token
    lengthens the match by one, so one table by the length of a match (`HIT_RATES`) serves all depths."""
    matched_BWL = matched_BW[..., None] + jnp.arange(length)
    rates = jnp.asarray(np.log(HIT_RATES), jnp.float32)
    at_BWL = jnp.clip(matched_BWL - 1, 0, len(HIT_RATES) - 1)
    return jnp.cumsum(rates.at[at_BWL].get(out_sharding=P("data", None, None), mode="promise_in_bounds"), axis=-1)
