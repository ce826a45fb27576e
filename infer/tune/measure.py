"""The measurements of `infer.tune` in their order: texts, acceptance, costs, the race, whole replies; each is kept as soon as it is
there."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from infer.settings import Choice
from infer.tune import acceptance, candidates, costs, final, points, race
from infer.tune.kept import Kept
from infer.tune.points import Estimate, Point
from redrafter_jax.decode.engine import Sampling
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.request import DRAFT_TOP_K
from redrafter_jax.files.heads import Head
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.parts import all_features
from redrafter_jax.model.target import Target

CUTS = (0, 50)  # values of draft_top_k that the fastest shape is tried with, besides `DRAFT_TOP_K`
RACE_SHARE = 0.5  # of the seconds of a comparison: the race only chooses who decodes whole replies, for all of them
MIN_GAIN = 1.01  # below which another draft_top_k is not worth a change
TEXT_BATCH = 16  # prompts that the target continues at once, at most


@dataclasses.dataclass(frozen=True)
class TunePlan:
    """What is tried. beams: W and L; nodes: numbers of nodes of passes and trees; new: tokens of each reply; seconds: of a
    comparison."""

    beams: tuple[tuple[int, int], ...]
    nodes: tuple[int, ...]
    sampling: Sampling
    new: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found at one batch and context. raced: speed-ups of the points that were raced; speedups: of the best of them over
    whole replies; choices: by these the fastest of each head."""

    batch: int
    context: int
    estimates: list[Estimate]
    raced: dict[Point, float]
    speedups: dict[Point, float]
    choices: dict[str, Choice]

    @property
    def best(self) -> Point | None:
        """The choice; None where plain decoding is faster."""
        first = max(self.speedups, key=self.speedups.get)
        return first if self.speedups[first] > 1.0 else None


class Tuner:
    """A target and its heads by name, at the prompts' token ids; ``say`` is told what is being measured; ``most``: the largest
    batch, for whose cache there is room."""

    def __init__(
        self,
        target: Target,
        heads: Mapping[str, Head],
        prompts: list[list[int]],
        plan: TunePlan,
        kept: Kept,
        say: Callable[[str], None],
        most: int = TEXT_BATCH,
    ):
        self.target, self.heads, self.prompts, self.plan, self.kept, self.say = target, heads, prompts, plan, kept, say
        self.most = most
        self.grid = candidates.grid({name: head.config for name, head in heads.items()}, plan.beams, plan.nodes)
        self.batches: costs.PromptBatches | None = None
        self._read: dict[tuple[int, ...], list] = {}
        self._at: tuple[int, int | None] = (1, None)

    def tune(self, batch: int, context: int | None) -> Measured:
        """The fastest point of every head at a batch, and at a context in tokens (None: the prompts' own)."""
        self.batches, self._at = None, (batch, context)
        estimates = self.estimate(batch, context)
        raced = self.compare("race", [each.point for each in points.shortlist(estimates)])
        best = max(raced, key=raced.get)
        if best.width > 1 and best.draft_top_k:  # Medusa's heads are not cut
            others = [dataclasses.replace(best, draft_top_k=cut) for cut in CUTS if cut != best.draft_top_k]
            self.say(f"batch {batch}: draft_top_k of {best.shape}")
            more = self.compare("cuts", [best, *others])
            better = {point: more[point] / more[best] for point in others if more[point] > MIN_GAIN * more[best]}
            raced |= {point: raced[best] * factor for point, factor in better.items()}  # from one race to the other
        speedups, plain_seconds = self.decode_whole(final.finalists(raced))
        self.batches = None  # and with it the programs
        fastest = points.best_by_head(speedups)
        choices = {head: self._choice(point, speedups[point], batch, plain_seconds) for head, point in fastest.items()}
        return Measured(batch, self.context_of(context), estimates, raced, speedups, choices)

    def context_of(self, context: int | None) -> int:
        """Tokens of the longest prompt and its reply, as a reader counts them."""
        return context or max(map(len, self.prompts)) + self.plan.new

    @property
    def text_batch(self) -> int:
        """Prompts that the target continues at once: no more than are decoded together, in full rows of the mesh."""
        rows = acceptance.target_rows(self.target)
        return -(-min(TEXT_BATCH, self.most) // rows) * rows

    @functools.cached_property
    def texts(self) -> acceptance.KnownTexts:
        def decode() -> list[list[int]]:
            self.say(f"the target continues {len(self.prompts)} prompts")
            return acceptance.decode(self.target, self.prompts, self.plan.sampling, self.plan.new, self.text_batch).replies

        return acceptance.KnownTexts(self.prompts, self.kept.get("texts", decode), self.plan.sampling)

    def _shown(self, features: tuple[int, ...]) -> list:
        if features not in self._read:
            self._read[features] = acceptance.read_hidden(self.target.showing(features), self.texts)
        return self._read[features]

    def rounds(self, point: Point) -> list[int]:
        """Of each prompt, the rounds of its reply."""
        cut = point.draft_top_k if point.width > 1 else 0  # a single beam is never cut
        name = f"rounds {point.head} {point.width} {cut}"
        return self.kept.get(name, lambda: self._search(point.head, point.width, cut))[f"{point.length} {point.budget}"]

    def _search(self, head: str, width: int, cut: int) -> dict[str, list[int]]:
        which = f", draft_top_k {cut}" if width > 1 and cut not in (DRAFT_TOP_K, 0) else ""
        beams = f" with {width} beam{'s' * (width > 1)}" if isinstance(self.heads[head], Drafter) else ""
        self.say(f"what {head} has accepted{beams}{which}")
        family = [point for point in self.grid if (point.head, point.width) == (head, width)]
        proposer = candidates.largest(self.heads[head], family, cut, self.target)
        needed = acceptance.search(self.target, proposer, self.texts, self._shown(proposer.features))
        return {
            f"{point.length} {point.budget}": acceptance.count_rounds(needed, self.plan.new, point.length, point.budget)
            for point in family
        }

    def estimate(self, batch: int, context: int | None) -> list[Estimate]:
        """What every point should give, from its exact rounds and what a round should cost."""

        def measure() -> dict:
            self.say(f"batch {batch}: what passes and searches cost")
            largest = max(point.nodes for point in self.grid)
            nodes = [count for count in self.plan.nodes if count <= largest]
            nodes += [largest] if largest > 2 * max(nodes, default=1) else []  # beyond the last no cost is known
            drafters = {}
            for point in self.grid:
                lengths = [other.length for other in self.grid if (other.head, other.width) == (point.head, point.width)]
                for length in {min(lengths), max(lengths)}:
                    longest = dataclasses.replace(point, length=length, budget=0)
                    drafters[point.head, point.width, length] = self.proposer(longest)
            return costs.measure(self._current(), drafters, nodes).as_json()

        found = costs.of_json(self.kept.get(f"costs {batch} {context}", measure))
        plain = found.verify[1] + found.rest
        estimates = []
        for point in self.grid:
            seconds = found.round_seconds(point.head, point.width, point.length, point.nodes)
            gain = self.gain(point, batch)
            estimates.append(Estimate(point, self.tokens_per_step(point), gain, seconds, gain * plain / seconds))
        return estimates

    def gain(self, point: Point, batch: int) -> float:
        """Rounds of plain decoding over those of the point, in batches."""
        plain = [self.plan.new - 1] * len(self.prompts)
        return acceptance.rounds_of_batches(plain, batch) / acceptance.rounds_of_batches(self.rounds(point), batch)

    def tokens_per_step(self, point: Point) -> float:
        """Over all rounds of all replies, the +1 counted."""
        return (self.plan.new - 1) * len(self.prompts) / sum(self.rounds(point))

    def setting(self, batch: int, context: int | None) -> costs.PromptBatches:
        """The batches of all prompts."""
        prompts = self.prompts if context is None else costs.stretch(self.prompts, context - self.plan.new)
        target = self.target.showing(all_features(head.config.depths for head in self.heads.values()))
        longest = max(point.length for point in self.grid)
        return costs.PromptBatches(target, prompts, self.plan.sampling, batch, self.plan.new, longest)

    def proposer(self, point: Point) -> Proposer:
        """What drafts as the point says."""
        return candidates.proposer_of(self.heads[point.head], point, self.target)

    def compare(self, name: str, entered: Sequence[Point]) -> dict[Point, float]:
        """The speed-up of each point over plain decoding, in one race of rounds."""
        (batch, _), gains = self._at, {_key(point): self.gain(point, self._at[0]) for point in entered}

        def run(laps: list[race.Lap], keep: Callable[[list[race.Lap]], None]) -> list[race.Lap]:
            self.say(f"batch {batch}: {len(entered)} shapes against plain decoding")
            batches = self._current()
            runners = {
                _key(point): race.Contender(batches.rounds(_key(point), self.proposer(point)), gains[_key(point)])
                for point in entered
            }
            runners[race.PLAIN] = race.Contender(batches.rounds(race.PLAIN, Plain()), 1.0)
            return race.run(runners, self.plan.seconds * RACE_SHARE, laps, keep)

        laps = self._laps(name, run)
        return {point: gains[_key(point)] / race.round_cost(_key(point), laps) for point in entered}

    def decode_whole(self, entered: Sequence[Point]) -> tuple[dict[Point, float], float]:
        """The speed-up of each point over plain decoding, from whole replies; and the seconds of a plain round."""
        batch, _ = self._at

        def run(laps: list[race.Lap], keep: Callable[[list[race.Lap]], None]) -> list[race.Lap]:
            self.say(f"batch {batch}: whole replies with the best {len(entered)} and with plain decoding")
            batches = self._current()
            programs = {race.PLAIN: batches.program(race.PLAIN, Plain())}
            programs |= {_key(point): batches.program(_key(point), self.proposer(point)) for point in entered}
            return final.run(batches, programs, self.plan.seconds, laps, keep)

        laps = self._laps("replies", run)
        return {point: self.gain(point, batch) / final.round_cost(_key(point), laps) for point in entered}, final.plain_seconds(
            laps
        )

    def _current(self) -> costs.PromptBatches:
        """The batches of the current conditions, made once they are needed, with the programs that were compiled for them."""
        self.batches = self.batches or self.setting(*self._at)
        return self.batches

    def _laps(self, name: str, run: Callable[..., list[race.Lap]]) -> list[race.Lap]:
        """The laps of a comparison under current conditions: those that are kept, and what is missing of them."""
        name = " ".join(map(str, (name, *self._at)))
        found = self.kept.peek(name, {"laps": [], "is_over": False})
        if found["is_over"]:
            return found["laps"]
        laps = run(found["laps"], lambda laps: self.kept.put(name, {"laps": laps, "is_over": False}))
        self.kept.put(name, {"laps": laps, "is_over": True})
        return laps

    def _choice(self, point: Point, speedup: float, batch: int, plain_seconds: float) -> Choice:
        plain = batch / plain_seconds
        return Choice(
            point.width, point.length, point.budget, point.draft_top_k,
            speedup, self.tokens_per_step(point), speedup * plain, plain,
        )  # fmt: skip


def _key(point: Point) -> str:
    """A point as the name of a contender, which JSON can hold."""
    return " ".join(map(str, dataclasses.astuple(point)))
