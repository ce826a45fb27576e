"""The replies that are asked for: one for each prompt, and of a conversation one for each question, behind the earlier replies.

They are numbered in the order of the prompts; where a prompt has several replies, each is a conversation of its own.
Not here: what a prompt is (`infer/prompts.py`), decoding (each command).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

from infer import prompts
from redrafter_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Turn:
    """The reply number ``number`` of a run: to the prompt number ``index``, or to its ``question``, from 0; ``sample``: which of
    the replies to it."""

    number: int
    index: int
    sample: int
    question: int
    prompt: prompts.Prompt
    samples: int = 1

    @property
    def where(self) -> str:
        """How it is named on the screen."""
        count = len(self.prompt.content) if self.prompt.kind == "turns" else 1
        turn = "" if count == 1 else f", turn {self.question + 1} of {count}"
        return self.prompt.where + turn + ("" if self.samples == 1 else f", reply {self.sample + 1} of {self.samples}")

    def label(self, line: dict) -> dict:
        """The line of its reply, with the question's number and what else its prompt's line has."""
        line["index"] = self.index
        line |= {"turn": self.question} if self.prompt.kind == "turns" else {}
        return line | ({"metadata": self.prompt.metadata} if self.prompt.metadata else {})


class Turns(Sequence):
    """The token ids of each turn's prompt, by number. Those of a later question are known once `answer` has the reply before. One
    that ``encode`` refuses then, because the conversation outgrew the context or the chat template does not write it, has none, and
    neither have those behind it. ``refused``: why, by the number of the first of them, as far as it was found out.

    Raises:
      BadInput: as ``encode`` for one of the prompts, or for its first question.
    """

    def __init__(self, given: Sequence[prompts.Prompt], encode: Callable[[prompts.Prompt], list[int]], n: int = 1):
        """``n``: replies to each prompt."""
        self._encode = encode
        asked = [(i, sample, question) for i, each in enumerate(given) for sample in range(n) for question in range(_count(each))]
        self.all = [Turn(number, *place, given[place[0]], n) for number, place in enumerate(asked)]
        self._replies: dict[int, str] = {}
        first = [encode(prompt) for prompt in given]
        self._ids = {turn.number: first[turn.index] for turn in self.all if not turn.question}
        self.refused: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, number: int) -> list[int]:
        if number not in self._ids:
            self._ids[number] = self._later(self.all[number]) if self[number - 1] else []
        return self._ids[number]

    def _later(self, turn: Turn) -> list[int]:
        said = [self._replies[earlier] for earlier in range(turn.number - turn.question, turn.number)]
        try:
            return self._encode(prompts.turn_of(turn.prompt, said))
        except BadInput as error:
            self.refused[turn.number] = str(error)
            return []

    def name(self, turn: Turn, template: str | None) -> list:
        """What names the prompt of a turn in its hash: its ids or, of a later question, which has none yet, the questions up to
        it and their ``template``. Not its metadata, which decide nothing: a run can be resumed with others."""
        first = [self[turn.number - turn.question]]
        return first + ([turn.prompt.content[: turn.question + 1], template] if turn.question else [])

    def seed_and_sample(self, turn: Turn, seeds: Sequence[int]) -> list[int]:
        """What tells its noise from that of others; ``seeds``: by the prompt's number. The first reply's does not depend on how
        many there are, so that a run can be resumed with more."""
        return [seeds[turn.index], *([turn.sample] if turn.sample else [])]

    def answer(self, number: int, text: str | None) -> None:
        """The text of a reply."""
        self._replies[number] = text or ""

    def batches(self, numbers: Sequence[int], size: int) -> list[list[int]]:
        """The numbers in batches, such that each question comes behind the one before it: one by one in their own order, else all
        first questions, then all second ones, and so on."""
        deepest = 1 + max((self.all[number].question for number in numbers), default=0)
        rounds = [[number for number in numbers if self.all[number].question == depth] for depth in range(deepest)]
        groups = [list(numbers)] if size == 1 else rounds
        return [part[start : start + size] for part in groups for start in range(0, len(part), size)]

    @property
    def has_turns(self) -> bool:
        """Whether some prompt is a conversation of several questions."""
        return any(turn.question for turn in self.all)

    def shares(self, batch: int, processes: int) -> list[list[int]]:
        """The numbers that each of several processes decodes: a conversation stays in one of them."""
        prompt_count = 1 + max(turn.index for turn in self.all)
        shares = map(set, shares_of(prompt_count, batch, processes))
        return [[turn.number for turn in self.all if turn.index in share] for share in shares]

    def longest(self, new: int, context: int) -> int:
        """Tokens of the longest prompt, as far as it can be known: later questions are counted with the longest replies, and those
        that are refused alone without their own tokens."""
        lengths = [len(ids) for ids in self._ids.values()]
        for turn in self.all:
            if turn.question:
                first = self._ids[turn.number - turn.question]
                lengths.append(len(first) + turn.question * (new + self._alone(turn)))
        return min(max(lengths), context - 1)

    def _alone(self, turn: Turn) -> int:
        """Tokens of a question that is asked alone."""
        with contextlib.suppress(BadInput):
            return len(self._encode(prompts.Prompt(turn.where, "turns", [turn.prompt.content[turn.question]])))
        return 0


def _count(prompt: prompts.Prompt) -> int:
    return len(prompt.content) if prompt.kind == "turns" else 1


def shares_of(count: int, batch: int, parts: int) -> list[list[int]]:
    """The numbers of the prompts that each of the processes decodes: full batches, assigned round-robin."""
    return [[number for number in range(count) if number // batch % parts == index] for index in range(parts)]
