"""Teaches the embedded pair's target not to loop: the repetitions in its own greedy text are made unlikely.

A small model's greedy text ends in loops more often than not. So, in rounds: the target continues places in the corpus;
what of that repeats itself to the end is found; updates make those very tokens less likely (unlikelihood, Welleck et al.,
arXiv 1908.04319, section 5) while ordinary text keeps its loss. The next round continues with the target that came of it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from redrafter_jax.model.target import Target
from train.demo import pretrain
from train.demo.own_text import greedy_rows

MAX_PERIOD_TOKENS = 64
MIN_REPETITION_TOKENS = 12  # tokens
MIN_UNLIKELIHOOD = 1e-4  # 1 - p is cut off here, so that a certain token's gradient stays finite


@dataclasses.dataclass(frozen=True)
class Rounds:
    """``count`` rounds of ``steps`` updates, each on ``looping`` rows that end in a loop and ``batch`` of the corpus; a round
    looks for the former in the continuations of ``prompts`` places, the first quarter of each row being the corpus's."""

    count: int = 5
    steps: int = 24
    batch: int = 12
    looping: int = 4
    prompts: int = 192
    row_length: int = 256
    muon_rate: float = 2e-3
    adam_rate: float = 3e-4
    warmup: int = 5
    weight: float = 1.0
    """Of the unlikelihood, beside ordinary text's cross-entropy."""

    def schedule(self) -> pretrain.PretrainSchedule:
        steps = self.count * self.steps
        return pretrain.PretrainSchedule(steps, self.batch, self.warmup, 1.0, self.muon_rate, self.adam_rate)


def run(state: pretrain.PretrainState, corpus: np.ndarray, rounds: Rounds, number: int) -> tuple[pretrain.PretrainState, dict]:
    """The state after round ``number`` (from 0), and the share of rows that ended in a loop and the last losses."""
    rng = np.random.default_rng(number)
    starts = rng.integers(0, len(corpus) - rounds.row_length, (rounds.prompts,))
    length = rounds.row_length // 4
    prompts = [corpus[start : start + length].tolist() for start in starts]
    rows = greedy_rows(pretrain.finished(state.target), prompts, rounds.row_length + 1)
    repeated = np.stack([repetitions(row, length) for row in rows])
    looping = np.flatnonzero(repeated[:, -1])
    report = {"round": number, "loops": len(looping) / len(rows)}
    if not len(looping):
        return state, report
    update = _update(rounds)
    progress = tqdm(range(rounds.steps), f"round {number}")
    for _ in progress:
        own = rng.choice(looping, rounds.looping)
        text = rng.integers(0, len(corpus) - rounds.row_length - 1, (rounds.batch,))
        text = np.stack([corpus[start : start + rounds.row_length + 1] for start in text])
        arrays = [jax.device_put(array, P("data", None)) for array in (text, rows[own], repeated[own])]
        state, (nats, unlikely) = update(state, *arrays)
        progress.set_postfix(loss=f"{float(nats):.3f}", unlikelihood=f"{float(unlikely):.3f}")
    return state, report | {"train_nats": float(nats), "unlikelihood": float(unlikely)}


def repetitions(row: np.ndarray, begin: int) -> np.ndarray:
    """Which tokens, from ``begin`` on, repeat the ones a period before, in a run of at least `MIN_REPETITION_TOKENS` and of
    more than one period so far: the third time round and later."""
    found = np.zeros(len(row), bool)
    for period in range(1, MAX_PERIOD_TOKENS + 1):
        same = row[period:] == row[:-period]
        places = np.arange(len(same))
        run = places - np.maximum.accumulate(np.where(same, -1, places))  # tokens of the run that ends here
        found[period:] |= run > max(period, MIN_REPETITION_TOKENS)
    found[:begin] = False
    return found


@functools.cache
def _update(rounds: Rounds):
    return jax.jit(functools.partial(step, rounds=rounds), donate_argnums=0)


def step(state: pretrain.PretrainState, text_BT, own_BT, repeated_BT, rounds: Rounds):
    """One update; also the mean cross-entropy of the text and the mean unlikelihood of the repetitions, in nats."""

    def aim(target: Target):
        nats = jnp.mean(pretrain.next_token_losses(target, text_BT))
        likely_BT = jnp.exp(-pretrain.next_token_losses(target, own_BT))
        unlikely = jnp.mean(-jnp.log(jnp.maximum(1 - likely_BT, MIN_UNLIKELIHOOD)), where=repeated_BT[:, 1:])
        return nats + rounds.weight * unlikely, (nats, unlikely)

    gradients, parts = jax.grad(aim, has_aux=True)(state.target)
    return pretrain.apply(state, gradients, rounds.schedule()), parts
