"""All methods decode the same conversations in turn, a group of them at a time, in one process, all compiled before the first is
timed. Where several are decoded at a time, the rows are refilled as they end (`refilled.py`).

A conversation's later questions stand behind plain decoding's replies, whichever method answers them, so that all methods read
the same prompts. Not here: figures (`figures.py`), loading (`entrants.py`).
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence

from tqdm.auto import tqdm

from infer import failures
from infer.evaluate import refilled
from infer.evaluate.entrants import Entrant
from infer.evaluate.figures import Answers, Spent, Tally
from infer.evaluate.suites import Suite
from infer.options import read_seeds
from infer.prompts import Prompt
from infer.turns import Turns
from redrafter_jax.decode import prefill
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.request import Limits

FILLS = 4  # conversations for each row, of those that are timed together
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

    @property
    def group(self) -> int:
        """Conversations that are timed together: so many that rows are refilled several times."""
        return self.rows * FILLS if self.rows > 1 else 1

    def refills(self, prompts: Sequence) -> bool:
        """Whether so many prompts are decoded in rows that are refilled."""
        return len(prompts) > self.rows > 1


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Conversations of one category that are timed together: their numbers in the suite, and the numbers of their turns in the
    batches that are decoded one after the other: each turn alone, or all of them in rows that are refilled."""

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
        for first in range(0, len(own), terms.group):
            indices = own[first : first + terms.group]
            numbers = [turn.number for turn in turns.all if turn.index in indices]
            group = Cohort(category, indices, [])
            for batch in turns.batches(numbers, terms.group):
                asked = [number for number in batch if turns[number]]
                if asked:
                    group.batches.append(asked)
                goes_on = [number for number in asked if number + 1 in numbers and turns.all[number + 1].question]
                replies = _decode(plain, heat, goes_on, terms)[0] if goes_on else []
                for number, reply in zip(goes_on, replies, strict=True):
                    turns.answer(number, terms.text_of(turns[number], reply.token_ids))
            if terms.rows > 1 and group.batches:
                group.batches[:] = [sorted(itertools.chain(*group.batches))]
            heat.groups.append(group)
    return heat


def compile_all(entrants: Sequence[Entrant], heats: Sequence[Heat], terms: Terms) -> None:
    """Compiles what any method needs for any batch, and runs each program for a round, so that none is timed at its first call."""
    todo = {}
    for heat, entrant in itertools.product(heats, entrants):
        for batch in heat.batches:
            prompts, seeds = heat.given(batch)
            bucket = prefill.bucket(max(map(len, prompts)), terms.limits.new, 0)
            key = entrant.name, heat.temperature > 0, bucket, terms.refills(prompts)
            todo.setdefault(key, (entrant, heat.temperature, prompts, seeds))
    for entrant, temperature, prompts, seeds in _shown(list(todo.values()), "compiling", "program"):
        given = prompts, entrant.sampling(temperature), terms.limits, seeds
        if terms.refills(prompts):
            refilled.warm(entrant.engine, terms.rows, entrant.engine.requests(*given))
        else:
            list(itertools.islice(entrant.engine.stream(*given, rows=terms.rows, rounds=1), 2))


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
            work = heat.works[entrant.name][at]
            replies, spent = _decode(entrant, heat, batch, terms)
            work.add(replies, spent)
            heat.replies[entrant.name] |= zip(batch, replies, strict=True)
            for number, reply in zip(batch, replies, strict=True):
                work.conversations[places[heat.turns.all[number].index]].replies.append(reply)


def _begun(group: Cohort) -> Tally:
    return Tally([Answers() for _ in group.conversations])


def _decode(entrant: Entrant, heat: Heat, numbers: Sequence[int], terms: Terms) -> tuple[list[Reply], Spent]:
    prompts, seeds = heat.given(numbers)
    given, engine = (prompts, entrant.sampling(heat.temperature), terms.limits, seeds), entrant.engine
    if terms.refills(prompts):
        replies, spent = refilled.decode(engine, terms.rows, engine.requests(*given))
    else:
        replies = list(engine.generate(*given, terms.rows))
        spent = Spent.on_batch(replies)
    failures.check(replies)
    return replies, spent


def _shown(items: list, what: str, unit: str):
    return tqdm(items, desc=what, unit=unit, leave=False, disable=not sys.stderr.isatty(), file=sys.stderr)
