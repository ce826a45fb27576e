"""The decoding loop: while not done: draft, pack, verify, commit. One compiled program; nothing goes to the host inside.

Autoregressive decoding is the same loop over a tree of one node.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp

from redrafter_jax.decode import draft, pack, prefill, sample, verify
from redrafter_jax.decode.commit import DecodeState, commit
from redrafter_jax.decode.request import DRAFT_TOP_K, MAX_NODES, require, wrong_for_vocabulary, wrong_number
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static shape of a round: W beams of L drafted tokens, at most N nodes (0: all), and which tree they make.

    L = 0 is autoregressive decoding. ``draft_top_k``: see `draft.draft`; a single beam has no use for it.

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
            raise BadInput(f"tree should be {' or '.join(get_args(pack.TreeKind))}, not {shown(self.tree)}")
        if self.nodes > MAX_NODES:
            raise BadInput(f"width {self.width} and length {self.length} make {self.nodes} nodes, over {MAX_NODES};"
                           " narrow them or give a budget")  # fmt: skip

    def check_vocabulary(self, vocab_size: int, draft_vocab: int = 0) -> None:
        """Raises BadInput for more beams, or a larger ``draft_top_k``, than there are tokens to draft."""
        require("width", wrong_for_vocabulary(self.width, vocab_size, draft_vocab))
        if self.draft_top_k > DRAFT_TOP_K:  # which nobody may have asked for, and fewer tokens are cut to themselves
            require("draft_top_k", wrong_for_vocabulary(self.draft_top_k, vocab_size, draft_vocab))

    @property
    def nodes(self) -> int:
        return pack.nodes(self.width, self.length, self.budget)


AUTOREGRESSIVE = Shape(width=1, length=0)


def search(target: Target, drafter: Drafter, state: DecodeState, noise_BMV: jax.Array | None, shape: Shape) -> draft.Beams:
    """The head's beam search from where each row stands, as its policy wants it."""
    policy = state.policy
    temperature_B = policy.temperature if policy.sampled else None
    shown = noise_BMV[:, :-1] if policy.sampled and policy.rule == "coupled" else None
    cut = shape.draft_top_k if shape.width > 1 else 0
    return draft.draft(target, drafter, state.h, state.g, shape.width, shape.length, temperature_B, shown, cut)


def propose(target: Target, drafter: Drafter | None, state: DecodeState, noise_BMV: jax.Array | None, shape: Shape) -> pack.Tree:
    """The tree to score."""
    if shape.length == 0:
        return pack.root_only(state.g)
    with jax.named_scope("draft"):
        beams = search(target, drafter, state, noise_BMV, shape)
    with jax.named_scope("pack"):
        return pack.pack(state.g, beams, shape.tree, shape.budget)


Propose = Callable[..., pack.Tree]
"""What has `propose`'s arguments and result: another way to draft enters here. ``drafter`` is then whatever pytree it needs."""


def one_round(target: Target, drafter, state: DecodeState, shape: Shape, propose: Propose = propose) -> DecodeState:
    """One pass of the target and what leads up to it; up to L + 1 new tokens per row."""
    policy = state.policy
    with jax.named_scope("noise"):  # of the positions that nodes at depth 0..L decide
        noise_BMV = sample.noise(policy, state.cache.length + 1, shape.length + 1, target.config.vocab_size)
    tree = propose(target, drafter, state, noise_BMV, shape)
    with jax.named_scope("verify"):
        verdict = verify.verify(target, tree, state.cache, policy, noise_BMV, shape.length)
    with jax.named_scope("commit"):
        return commit(state, verdict)


@functools.partial(jax.jit, static_argnames=("shape", "propose"), donate_argnames="state")
def run(
    target: Target, drafter, state: DecodeState, rounds: jax.Array | int, shape: Shape, propose: Propose = propose
) -> DecodeState:
    """At most ``rounds`` rounds, fewer if every row is done. ``state`` is donated: use what is returned."""

    def unfinished(carry):
        index, state = carry
        return (index < rounds) & ~jnp.all(state.done)

    def body(carry):
        index, state = carry
        return index + 1, one_round(target, drafter, state, shape, propose)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


start = jax.jit(prefill.prefill, static_argnames="bucket")
