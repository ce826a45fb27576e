"""ReDrafter's own way to draft: beam search with the recurrent head, packed into a tree (paper section 3)."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp

from redrafter_jax.decode import adjust, pack, sample
from redrafter_jax.decode.propose import chains, confidence, shortlist
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Memory, Proposer, Round, View
from redrafter_jax.decode.propose.search import Adjust, Beams, Step, adjusted, search
from redrafter_jax.decode.request import DRAFT_TOP_K, MAX_NODES, require, wrong_for_vocabulary, wrong_number
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a search: W beams of L drafted tokens, at most N nodes (0: all), and which tree they make.

    L = 0 drafts nothing. ``draft_top_k``: see `search.search`; a single beam ignores it.

    Raises:
      BadInput: a number is out of its range, or there is no such tree.
    """

    width: int = 1
    length: int = 4
    budget: int = 0
    tree: pack.TreeKind = "search"
    draft_top_k: int = DRAFT_TOP_K

    def __post_init__(self):
        require("width", wrong_number("beam_width", self.width))
        require("length", wrong_number("beam_length", self.length, zero="no drafts"))
        require("budget", wrong_number("node_budget", self.budget, zero="all nodes"))
        require("draft_top_k", wrong_number("draft_top_k", self.draft_top_k))
        if self.tree not in get_args(pack.TreeKind):
            *kinds, last = get_args(pack.TreeKind)
            raise BadInput(f"tree should be {', '.join(kinds)} or {last}, not {shown(self.tree)}")
        if self.tree == "chains" and self.budget and self.budget < 1 + self.width * self.length:
            raise BadInput(f"budget {self.budget} would cut chains that were drawn; leave it out, or narrow or shorten them")
        if self.nodes > MAX_NODES:
            raise BadInput(f"width {self.width} and length {self.length} make {self.nodes} nodes, over {MAX_NODES};"
                           " narrow them or give a budget")  # fmt: skip

    def check_vocabulary(self, vocab_size: int, draft_vocab: int = 0, candidates: int = 0) -> None:
        """Raises BadInput for more beams, or a larger ``draft_top_k``, than there are tokens to draft, or candidates of a head."""
        require("width", wrong_for_vocabulary(self.width, vocab_size, draft_vocab, candidates))
        if self.draft_top_k > DRAFT_TOP_K:  # the default is no request, and a smaller vocabulary is not cut
            require("draft_top_k", wrong_for_vocabulary(self.draft_top_k, vocab_size, draft_vocab, candidates))

    @property
    def nodes(self) -> int:
        return pack.nodes(self.width, self.length, self.budget)

    @property
    def name(self) -> str:
        """W x L, and what of it differs from the usual."""
        return f"{self.width}x{self.length}" + (f", {self.budget} nodes at most" if self.budget else "")

    @property
    def draws(self) -> bool:
        """Whether its drafts can be drawn: a single beam is a chain."""
        return self.tree == "chains" or self.width == 1


AUTOREGRESSIVE = Shape(width=1, length=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recurrent(Proposer):
    """The draft head and the shape of its search. It has no memory: a search starts from h and g alone."""

    head: Drafter
    shape: Shape = dataclasses.field(metadata={"static": True}, default=Shape())

    @property
    def round(self) -> Round:
        return Round(self.shape.length, self.shape.nodes)

    @property
    def name(self) -> str:
        return self.shape.name

    def in_shape(self, shape: Shape) -> Proposer:
        shape.check_vocabulary(self.head.config.vocab_size, self.head.config.draft_vocab, self.head.config.candidates)
        return dataclasses.replace(self, shape=shape)

    @property
    def draws(self) -> bool:
        return self.shape.draws

    @property
    def features(self) -> tuple[int, ...]:
        return self.head.config.depths

    def prepare(self, target: Target) -> Proposer:
        """With the head as it decodes (`vocabulary.as_decoded`); a search that drafts nothing is plain decoding."""
        self.shape.check_vocabulary(target.config.vocab_size, self.head.config.draft_vocab, self.head.config.candidates)
        if self.shape.length == 0:
            return Plain()
        return dataclasses.replace(self, head=vocabulary.as_decoded(self.head, target))

    def propose(self, target: Target, view: View, memory: Memory) -> tuple[pack.Tree, Memory]:
        if chains.is_drawn(self.shape.tree, self.shape.width, view.policy):
            with jax.named_scope("draft"):
                step, state = steps(target, self.head, view.h, self.shape.width, self.adjusts(view))
                drafts = chains.draw(step, state, view, self.shape.width, self.shape.length, self.head.ids)
            with jax.named_scope("pack"):
                return drafts.tree(view.g, target.config.vocab_size), memory
        with jax.named_scope("draft"):
            beams = self.draft(target, view)
        with jax.named_scope("pack"):
            return self.pack(view.g, beams), memory

    def draft(self, target: Target, view: View) -> Beams:
        """The search from each row's h and g, with the row's temperature, noise and adjustments; scored by acceptance, where the
        head's config says how likely that is."""
        divisor_B, shape = sample.divisor(view.policy), self.shape
        cut = shape.draft_top_k if shape.width > 1 else 0
        sizes = shape.width, shape.length
        beams = draft(target, self.head, view.h, view.g, *sizes, divisor_B, view.noise, cut, self.adjusts(view))
        return confidence.calibrate(beams, self.head.config.confidence, view.policy)

    def adjusts(self, view: View) -> Adjust | None:
        """What the target does to its logits, for the head's; None where that is nothing."""
        head = self.head
        return adjust.of_drafts(view.policy, view.history, head.drafted, None if head.ids is None else head.ids[...])

    def pack(self, g_B: jax.Array, beams: Beams) -> pack.Tree:
        return pack.pack(g_B, beams, self.shape.tree, self.shape.budget)


def draft(
    target: Target,
    head: Drafter,
    h_BD: jax.Array,
    g_B: jax.Array,
    width: int,
    length: int,
    divisor_B: jax.Array | None = None,
    noise_BLV: jax.Array | None = None,
    draft_top_k: int = 0,
    adjusts: Adjust | None = None,
) -> Beams:
    """W continuations of g, L tokens each, by beam search with the head, over its draft vocabulary if it has one; the tokens
    are the target's ids. Arguments as of `search.search`, the noise over the target's vocabulary."""
    step, state = steps(target, head, h_BD, width, adjusts)
    noise_BLU = None if noise_BLV is None else head.drafted(noise_BLV)
    return search(step, state, g_B, width, length, divisor_B, noise_BLU, draft_top_k, head.token_ids)


def steps(target: Target, head: Drafter, h_BD: jax.Array, width: int, adjusts: Adjust | None = None) -> tuple[Step, tuple]:
    """The head's step for W beams or chains, and the state before the first."""
    context = head.context(h_BD[:, None])

    def step(state_BWD: jax.Array, tokens_BW: jax.Array) -> tuple[jax.Array, jax.Array]:
        state_BWD = head.advance(state_BWD, target.embed(tokens_BW))
        return shortlist.of_head(head, head.exit(context, state_BWD, tokens_BW), target), state_BWD

    B, D = h_BD.shape[0], head.config.hidden_size
    start_BWD = jnp.zeros_like(jnp.broadcast_to(h_BD[:, None, :D], (B, width, D)))
    return adjusted(step, adjusts), (start_BWD, None)
