"""Tokens per second of each way to draft by itself, and of a scheduler that takes turns with them, by the rows that are busy.

    python -m docs.scripts.never_loses --busy 1 2 4 8 16
    python -m docs.scripts.never_loses --rates 0.2 0.5 0.8

The first continues starts of held-out Python with the embedded pair. The second has a random target of --layers layers, whose
drafts are accepted at these rates at every depth: the head does its work, and then the right token replaces its best one that
often. --rows rows have programs of their own for fewer rows, which every way uses. Replies have from a half to one and a half
times --new tokens, since no traffic has equal ones. As a reply ends, the next prompt takes its row, until each busy row has had
--replies of them, and at least 16 in all; so rows are busy but for the end. All ways run in turn, compiled beforehand, and
have the same texts; the median of their speeds counts. Own / best: against the way whose median is best, the median of the
ratios within a turn and its standard error, from their quartiles: a machine that others use changes its speed from one second to
the next, so many short turns tell more than few long ones. The scheduler goes on from turn to turn with what it knows, as a
server does.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time

import jax
import jax.numpy as jnp

import infer
from infer import synthetic
from infer.pair import EMBEDDED
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.picker import REVIEW_SECONDS, Pick, Picker
from redrafter_jax.decode.propose.proposer import Proposer, Round
from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Recurrent, Shape
from redrafter_jax.decode.propose.scripted import overwritten
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.model.target import TargetConfig

LEAST_REPLIES = 16
ERROR_OF_QUARTILES = math.sqrt(math.pi / 2) / 1.349  # the standard error of a median, from how far apart normal quartiles are
SHAPES = (Shape(2, 2), Shape(1, 2), Shape(1, 4), AUTOREGRESSIVE)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lucky(Proposer):
    """A random head for a `synthetic.random_target`, whose best beam is right at each depth with probability ``rate``."""

    drafts: Recurrent
    rate: jax.Array

    @property
    def round(self) -> Round:
        return self.drafts.round

    @property
    def name(self) -> str:
        return self.drafts.name

    @property
    def features(self) -> tuple[int, ...]:
        return self.drafts.features

    def prepare(self, target) -> Proposer:
        return dataclasses.replace(self, drafts=self.drafts.prepare(target))

    def in_shape(self, shape: Shape) -> Proposer:
        return dataclasses.replace(self, drafts=self.drafts.in_shape(shape))

    def propose(self, target, view, memory):
        steps = synthetic.SUCCESSOR_STRIDE * (1 + jnp.arange(self.round.length))
        right_BL = (view.g[:, None] + steps) % target.config.vocab_size
        beams = overwritten(self.drafts.draft(target, view), view, right_BL, self.rate)
        return self.drafts.pack(view.g, beams), memory


class Fixed(Picker):
    """Always the same way."""

    def __init__(self, usual: Picker, way: int):
        super().__init__(usual.seconds, [each.length for each in usual.evidence], usual.call)
        self.way = way

    def pick(self, rows: int, busy: int) -> Pick:
        self._last = Pick(self.way, max(1, int(REVIEW_SECONDS / self.seconds[rows, self.way])))
        return self._last


def main() -> None:
    """Prints a table for each pair."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rates", type=float, nargs="*", default=[])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--busy", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--replies", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    if not options.rates:
        pair = infer.load(shape=SHAPES[0], ignore_eos=True)
        engine = Engine(pair.engine.target, pair.engine.proposer, shapes=SHAPES[1:])
        lines = (EMBEDDED / "suite.jsonl").read_text().splitlines()
        measure("the embedded pair", engine, [pair.tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines], options)
    config = TargetConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=options.layers,
        num_attention_heads=8, num_key_value_heads=8, head_dim=64,
    )  # fmt: skip
    for rate in options.rates:
        with jax.set_mesh(make_mesh()):
            target = synthetic.random_target(jax.random.key(0), config, jnp.float32)
            head = synthetic.random_head(jax.random.key(1), synthetic.head_config(config, "slim"), jnp.float32)
            engine = Engine(target, Lucky(Recurrent(head, SHAPES[0]), jnp.float32(rate)), shapes=SHAPES[1:])
        measure(f"drafts accepted at a rate of {rate:g}", engine, [[number] * 32 for number in range(1, 33)], options)


def measure(title: str, engine: Engine, prompts: list[list[int]], options: argparse.Namespace) -> None:
    """Prints a row for each number of busy rows."""
    count = max(LEAST_REPLIES, options.replies * max(options.busy))
    prompts = [prompts[number % len(prompts)] for number in range(count)]
    lengths = [options.new // 2 + 37 * number % (options.new + 1) for number in range(count)]
    requests = engine.requests(prompts, Sampling(), [Limits(length) for length in lengths], None)
    scheduler = engine.scheduler(options.rows, requests, adapts=True)
    scheduler.prepare()
    own, names = scheduler.picker, [way.name for way in engine.runner.ways]
    ways = {name: Fixed(own, number) for number, name in enumerate(names)} | {"own": own}
    print(f"\n{title}; milliseconds of a round, by rows of the program:")
    for rows in sorted({rows for rows, _ in own.seconds}):
        print(f"  {rows:3}  " + "  ".join(f"{name} {1e3 * own.seconds[rows, way]:.2f}" for way, name in enumerate(names)))
    print(f"\n| busy rows | {' | '.join(names)} | own, tokens/s | own / best | rounds of its own |")
    print("|---|" + "---|" * (len(names) + 3))
    for busy in options.busy:
        wanted = requests[: max(LEAST_REPLIES, busy * options.replies)]
        speeds = {name: [] for name in ways}
        for turn in range(options.repeats + 1):
            texts = []
            for name in (*list(ways)[turn % len(ways) :], *list(ways)[: turn % len(ways)]):  # nobody is always the first
                scheduler.picker, before = ways[name], scheduler.rounds_of.copy()
                began = time.perf_counter()
                texts.append(decode(scheduler, wanted, busy))
                if turn:  # the first one warms up
                    speeds[name].append(sum(lengths[: len(wanted)]) / (time.perf_counter() - began))
                if name == "own":
                    rounds = scheduler.rounds_of - before
            if any(each != texts[0] for each in texts):
                raise SystemExit("the texts differ")
        best = max(names, key=lambda name: statistics.median(speeds[name]))
        ratios = [own / other for own, other in zip(speeds["own"], speeds[best], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
        error = ERROR_OF_QUARTILES * (high - low) / len(ratios) ** 0.5
        medians = " | ".join(f"{statistics.median(speeds[name]):.0f}" for name in ways)
        taken = ", ".join(f"{name} {count / rounds.total():.0%}" for name, count in rounds.most_common())
        print(f"| {busy} | {medians} | {ratio:.3f} ± {error:.3f} | {taken} |", flush=True)


def decode(scheduler: Scheduler, requests: list, busy: int) -> list[list[int]]:
    """The replies, at most so many at a time."""
    left, asked, found = list(requests), [], {}
    while left or scheduler.running or scheduler.waiting:
        while left and scheduler.running + scheduler.waiting < busy:
            asked.append(scheduler.submit(left.pop(0)))
        found |= {event.ticket: event.reply.token_ids for event in scheduler.step() if event.done}
    return [found[ticket] for ticket in asked]


if __name__ == "__main__":
    main()
