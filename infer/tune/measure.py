"""The measurements of `infer.tune` in their order: texts, acceptance, costs, the race; each is kept as soon as it is there."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from infer.settings import Choice
from infer.tune import acceptance, costs, points, race
from infer.tune.kept import Kept
from infer.tune.points import Estimate, Point
from redrafter_jax.decode.engine import Sampling
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.request import DRAFT_TOP_K
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target

CUTS = (0, 50)  # values of draft_top_k that the fastest shape is tried with, besides `DRAFT_TOP_K`
MIN_GAIN = 1.01  # below which another draft_top_k is not worth a change
TEXT_BATCH = 16  # prompts that the target continues at once, at most


@dataclasses.dataclass(frozen=True)
class TunePlan:
    """What is tried. beams: W and L; nodes: numbers of nodes of passes and trees; new: tokens of each reply; seconds: of a race."""

    beams: tuple[tuple[int, int], ...]
    nodes: tuple[int, ...]
    sampling: Sampling
    new: int
    seconds: float

    @property
    def longest(self) -> int:
        """L of the longest searches."""
        return max(length for _, length in self.beams)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found at one batch and context. speedups: of the points that were raced; choices: the fastest of each head."""

    batch: int
    context: int
    estimates: list[Estimate]
    speedups: dict[Point, float]
    choices: dict[str, Choice]


class Tuner:
    """A target and its heads by name, at the prompts' token ids; ``say`` is told what is being measured; ``most``: the largest
    batch, for whose cache there is room."""

    def __init__(
        self,
        target: Target,
        heads: Mapping[str, Drafter],
        prompts: list[list[int]],
        plan: TunePlan,
        kept: Kept,
        say: Callable[[str], None],
        most: int = TEXT_BATCH,
    ):
        self.target, self.heads, self.prompts, self.plan, self.kept, self.say = target, heads, prompts, plan, kept, say
        self.most = most

    def tune(self, batch: int, context: int | None) -> Measured:
        """The fastest point of every head at a batch, and at a context in tokens (None: the prompts' own)."""
        estimates = self.estimate(batch, context)
        chosen = points.shortlist(estimates)
        speedups, seconds = self.compare(f"race {batch} {context}", [each.point for each in chosen], batch, context)
        best = max(speedups, key=speedups.get)
        if best.width > 1:
            others = [dataclasses.replace(best, draft_top_k=cut) for cut in CUTS if cut != best.draft_top_k]
            self.say(f"batch {batch}: draft_top_k of {best.shape}")
            more, _ = self.compare(f"cuts {batch} {context}", [best, *others], batch, context)
            better = {point: more[point] / more[best] for point in others if more[point] > MIN_GAIN * more[best]}
            speedups |= {point: speedups[best] * factor for point, factor in better.items()}  # from one race to the other
        fastest = points.best_by_head(speedups)
        choices = {head: self._choice(point, speedups[point], batch, seconds) for head, point in fastest.items()}
        return Measured(batch, self.context_of(context), estimates, speedups, choices)

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

    @functools.cached_property
    def _hidden(self) -> list:
        return acceptance.read_hidden(self.target, self.texts)

    def rounds(self, point: Point) -> list[int]:
        """Of each prompt, the rounds of its reply."""
        cut = point.draft_top_k if point.width > 1 else 0  # a single beam is never cut
        name = f"rounds {point.head} {point.width} {cut}"
        return self.kept.get(name, lambda: self._search(point.head, point.width, cut))[f"{point.length} {point.budget}"]

    def _search(self, head: str, width: int, cut: int) -> dict[str, list[int]]:
        which = f", draft_top_k {cut}" if width > 1 and cut != DRAFT_TOP_K else ""
        self.say(f"what {head} has accepted with {width} beam{'s' * (width > 1)}{which}")
        lengths = [length for beams, length in self.plan.beams if beams == width]
        proposer = Recurrent(self.heads[head], Shape(width, max(lengths), draft_top_k=cut)).prepare(self.target)
        needed = acceptance.search(self.target, proposer, self.texts, self._hidden)
        return {
            f"{length} {budget}": acceptance.count_rounds(needed, self.plan.new, length, budget)
            for length in lengths
            for budget in (0, *self.plan.nodes)
        }

    def estimate(self, batch: int, context: int | None) -> list[Estimate]:
        """What every point should give, from its exact rounds and what a round should cost."""
        grid = list(points.grid(self.plan.beams, list(self.heads), self.plan.nodes, DRAFT_TOP_K))

        def measure() -> dict:
            self.say(f"batch {batch}: what passes and searches cost")
            widths = sorted({width for width, _ in self.plan.beams})
            lengths = [length for _, length in self.plan.beams]
            nodes = [count for count in self.plan.nodes if count <= max(point.nodes for point in grid)]
            return costs.measure(self.setting(batch, context), self.heads, widths, lengths, nodes, DRAFT_TOP_K).as_json()

        found = costs.of_json(self.kept.get(f"costs {batch} {context}", measure))
        plain = found.verify[1] + found.rest
        estimates = []
        for point in grid:
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

    def setting(self, batch: int, context: int | None) -> costs.PrefilledBatch:
        """A batch behind its prefill."""
        prompts = self.prompts if context is None else costs.stretch(self.prompts, context - self.plan.new)
        return costs.begin(self.target, prompts, self.plan.sampling, batch, self.plan.new, self.plan.longest)

    def proposer(self, point: Point) -> Recurrent:
        """What drafts as the point says."""
        shape = Shape(point.width, point.length, point.budget, draft_top_k=point.draft_top_k)
        return Recurrent(self.heads[point.head], shape).prepare(self.target)

    def compare(self, name: str, entered: Sequence[Point], batch: int, context: int | None) -> tuple[dict[Point, float], float]:
        """The speed-up of each point over plain decoding, in one race; and the seconds of a plain round."""
        found = self.kept.peek(name, {"laps": [], "is_over": False})
        names = {" ".join(map(str, dataclasses.astuple(point))): point for point in entered}
        laps, gains = found["laps"], {key: self.gain(point, batch) for key, point in names.items()}
        if not found["is_over"]:
            self.say(f"batch {batch}: {len(entered)} shapes against plain decoding")
            setting = self.setting(batch, context)
            runners = {key: race.Contender(setting.rounds(self.proposer(point)), gains[key]) for key, point in names.items()}
            runners[race.PLAIN] = race.Contender(setting.rounds(Plain()), 1.0)
            keep = functools.partial(self._keep_laps, name)
            laps = race.run(runners, self.plan.seconds, laps, keep)
            self.kept.put(name, {"laps": laps, "is_over": True})
        return {point: gains[key] / race.round_cost(key, laps) for key, point in names.items()}, race.plain_seconds(laps)

    def _keep_laps(self, name: str, laps: list[race.Lap]) -> None:
        self.kept.put(name, {"laps": laps, "is_over": False})

    def _choice(self, point: Point, speedup: float, batch: int, plain_seconds: float) -> Choice:
        plain = batch / plain_seconds
        return Choice(
            point.width, point.length, point.budget, point.draft_top_k,
            speedup, self.tokens_per_step(point), speedup * plain, plain,
        )  # fmt: skip
