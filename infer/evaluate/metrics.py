"""The figures of the embedded pair's README: bits per byte, loops, and tokens per step, on held-out files."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from infer import failures
from redrafter_jax import cross_entropy
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.heads import fit_shape, proposer_of_head
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.reply import Reply, mean_tokens_per_step
from redrafter_jax.decode.request import DRAFT_TOP_K
from redrafter_jax.files.heads import Head
from redrafter_jax.model.target import Target

SHAPES = ((1, 3), (4, 4), (8, 5))
TREES = ("search", "beams")
TOP_K = {"search": DRAFT_TOP_K, "beams": 50}  # what drafts are cut to: our default, and for the paper's tree as Apple's code does
BATCH = 32
ROWS = 4  # rows whose logits over the full vocabulary exist at a time


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Held-out contexts, spread evenly through the stream: ``count`` of them, ``length`` tokens each."""

    stream: np.ndarray
    count: int = 64
    length: int = 64

    def cut(self) -> list[list[int]]:
        starts = np.linspace(0, len(self.stream) - self.length, self.count).astype(int)
        return [self.stream[start : start + self.length].tolist() for start in starts]


def bits_per_byte(target: Target, stream: np.ndarray, bytes_: int, row_length: int = 256, rows: int = 256) -> float:
    """Cross-entropy of held-out text in bits per byte: rows of ``row_length`` tokens spread evenly through the stream,
    every token but a row's first predicted from the row so far."""
    starts = np.linspace(0, len(stream) - row_length, rows).astype(int)
    nats_of = jax.jit(cross_entropy.of_next_tokens)
    cut = [stream[start : start + row_length] for start in starts]
    parts = [np.stack(cut[i : i + ROWS]) for i in range(0, rows, ROWS)]
    nats = np.concatenate([np.asarray(nats_of(target, jax.device_put(part, P("data", None)))) for part in parts]).mean()
    return float(nats) / math.log(2) * len(stream) / bytes_


def greedy_replies(target: Target, prompts: Prompts, new: int = 128) -> list[Reply]:
    """The target's own text behind each prompt. Raises BadInput as `failures.check`."""
    replies = list(Engine(target).generate(prompts.cut(), limits=Limits(new=new), batch=BATCH))
    failures.check(replies)
    return replies


def loop_share(replies: Sequence[Reply], last: int = 48, longest_period: int = 24) -> float:
    """The share of replies whose last ``last`` tokens repeat themselves with a period of at most ``longest_period``; a
    shorter reply ended by itself, so it is not a loop."""
    long = (reply.token_ids[-last:] for reply in replies if len(reply.token_ids) >= last)
    return sum(is_loop(tokens, longest_period) for tokens in long) / len(replies)


def is_loop(tokens: Sequence[int], longest_period: int) -> bool:
    """Whether the tokens repeat with some period of at most ``longest_period``."""
    return any(list(tokens[period:]) == list(tokens[:-period]) for period in range(1, longest_period + 1))


def tokens_per_step(engine: Engine, prompts: Prompts, sampling: Sampling, new: int = 128) -> float:
    """τ of generated text: tokens that a target pass yields, the +1 counted, over all rounds of all replies. Raises BadInput as
    `failures.check`."""
    replies = list(engine.generate(prompts.cut(), sampling, Limits(new=new), batch=BATCH))
    failures.check(replies)
    return mean_tokens_per_step(replies)


def tokens_per_step_along_text(engine: Engine, prompts: Prompts, sampling: Sampling = Sampling()) -> float:
    """τ along real text: one round from each true context, so that no loop of the target's own can flatter it. Raises BadInput as
    `failures.check`."""
    replies = []
    for part in _batched(prompts.cut(), BATCH):
        rounds = engine.stream(list(part), sampling, Limits(new=64), list(range(len(part))), rows=BATCH, rounds=1)
        replies += list(itertools.islice(rounds, 2))[-1].replies
    failures.check(replies)
    return mean_tokens_per_step(replies)


def _batched(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def tau_table(
    target: Target,
    drafter: Head,
    prompts: Prompts,
    contexts: Prompts,
    shapes: Sequence[tuple[int, int]],
    trees: Sequence[str],
    new: int = 128,
) -> list[dict]:
    """A row for every beam shape and tree: τ at T = 0, at T = 1 coupled and independent, and along real text; drafts are cut to
    ``TOP_K`` of the tree."""
    asked = (Shape(*size, tree=tree, draft_top_k=TOP_K[tree]) for size, tree in itertools.product(shapes, trees))
    rows, ways = [], list({fit_shape(drafter.config, shape): None for shape in asked})
    with tqdm(total=4 * len(ways), unit="figure", leave=False) as bar:
        for shape in ways:
            width, length, tree = shape.width, shape.length, shape.tree
            engine = Engine(target, proposer_of_head(drafter, shape))
            figures = {
                "greedy": lambda engine=engine: tokens_per_step(engine, prompts, Sampling(), new),
                "coupled": lambda engine=engine: tokens_per_step(engine, prompts, Sampling(1.0), new),
                "independent": lambda engine=engine: tokens_per_step(engine, prompts, Sampling(1.0, rule="independent"), new),
                "along_text": lambda engine=engine: tokens_per_step_along_text(engine, contexts),
            }
            row: dict = {"shape": f"{width}x{length}", "tree": tree}
            for name, measure in figures.items():
                bar.set_description(f"{width}x{length}, {tree}, {name.replace('_', ' ')}")
                row[name] = measure()
                bar.update()
            rows.append(row)
    return rows
