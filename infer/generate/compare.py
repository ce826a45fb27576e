"""Speculative and plain decoding of the same prompts, in turn: whether the tokens are the same, and both speeds."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from infer.prompts import Prompt
from infer.terminal import Totals, counted
from infer.turns import Turns
from redrafter_jax.decode.engine import Engine, Limits, Reply, Sampling

MIN_RUNS = 3  # of each kind, so that a single slow one does not decide the ratio


@dataclasses.dataclass
class Comparison:
    """``turns``: what was asked; ``replies``: both kinds for each turn, of the first run; ``first_difference``: (the number of the
    turn, position) or None."""

    turns: Turns
    speculative: Totals
    autoregressive: Totals
    replies: list[tuple[Reply, Reply]]
    first_difference: tuple[int, int] | None = None

    def report(self, numbers: str) -> str:
        """Both speeds, of replies none of which ended in an error; ``numbers``: the formats that were computed in."""
        fast, plain = self.speculative, self.autoregressive
        count = sum(len(reply.token_ids) for reply, _ in self.replies)
        prompts = counted(len({turn.index for turn in self.turns.all}), "prompt")
        of = f"{len(self.turns)} turns of {prompts}" if self.turns.has_turns else prompts
        same = f"all {counted(count, 'token')} of {of} are identical ({numbers})"
        if self.first_difference is not None:
            number, position = self.first_difference
            same = f"{self.turns.all[number].where} differs from new token {position} on ({numbers})"
        runs = f"{plain.prefills // max(len(self.replies), 1)} runs of each, in turn; compiling is not counted"
        return "\n".join([
            f"tokens          {same}",
            f"speculative     {fast.speed:.1f} tokens/s, {fast.tokens_per_step_in_words}",
            f"plain           {plain.speed:.1f} tokens/s",
            f"speed-up        {fast.speed / plain.speed:.2f} ({runs})",
        ])  # fmt: skip


Decode = Callable[[Engine, Sequence[int]], list[Reply]]
"""The replies of an engine to the turns of one batch, by their numbers."""


def compare(engine: Engine, decode: Decode, turns: Turns, size: int, text_of: Callable[[int, Reply], str | None]) -> Comparison:
    """Decodes every batch both ways, in turn and often enough to be timed."""
    plain, batches = engine.autoregressive(), turns.batches(range(len(turns)), size)
    result, found = Comparison(turns, Totals(), Totals(), []), {}
    repeats = math.ceil(MIN_RUNS / len(batches))
    for one in (engine, plain):  # compiles, and warms up
        decode(one, batches[0])
    for numbers in batches:
        for repeat in range(repeats):
            pair = []
            for one, totals in ((engine, result.speculative), (plain, result.autoregressive)):
                replies = decode(one, numbers)
                totals.add(replies)
                pair.append(replies)
            if repeat == 0:
                found |= dict(zip(numbers, zip(*pair, strict=True), strict=True))
        for number in numbers:
            turns.answer(number, text_of(number, found[number][0]))
    result.replies = [found[number] for number in range(len(turns))]
    result.first_difference = _first_difference(result.replies)
    return result


def compare_prompt(engine: Engine, token_ids: list[int], sampling: Sampling, limits: Limits, seed: int = 0) -> Comparison:
    """The same of one prompt: what a notebook needs."""

    def decode(one: Engine, numbers: Sequence[int]) -> list[Reply]:
        return list(one.generate([token_ids for _ in numbers], sampling, limits, [seed for _ in numbers]))

    turns = Turns([Prompt("the prompt", "token_ids", token_ids)], lambda prompt: prompt.content)
    return compare(engine, decode, turns, 1, lambda number, reply: None)


def _first_difference(replies: list[tuple[Reply, Reply]]) -> tuple[int, int] | None:
    for number, (one, other) in enumerate(replies):
        if one.token_ids != other.token_ids:
            together = zip(one.token_ids, other.token_ids, strict=False)
            shorter = min(len(one.token_ids), len(other.token_ids))
            return number, next((at for at, (a, b) in enumerate(together) if a != b), shorter)
    return None
