"""The tree of each round, fetched to be looked at: what was drafted, and the path that the target accepted."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from infer.display.stream import ids_of, rows_of
from infer.pair import Pair
from redrafter_jax.decode import loop, sample
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.pack import Tree
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.request import Limits, Sampling
from redrafter_jax.devices import processes
from redrafter_jax.model.target import Target


@dataclasses.dataclass(frozen=True)
class DraftedTree:
    """The tree of one round of one reply, root first, parents before children.

    tokens, parent: of each node (the root is its own parent); probability: the drafter's estimate of each node's prefix, 1 at
    the root; delivered: the tokens that the reply got from the round; path: the nodes of the accepted drafts, from the root's
    child on; texts: of each node, and of the last delivered token, where there is a tokenizer.
    """

    tokens: list[int]
    parent: list[int]
    probability: list[float]
    delivered: list[int]
    path: list[int]
    texts: list[str]

    @property
    def depth(self) -> list[int]:
        """Of each node, 0 at the root."""
        depths = [0]
        for parent in self.parent[1:]:
            depths.append(depths[parent] + 1)
        return depths

    @property
    def own_choice(self) -> int | None:
        """The token that the target chose behind the path; None where the reply ended before it."""
        return self.delivered[-1] if len(self.delivered) > len(self.path) else None


def fetch_trees(
    pair: Pair, prompt: str | Sequence[int], rounds: int = 1, sampling: Sampling = Sampling(), seed: int = 0
) -> list[DraftedTree]:
    """The trees of the first ``rounds`` rounds behind a prompt, fewer where the reply ends; the text is as always.

    Raises:
      BadInput: the prompt does not fit the target, or it ends before the first round.
    """
    engine, ids = pair.engine, ids_of(pair, prompt)
    new = 1 + rounds * (engine.proposer.round.length + 1)
    inputs, bucket = engine.prepare([ids], sampling, Limits(new=new), [seed], rows_of(pair))
    found = []
    with jax.set_mesh(engine.mesh):
        state = loop.start(engine.target, engine.proposer, *inputs, bucket=bucket)
        for _ in range(rounds):
            if bool(processes.fetch(state.done)[0]):
                break
            tree, before = processes.fetch(propose(engine.target, engine.proposer, state)), _reply(state)
            state = loop.run(engine.target, engine.proposer, state, jnp.int32(1))
            found.append(_seen(tree, _reply(state)[len(before) :], pair.tokenizer))
    return found


@jax.jit
def propose(target: Target, proposer: Proposer, state: DecodeState) -> Tree:
    """The tree that the next round will score."""
    policy, length = state.policy, proposer.round.length
    noise_BMV = sample.noise(policy, state.cache.length + 1, length + 1, target.config.vocab_size)
    return proposer.propose(target, state.view(sample.show_noise(policy, noise_BMV)), state.memory)[0]


def _reply(state: DecodeState) -> list[int]:
    host = processes.fetch({name: getattr(state, name) for name in ("tokens", "prompt", "count")})
    start = host["prompt"][0]
    return host["tokens"][0, start : start + host["count"][0]].tolist()


def _seen(tree: Tree, delivered: list[int], tokenizer) -> DraftedTree:
    count = int(np.sum(tree.valid[0]))  # unused slots are the last
    tokens, parent = tree.tokens[0, :count].tolist(), tree.parent[0, :count].tolist()
    text = functools.partial(_text, tokenizer)
    return DraftedTree(
        tokens,
        parent,
        np.exp(tree.scores[0, :count]).tolist(),
        delivered,
        walk(tokens, parent, delivered),
        [text(token) for token in [*tokens, *delivered[-1:]]],
    )


def walk(tokens: Sequence[int], parent: Sequence[int], delivered: Sequence[int]) -> list[int]:
    """The nodes that carry the delivered tokens, from the root down, as far as the tree has them."""
    path, at = [], 0
    for token in delivered:
        child = next((n for n in range(1, len(tokens)) if parent[n] == at and tokens[n] == token), None)
        if child is None:
            break
        path.append(child)
        at = child
    return path


def _text(tokenizer, token: int) -> str:
    """A token as it can be read in a plot: blanks and line breaks as signs."""
    if tokenizer is None:
        return str(token)
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text.replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5") or str(token)
