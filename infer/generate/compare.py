"""Speculative and plain decoding of the same prompts, in turn: whether the tokens are the same, and both speeds."""

import dataclasses
import math
from collections.abc import Sequence

from infer.terminal import Totals
from redrafter_jax.decode.engine import Engine, Reply

MIN_RUNS = 3  # of each kind, so that a single slow one does not decide the ratio


@dataclasses.dataclass
class Comparison:
    """``replies``: both kinds for each prompt, of the first run; ``first_difference``: (prompt, position) or None."""

    speculative: Totals
    autoregressive: Totals
    replies: list[tuple[Reply, Reply]]
    first_difference: tuple[int, int] | None = None

    def report(self, dtype: str) -> str:
        """Both speeds, of replies none of which ended in an error."""
        fast, plain = self.speculative, self.autoregressive
        count = sum(len(reply.token_ids) for reply, _ in self.replies)
        same = f"all {count} tokens of {len(self.replies)} prompts are identical ({dtype})"
        if self.first_difference is not None:
            prompt, position = self.first_difference
            same = f"prompt {prompt} differs from new token {position} on ({dtype})"
        runs = f"{plain.prefills // max(len(self.replies), 1)} runs of each, in turn; compiling is not counted"
        return "\n".join([
            f"tokens          {same}",
            f"speculative     {fast.speed:.1f} tokens/s, {fast.tokens_per_step_in_words}",
            f"autoregressive  {plain.speed:.1f} tokens/s",
            f"ratio           {fast.speed / plain.speed:.2f} ({runs})",
        ])  # fmt: skip


def compare(engine: Engine, prompts: Sequence, sampling, limits, seeds: Sequence[int], batch: int) -> Comparison:
    """Decodes every batch both ways, in turn and often enough to be timed."""
    plain = engine.autoregressive()
    result = Comparison(Totals(), Totals(), [])
    repeats = math.ceil(MIN_RUNS / math.ceil(len(prompts) / batch))
    for one in (engine, plain):  # compiles, and warms up
        list(one.generate(prompts[:batch], sampling, limits, seeds[:batch], batch))
    for first in range(0, len(prompts), batch):
        part = slice(first, first + batch)
        for repeat in range(repeats):
            pair = []
            for one, totals in ((engine, result.speculative), (plain, result.autoregressive)):
                replies = list(one.generate(prompts[part], sampling, limits, seeds[part], batch))
                totals.add(replies)
                pair.append(replies)
            if repeat == 0:
                result.replies += zip(*pair, strict=True)
    result.first_difference = _first_difference(result.replies)
    return result


def _first_difference(replies: list[tuple[Reply, Reply]]) -> tuple[int, int] | None:
    for prompt, (one, other) in enumerate(replies):
        if one.token_ids != other.token_ids:
            together = zip(one.token_ids, other.token_ids, strict=False)
            shorter = min(len(one.token_ids), len(other.token_ids))
            return prompt, next((at for at, (a, b) in enumerate(together) if a != b), shorter)
    return None
