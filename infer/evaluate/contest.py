"""All methods decode the same batches in turn, in one process, all compiled before the first is timed.

A conversation's later questions stand behind plain decoding's replies, whichever method answers them, so that all methods read
the same prompts. Not here: figures (`figures.py`), loading (`entrants.py`).
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence

from tqdm.auto import tqdm

from infer import failures
from infer.evaluate.entrants import Entrant
from infer.evaluate.figures import Answers, Tally
from infer.evaluate.suites import Suite
from infer.options import read_seeds
from infer.prompts import Prompt
from infer.turns import Turns
from redrafter_jax.decode import prefill
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.request import Limits

Encode = Callable[[Prompt], list[int]]
TextOf = Callable[[list[int], list[int]], str | None]
"""The text of a reply's ids behind a prompt's."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """What is the same for all methods. rows: conversations that are decoded together; seed: of the first conversation."""

    limits: Limits
    rows: int
    seed: int
    encode: Encode
    text_of: TextOf


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Conversations of one category that are decoded together: their numbers in the suite, and batches of the numbers of their
    turns, each behind the one before it."""

    category: str
    conversations: list[int]
    batches: list[list[int]]


@dataclasses.dataclass
class Heat:
    """A suite at one temperature: its turns, in groups; and, once it was run, what each method (by its name) did for each
    group, and its replies by the numbers of their turns."""

    suite: Suite
    temperature: float
    turns: Turns
    seeds: list[int]
    groups: list[Cohort]
    works: dict[str, list[Tally]] = dataclasses.field(default_factory=dict)
    replies: dict[str, dict[int, Reply]] = dataclasses.field(default_factory=dict)

    @property
    def batches(self) -> list[list[int]]:
        return [batch for group in self.groups for batch in group.batches]

    def given(self, numbers: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """The prompts and seeds of a batch of turns."""
        return [self.turns[number] for number in numbers], [self.seeds[self.turns.all[number].index] for number in numbers]


def prepare(suite: Suite, temperature: float, plain: Entrant, terms: Terms) -> Heat:
    """The turns of a suite. Plain decoding answers those that others stand behind, untimed, so that every prompt is known.

    Raises:
      BadInput: a first question cannot be encoded, or a reply ends in an error.
    """
    turns = Turns(suite.given, terms.encode)
    heat = Heat(suite, temperature, turns, read_seeds(terms.seed, len(suite.given)), [])
    for category in suite.distinct:
        own = suite.of(category)
        for first in range(0, len(own), terms.rows):
            indices = own[first : first + terms.rows]
            numbers = [turn.number for turn in turns.all if turn.index in indices]
            group = Cohort(category, indices, [])
            for batch in turns.batches(numbers, terms.rows):
                asked = [number for number in batch if turns[number]]
                if asked:
                    group.batches.append(asked)
                goes_on = [number for number in asked if number + 1 in numbers and turns.all[number + 1].question]
                replies = _decode(plain, heat, goes_on, terms) if goes_on else []
                for number, reply in zip(goes_on, replies, strict=True):
                    turns.answer(number, terms.text_of(turns[number], reply.token_ids))
            heat.groups.append(group)
    return heat


def compile_all(entrants: Sequence[Entrant], heats: Sequence[Heat], terms: Terms) -> None:
    """Compiles what any method needs for any batch, and runs each program for a round, so that none is timed at its first call."""
    todo = {}
    for heat, entrant in itertools.product(heats, entrants):
        for batch in heat.batches:
            prompts, seeds = heat.given(batch)
            bucket = prefill.bucket(max(map(len, prompts)), terms.limits.new, 0)
            todo.setdefault((entrant.name, heat.temperature > 0, bucket), (entrant, heat.temperature, prompts, seeds))
    for entrant, temperature, prompts, seeds in _shown(list(todo.values()), "compiling", "program"):
        rounds = entrant.engine.stream(prompts, entrant.sampling(temperature), terms.limits, seeds, rows=terms.rows, rounds=1)
        list(itertools.islice(rounds, 2))


def run(entrants: Sequence[Entrant], heats: Sequence[Heat], terms: Terms) -> None:
    """Each batch by every method in turn, who is first changes from batch to batch; fills in ``works`` and ``replies``.

    Raises:
      BadInput: a reply ends in an error.
    """
    for heat in heats:
        heat.works = {entrant.name: [_begun(group) for group in heat.groups] for entrant in entrants}
        heat.replies = {entrant.name: {} for entrant in entrants}
    todo = [(heat, at, batch) for heat in heats for at, group in enumerate(heat.groups) for batch in group.batches]
    for count, (heat, at, batch) in enumerate(_shown(todo, "decoding", "batch")):
        places = {index: place for place, index in enumerate(heat.groups[at].conversations)}
        first = count % len(entrants)
        for entrant in (*entrants[first:], *entrants[:first]):
            work, replies = heat.works[entrant.name][at], _decode(entrant, heat, batch, terms)
            work.add(replies)
            heat.replies[entrant.name] |= zip(batch, replies, strict=True)
            for number, reply in zip(batch, replies, strict=True):
                work.conversations[places[heat.turns.all[number].index]].replies.append(reply)


def _begun(group: Cohort) -> Tally:
    return Tally([Answers() for _ in group.conversations])


def _decode(entrant: Entrant, heat: Heat, numbers: Sequence[int], terms: Terms) -> list[Reply]:
    prompts, seeds = heat.given(numbers)
    replies = list(entrant.engine.generate(prompts, entrant.sampling(heat.temperature), terms.limits, seeds, terms.rows))
    failures.check(replies)
    return replies


def _shown(items: list, what: str, unit: str):
    return tqdm(items, desc=what, unit=unit, leave=False, disable=not sys.stderr.isatty(), file=sys.stderr)
