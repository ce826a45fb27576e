"""What the parts of a round cost at one batch and context, measured in turn: passes over N nodes, searches of W beams. From a few
of them the cost of any round is estimated, well enough to choose what is then measured itself (`race.py`)."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence

import jax
import numpy as np

from infer import stages
from infer.tune import acceptance
from infer.tune.rounds import WARM_ROUNDS, RoundsProgram
from redrafter_jax.decode import loop
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.prefill import Bucket
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.model.parts import pick_features
from redrafter_jax.model.target import Target

REPEATS = 5
MAX_ROUNDS = 16  # that are timed at once


class PromptBatches:
    """The batches of all prompts, read anew whenever one is needed, with room for the longest rounds; and the programs that were
    compiled for them.

    Args:
      target: shows the features that any of the heads reads, so that all start from one cache.
      length: L of the longest rounds.
    """

    def __init__(self, target: Target, prompts: list[list[int]], sampling: Sampling, batch: int, new: int, length: int):
        self.target, self.new = target, new
        self.inputs, bucket = group_inputs(Engine(target), prompts, sampling, new, batch)
        self.bucket = dataclasses.replace(bucket, length=length)
        self.programs: dict[Hashable, RoundsProgram] = {}
        self._first: DecodeState | None = None

    def start(self, number: int) -> DecodeState:
        """A batch behind its prefill."""
        return jax.block_until_ready(loop.start(self.target, Plain(), *self.inputs[number](), bucket=self.bucket))

    def seen_by(self, state: DecodeState, features: tuple[int, ...]) -> DecodeState:
        """The same for proposers that read these features; its other arrays are shared."""
        with jax.set_mesh(jax.tree.leaves(self.target)[0].sharding.mesh):
            return dataclasses.replace(state, h=pick_features(state.h, self.target.features, features))

    def first(self, features: tuple[int, ...] = ()) -> DecodeState:
        """The first batch, from which single rounds are timed, for proposers that read these features."""
        self._first = self.start(0) if self._first is None else self._first
        return self.seen_by(self._first, features)

    def let_go(self) -> None:
        """Gives back the memory of `first`."""
        self._first = None

    def program(self, name: Hashable, proposer: Proposer) -> RoundsProgram:
        """The rounds of a proposer, compiled once."""
        if name not in self.programs:
            self.programs[name] = RoundsProgram(self.target.showing(proposer.features), proposer, self.first(proposer.features))
        return self.programs[name]

    def rounds(self, name: Hashable, proposer: Proposer) -> Callable[[], float]:
        """Times rounds: a call returns seconds per round."""
        count = min(MAX_ROUNDS, (self.new - 1) // (proposer.round.length + 1) - WARM_ROUNDS)
        program = self.program(name, proposer)
        timed = functools.partial(program.round_seconds, self.first(proposer.features), max(1, count))
        timed()  # the first call pays for what later ones do not
        return timed


def group_inputs(
    engine: Engine, prompts: list[list[int]], sampling: Sampling, new: int, batch: int
) -> tuple[list[Callable[[], tuple]], Bucket]:
    """What makes the inputs of each batch, and their bucket, which is that of the longest prompt, so that one program serves them
    all."""
    _, bucket = engine.prepare([max(prompts, key=len)], sampling, Limits(new=new), [0], batch)

    def inputs(group: tuple[int, ...]) -> tuple:
        rows = [prompts[i] for i in group]
        (tokens, *rest), _ = engine.prepare(rows, sampling, Limits(new=new), list(group), batch)
        return stages.pad_prompts(tokens, bucket.prompt), *rest

    return [functools.partial(inputs, group) for group in acceptance.groups(len(prompts), batch)], bucket


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


def measure(setting: PromptBatches, drafters: Mapping[tuple[str, int, int], Proposer], nodes: Sequence[int]) -> Costs:
    """Every stage in turn, `REPEATS` times, of which the fastest counts: the estimates only say what to measure.

    Args:
      drafters: by head, W and L. Of a search the shortest and the longest are enough: it costs the same at every step.
    """
    target = setting.target.showing(())
    runs = {("verify", count): stages.pass_over(target, count, setting.first()) for count in sorted({1, *nodes})}
    runs |= {("propose", *key): stages.proposing(target, each, setting.first(each.features)) for key, each in drafters.items()}
    runs["plain"] = setting.rounds("plain", Plain())
    stages.in_turn(runs, 1)  # compiles
    seconds = {key: min(found) for key, found in stages.in_turn(runs, REPEATS).items()}
    verify = {key[1]: value for key, value in seconds.items() if key[0] == "verify"}
    propose = {key[1:]: value for key, value in seconds.items() if key[0] == "propose"}
    return Costs(verify, propose, max(0.0, seconds["plain"] - verify[1]))
