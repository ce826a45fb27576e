"""A small model as the drafter: any target with the same vocabulary. It has a cache of its own, in which its rows advance with the
target's.

    the text      a b c d e f g          behind it, the target has the keys and values of a .. f
    its cache     a b c d e ? .          of a round that accepted e and f, f was never read by it, so each round reads the last
    re-read             e f g            tokens again, and `accept` has nothing to do

A chain reads every token that it drafts but the last, so two are read again; of a beam search none is kept, so L + 2 are.
"""

import dataclasses

import jax
import jax.numpy as jnp

from redrafter_jax.decode import adjust, pack, prefill, sample
from redrafter_jax.decode.chunk import Chunk, read_chunk, unread
from redrafter_jax.decode.propose import chains
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Memory, Proposer, Round, View
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.propose.search import adjusted, search
from redrafter_jax.decode.request import require
from redrafter_jax.model import attention, cache
from redrafter_jax.model.layers import take_rows
from redrafter_jax.model.target import Target
from redrafter_jax.model.target_config import wrong_draft_model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SmallModel(Proposer):
    """The model and the shape of its search. Its memory is its `KVCache`, whose ``length`` means nothing between rounds.

    depth: of the round that it is a part of, 0 for none (`within`). What is accepted there may be another's drafts.
    """

    model: Target
    shape: Shape = dataclasses.field(metadata={"static": True}, default=Shape())
    depth: int = dataclasses.field(metadata={"static": True}, default=0)

    @property
    def round(self) -> Round:
        return Round(self.shape.length, self.shape.nodes)

    @property
    def draws(self) -> bool:
        return self.shape.draws

    def prepare(self, target: Target) -> Proposer:
        """As it is; a search that drafts nothing is plain decoding.

        Raises:
          BadInput: its vocabulary is another, its context is shorter, or the search is wider than the vocabulary.
        """
        require("the draft model", wrong_draft_model(target.config, self.model.config))
        self.shape.check_vocabulary(target.config.vocab_size)
        return self if self.shape.length else Plain()

    def within(self, round: Round) -> Proposer:
        return dataclasses.replace(self, depth=round.length)

    @property
    def reread(self) -> int:
        """Tokens that each round reads again, g included."""
        return tokens_reread(self.shape.width, self.shape.length, self.depth)

    def begin(self, target: Target, view: View, read: Memory = None) -> Memory:
        """The cache behind the prompt, with room for the drafts of a round behind the longest reply."""
        if read is not None:
            return read
        return prefill.read(self.model, view.tokens, view.length, self._slots(view.tokens.shape[1]))[0]

    def unread(self, rows: int, slots: int) -> Memory:
        return unread(self.model, rows, self._slots(slots))[0]

    def read(self, read: Memory, chunk: Chunk) -> Memory:
        kv = dataclasses.replace(read, length=jnp.zeros_like(read.length) + chunk.start)
        return read_chunk(self.model, kv, chunk)[0]

    def kept(self, memory: Memory) -> Memory:
        return memory

    def _slots(self, slots: int) -> int:
        """Of its cache, beside so many of the target's."""
        return max(slots, self.reread) + self.shape.width * self.shape.length

    def propose(self, target: Target, view: View, memory: Memory) -> tuple[pack.Tree, Memory]:
        shape, policy = self.shape, view.policy
        with jax.named_scope("draft"):
            reader = _Reader(self.model, *self.catch_up(view, memory), view.length, shape.width)
            step, state = adjusted(reader.step, adjust.of_drafts(policy, view.history)), (reader.start(), None)
            if chains.is_drawn(shape.tree, shape.width, policy):
                drafts = chains.draw(step, state, view, shape.width, shape.length)
            else:
                cut = shape.draft_top_k if shape.width > 1 else 0
                drafts = search(step, state, view.g, shape.width, shape.length, sample.divisor(policy), view.noise, cut)
        with jax.named_scope("pack"):
            if isinstance(drafts, chains.Chains):
                return drafts.tree(view.g, target.config.vocab_size), reader.kv
            return pack.pack(view.g, drafts, shape.tree, shape.budget), reader.kv

    def catch_up(self, view: View, memory: cache.KVCache) -> tuple[cache.KVCache, jax.Array]:
        """The cache with the text up to g, and the logits ``[B, V]`` behind it."""
        start_B = jnp.maximum(view.length + 1 - self.reread, 0)
        slots_BN = start_B[:, None] + jnp.arange(self.reread)
        tokens_BN = take_rows(view.tokens, jnp.minimum(slots_BN, view.tokens.shape[1] - 1))
        kv = dataclasses.replace(memory, length=start_B)
        made = self.model(tokens_BN, slots_BN, attention.causal(slots_BN <= view.length[:, None]), kv)
        newest_BD = take_rows(made.hidden, view.length - start_B)
        return cache.append(kv, made.rows, view.length + 1 - start_B), self.model.unembed(newest_BD[:, None])[:, 0]


def tokens_reread(width: int, length: int, depth: int = 0) -> int:
    """Tokens that a round reads again, g included; ``depth``: as of `SmallModel`."""
    keeps_a_chain = width == 1 and not depth
    return 2 if keeps_a_chain else max(depth, length) + 2


class _Reader:
    """Reads drafts for `search` or `chains.draw`. The cache is one for all beams, so it is no part of a beam's state, which is
    the slots that the beam sees: its own drafts lie among those of the others. A single beam sees all."""

    def __init__(self, model: Target, kv: cache.KVCache, logits_BV: jax.Array, length_B: jax.Array, width: int):
        self.model, self.kv, self.width = model, kv, width
        self._logits_BV, self._length_B, self._depth = logits_BV, length_B, 0

    def start(self) -> jax.Array | None:
        """The state before the first step: the text is seen."""
        if self.width == 1:
            return None
        seen_BS = jnp.arange(self.kv.slots) <= self._length_B[:, None]
        return jnp.broadcast_to(seen_BS[:, None], (seen_BS.shape[0], self.width, self.kv.slots))

    def step(self, seen_BWS: jax.Array | None, tokens_BW: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """`search.Step`; the first is behind g, which was read."""
        B, W, depth = *tokens_BW.shape, self._depth
        self._depth += 1
        if depth == 0:
            return jnp.broadcast_to(self._logits_BV[:, None], (B, W, self._logits_BV.shape[-1])), seen_BWS
        positions_BW = self._length_B[:, None] + depth + jnp.zeros_like(tokens_BW)
        alone_BWW = jnp.eye(W, dtype=bool) & (tokens_BW >= 0)[:, None]
        behind_BS = jnp.arange(self.kv.slots) - self._length_B[:, None] - 1  # of the text and g; W slots for each drafted position
        slots_BS = self._length_B[:, None] + 1 + jnp.where(behind_BS < 0, behind_BS, behind_BS // W)
        made = self.model(tokens_BW, positions_BW, alone_BWW, self.kv, seen_BNS=seen_BWS, slot_positions_BS=slots_BS)
        at_BW = self.kv.length[:, None] + jnp.arange(W)
        self.kv = cache.append(self.kv, made.rows, W)
        seen_BWS = None if seen_BWS is None else seen_BWS | (jnp.arange(self.kv.slots) == at_BW[..., None])
        return self.model.unembed(made.hidden), seen_BWS
