"""How many rounds every beam shape takes for texts that are known, from one search at each of their positions.

The target's own text does not depend on what drafts, so it is decoded once, plainly. From each of its positions the head then
searches with W beams, L tokens deep. A search of fewer steps is the beginning of a longer one, and a node budget keeps the
likeliest nodes, so this one search says what each shorter length and each budget would have had accepted there. To walk
through the text counts the rounds, exactly (tests compare them with the engine's). Of Medusa's heads the tree is known, and a
budget keeps its first paths. Not here: what a round costs.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from infer import failures
from redrafter_jax.decode import sample
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.decode.propose.medusa import Medusa, Paths
from redrafter_jax.decode.propose.proposer import View
from redrafter_jax.decode.propose.recurrent import Recurrent
from redrafter_jax.decode.propose.search import Beams
from redrafter_jax.devices import processes
from redrafter_jax.model import attention
from redrafter_jax.model.target import Target

POSITIONS = 64  # that search at once
TEXTS = 4  # that the target reads at once
NEVER = 1 << 30  # a budget of nodes that nothing has: the token was not drafted


@dataclasses.dataclass(frozen=True)
class KnownTexts:
    """Prompts and the target's replies, all of ``new`` tokens; the reply of prompt i is sampled with seed i."""

    prompts: list[list[int]]
    replies: list[list[int]]
    sampling: Sampling

    @property
    def new(self) -> int:
        return len(self.replies[0])


def decode(target: Target, prompts: list[list[int]], sampling: Sampling, new: int, batch: int) -> KnownTexts:
    """The target's own replies, past every end of text, so that all are equally long. Raises BadInput as `failures.check`."""
    replies = list(Engine(target).generate(prompts, sampling, Limits(new=new), range(len(prompts)), batch))
    failures.check(replies)
    return KnownTexts(prompts, [reply.token_ids for reply in replies], sampling)


def read_hidden(target: Target, texts: KnownTexts) -> list[np.ndarray]:
    """Of each text, the target's hidden states ``[T, D]``, with what it shows behind them (`Pass.shown`)."""
    rows = [prompt + reply for prompt, reply in zip(texts.prompts, texts.replies, strict=True)]
    longest = max(map(len, rows))
    size = TEXTS * target_rows(target)
    padded = [row + [0] * (longest - len(row)) for row in rows]
    padded += [padded[0]] * (-len(padded) % size)
    hidden = []
    for first in range(0, len(padded), size):
        part = processes.put(np.asarray(padded[first : first + size], np.int32), "data", None)
        hidden += list(np.asarray(_hidden(target, part)))
    return [states[: len(row)] for states, row in zip(hidden, rows, strict=False)]


def target_rows(target: Target) -> int:
    """Devices over which the mesh of the target splits a batch."""
    return jax.tree.leaves(target)[0].sharding.mesh.shape["data"]


@jax.jit
def _hidden(target: Target, tokens_BT: jax.Array) -> jax.Array:
    positions_BT = jax.numpy.arange(tokens_BT.shape[1]) + jax.numpy.zeros_like(tokens_BT)
    visible_BTT = attention.causal(tokens_BT >= 0)
    return target(tokens_BT, positions_BT, visible_BTT).shown


def search(target: Target, proposer: Recurrent | Medusa, texts: KnownTexts, hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of each text ``[T, L, L]``: at a position that a round could begin at, the node budget from which on the text's token at
    depth d (the middle axis) is in the tree of a search of l steps (the last axis, l >= d); `NEVER` where it was not drafted.
    Medusa's heads do not search: their whole tree is that of L steps, and of fewer there is none."""
    length, places = proposer.round.length, [(i, t) for i in range(len(texts.prompts)) for t in range(texts.new - 1)]
    size = POSITIONS * target_rows(target)
    needed = np.concatenate(
        [_search_at(target, proposer, texts, hidden, places[first : first + size], size) for first in range(0, len(places), size)]
    )
    return list(needed.reshape(len(texts.prompts), texts.new - 1, length, length))


def _search_at(target, proposer, texts: KnownTexts, hidden, places: list[tuple[int, int]], size: int) -> np.ndarray:
    filled = places + [places[0]] * (size - len(places))
    ahead = proposer.round.length
    futures, g, h, lengths = [], [], [], []
    for i, t in filled:  # g is token t of reply i; the cache has everything before it
        reply, length = texts.replies[i], len(texts.prompts[i]) + t
        futures.append((reply[t + 1 : t + 1 + ahead] + [-1] * ahead)[:ahead])
        g.append(reply[t])
        h.append(hidden[i][length - 1])
        lengths.append(length)
    view = View(
        g=processes.put(np.asarray(g, np.int32), "data"),
        h=processes.put(np.stack(h), "data", None),
        tokens=processes.put(np.zeros((size, 1), np.int32), "data", None),  # a head does not look at them
        length=processes.put(np.asarray(lengths, np.int32), "data"),
        policy=make_policy([texts.sampling] * size, [i for i, _ in filled]),
    )
    drafted, ahead_BL = jax.device_get(_draft(target, proposer, view)), np.asarray(futures)
    needed = budgets(drafted, ahead_BL) if isinstance(drafted, Beams) else budgets_of_paths(drafted, proposer.paths, ahead_BL)
    return needed[: len(places)]


@jax.jit
def _draft(target: Target, proposer: Recurrent | Medusa, view: View) -> Beams | jax.Array:
    """The beams of a search, or the likeliest tokens ``[B, K, R]`` of Medusa's heads."""
    noise = sample.noise(view.policy, view.length + 1, proposer.round.length + 1, target.config.vocab_size)
    view = dataclasses.replace(view, noise=sample.show_noise(view.policy, noise))
    return proposer.draft(target, view) if isinstance(proposer, Recurrent) else proposer.best(target, view)[0]


def budgets(beams: Beams, futures_BL: np.ndarray) -> np.ndarray:
    """``[B, L, L]``: the smallest node budget with which a tree of l + 1 steps has the first d + 1 tokens of the future.

    A tree keeps the likeliest nodes, ties to the smaller depth and then to the better beam (`pack.pack`).
    """
    tokens, parents, scores = (np.asarray(part) for part in (beams.tokens, beams.parents, beams.scores))
    B, L, W = tokens.shape
    on_path = np.ones((B, W), bool)
    needed = np.full((B, L, L), NEVER)
    order = np.arange(L * W).reshape(L, W)
    for depth in range(L):
        follows = np.ones((B, W), bool) if depth == 0 else np.take_along_axis(on_path, parents[:, depth], 1)
        on_path = follows & (tokens[:, depth] == futures_BL[:, depth, None]) & np.isfinite(scores[:, depth])
        there, beam = on_path.any(1), on_path.argmax(1)
        score = scores[np.arange(B), depth, beam][:, None, None]
        mine = order[depth, beam][:, None, None]
        before = np.isfinite(scores) & ((scores > score) | ((scores == score) & (order < mine)))
        ranks = 2 + np.cumsum(before.sum(2), axis=1)  # the root and itself, and what is kept before it, by steps
        needed[:, depth, depth:] = np.where(there[:, None], ranks[:, depth:], NEVER)
    return needed


def budgets_of_paths(tokens_BKR: np.ndarray, paths: Paths, futures_BL: np.ndarray) -> np.ndarray:
    """``[B, L, L]``, of which the last column counts: the smallest node budget whose first paths have the beginning of the future,
    for the tokens of each head by their rank."""
    B, L, _ = tokens_BKR.shape
    needed, place = np.full((B, L, L), NEVER), {path: place for place, path in enumerate(paths)}
    right_BKR = tokens_BKR == futures_BL[:, :, None]
    for row, ranks_K in enumerate(np.where(right_BKR.any(2), right_BKR.argmax(2), -1).tolist()):
        for depth in range(L):
            found = place.get(tuple(ranks_K[: depth + 1]))
            if found is None:
                break
            needed[row, depth, L - 1] = found + 2  # the root, and the path itself
    return needed


def count_rounds(needed: Sequence[np.ndarray], new: int, length: int, budget: int) -> list[int]:
    """Of each text, the rounds with searches of ``length`` steps and trees of at most ``budget`` nodes (0: all)."""
    return [_walk(_accepted(each[:, :length, length - 1], budget or NEVER - 1), new) for each in needed]


def _accepted(needed_TL: np.ndarray, budget: int) -> np.ndarray:
    """Of each position, the tokens accepted: those from the first on that are in the tree."""
    return np.cumprod(needed_TL <= budget, axis=1).sum(1)


def _walk(accepted_T: np.ndarray, new: int) -> int:
    count, rounds = 1, 0  # the first token comes from the prefill
    while count < new:
        count += 1 + int(accepted_T[count - 1])
        rounds += 1
    return rounds


@functools.lru_cache
def groups(prompts: int, batch: int) -> tuple[tuple[int, ...], ...]:
    """Which prompts are decoded together: full batches, for which the first prompts stand in a second time."""
    count = -(-prompts // batch)
    return tuple(tuple((first * batch + row) % prompts for row in range(batch)) for first in range(count))


def rounds_of_batches(rounds: Sequence[int], batch: int) -> int:
    """Rounds of all batches, each as many as its slowest row."""
    return sum(max(rounds[i] for i in group) for group in groups(len(rounds), batch))
