"""What the parts of a round cost at one batch and context, measured in turn: passes over N nodes, searches of W beams. From a few
of them the cost of any round is estimated, well enough to choose what is then measured itself (`race.py`)."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from infer import stages
from redrafter_jax.decode import loop
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target

REPEATS = 5
MAX_ROUNDS = 16  # that are timed at once


@dataclasses.dataclass(frozen=True)
class PrefilledBatch:
    """What is measured at: the target, and a batch of prompts behind its prefill, with room for the longest rounds."""

    target: Target
    state: DecodeState
    new: int

    def rounds(self, proposer: Proposer) -> Callable[[], float]:
        """Times rounds: a call returns seconds per round."""
        count = min(MAX_ROUNDS, (self.new - 1) // (proposer.round.length + 1) - stages.WARM_ROUNDS)
        return stages.rounds_from(self.target, proposer, self.state, max(1, count))


def begin(target: Target, prompts: list[list[int]], sampling: Sampling, batch: int, new: int, length: int) -> PrefilledBatch:
    """Reads the first prompts, again from the first where there are fewer than rows; ``length``: L of the longest rounds."""
    rows = [prompts[row % len(prompts)] for row in range(batch)]
    inputs, bucket = Engine(target).prepare(rows, sampling, Limits(new=new), list(range(batch)), batch)
    state = loop.start(target, Plain(), *inputs, bucket=dataclasses.replace(bucket, length=length))
    return PrefilledBatch(target, jax.block_until_ready(state), new)


def stretch(prompts: Sequence[list[int]], length: int) -> list[list[int]]:
    """Prompts of so many tokens, each its own ids over and over: for times, which do not depend on what is read."""
    return [(list(prompt) * (1 + length // len(prompt)))[:length] for prompt in prompts]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds. verify: of a pass over N nodes; propose: of a head's search and packing, by W and L; rest: of a round besides."""

    verify: Mapping[int, float]
    propose: Mapping[tuple[str, int, int], float]
    rest: float = 0.0

    def round_seconds(self, head: str, width: int, length: int, nodes: int) -> float:
        """The estimate of a round, interpolated between what was measured."""
        counts = sorted(self.verify)
        verify = float(np.interp(nodes, counts, [self.verify[count] for count in counts]))
        lengths = sorted(at for name, beams, at in self.propose if (name, beams) == (head, width))
        propose = float(np.interp(length, lengths, [self.propose[head, width, at] for at in lengths]))
        return verify + propose + self.rest

    def as_json(self) -> dict:
        """As JSON can hold it, and `of_json` reads it."""
        propose = [[*key, seconds] for key, seconds in self.propose.items()]
        return {"verify": list(self.verify.items()), "propose": propose, "rest": self.rest}


def of_json(found: dict) -> Costs:
    """`Costs.as_json`, read."""
    propose = {(head, width, length): seconds for head, width, length, seconds in found["propose"]}
    return Costs({count: seconds for count, seconds in found["verify"]}, propose, found["rest"])


def measure(
    setting: PrefilledBatch,
    heads: Mapping[str, Drafter],
    widths: Sequence[int],
    lengths: Sequence[int],
    nodes: Sequence[int],
    cut: int,
) -> Costs:
    """Every stage in turn, `REPEATS` times, of which the fastest counts: the estimates only say what to measure. Of the lengths
    the shortest and the longest are measured: a search costs the same at every step."""
    target, state = setting.target, setting.state
    runs = {("verify", count): stages.pass_over(target, count, state) for count in sorted({1, *nodes})}
    for name, width, length in itertools.product(heads, widths, sorted({min(lengths), max(lengths)})):
        proposer = Recurrent(heads[name], Shape(width, length, draft_top_k=cut)).prepare(target)
        runs["propose", name, width, length] = stages.proposing(target, proposer, state)
    runs["plain"] = setting.rounds(Plain())
    stages.in_turn(runs, 1)  # compiles
    seconds = {key: min(found) for key, found in stages.in_turn(runs, REPEATS).items()}
    verify = {key[1]: value for key, value in seconds.items() if key[0] == "verify"}
    propose = {key[1:]: value for key, value in seconds.items() if key[0] == "propose"}
    return Costs(verify, propose, max(0.0, seconds["plain"] - verify[1]))
