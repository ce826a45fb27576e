"""The replies that are asked for: one for each prompt, and of a conversation one for each question, behind the earlier replies.

They are numbered in the order of the prompts. Not here: what a prompt is (`infer/prompts.py`), decoding (`batches.py`).
"""

import dataclasses
from collections.abc import Callable, Sequence

from infer import prompts
from infer.generate import parts


@dataclasses.dataclass(frozen=True)
class Request:
    """The reply number ``number`` of a run: to question ``turn``, from 0, of the prompt number ``index``."""

    number: int
    index: int
    turn: int
    prompt: prompts.Prompt

    @property
    def where(self) -> str:
        """How it is named on the screen."""
        count = len(self.prompt.content) if self.prompt.kind == "turns" else 1
        return self.prompt.where if count == 1 else f"{self.prompt.where}, turn {self.turn + 1} of {count}"

    def label(self, line: dict) -> dict:
        """The line of its reply, with the question's number and what else its prompt's line has."""
        line["index"] = self.index
        line |= {"turn": self.turn} if self.prompt.kind == "turns" else {}
        return line | ({"metadata": self.prompt.metadata} if self.prompt.metadata else {})


class Requests(Sequence):
    """The token ids of each request's prompt, by number. Those of a later question are known once `answer` has the reply before.

    Raises:
      BadInput: as ``encode`` for one of the prompts; a later question's when its ids are asked for.
    """

    def __init__(self, given: Sequence[prompts.Prompt], encode: Callable[[prompts.Prompt], list[int]]):
        self._encode = encode
        turns = [(index, turn) for index, prompt in enumerate(given) for turn in range(_count(prompt))]
        self.all = [Request(number, index, turn, given[index]) for number, (index, turn) in enumerate(turns)]
        self._replies: dict[int, str] = {}
        self._ids = {request.number: encode(request.prompt) for request in self.all if not request.turn}

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, number: int) -> list[int]:
        if number not in self._ids:
            request = self.all[number]
            said = [self._replies[earlier] for earlier in range(number - request.turn, number)]
            self._ids[number] = self._encode(prompts.turn_of(request.prompt, said))
        return self._ids[number]

    def name(self, request: Request, template: str | None) -> list:
        """What names the prompt of a request in its hash: its ids or, of a later question, which has none yet, the questions up to
        it and their ``template``; and what else of its line is written beside the reply."""
        first = [self[request.number - request.turn]]
        asked = [request.prompt.content[: request.turn + 1], template] if request.turn else []
        return first + asked + ([request.prompt.metadata] if request.prompt.metadata else [])

    def answer(self, number: int, text: str | None) -> None:
        """The text of a reply."""
        self._replies[number] = text or ""

    def batches(self, numbers: Sequence[int], size: int) -> list[list[int]]:
        """The numbers in batches, such that each question comes behind the one before it: one by one in their own order, else all
        first questions, then all second ones, and so on."""
        deepest = 1 + max((self.all[number].turn for number in numbers), default=0)
        rounds = [[number for number in numbers if self.all[number].turn == turn] for turn in range(deepest)]
        parts = [list(numbers)] if size == 1 else rounds
        return [part[start : start + size] for part in parts for start in range(0, len(part), size)]

    @property
    def has_turns(self) -> bool:
        """Whether some prompt is a conversation of several questions."""
        return any(request.turn for request in self.all)

    def shares(self, batch: int, processes: int) -> list[list[int]]:
        """The numbers that each of several processes decodes: a conversation stays in one of them."""
        prompt_count = 1 + max(request.index for request in self.all)
        shares = map(set, parts.shares(prompt_count, batch, processes))
        return [[request.number for request in self.all if request.index in share] for share in shares]

    def longest(self, new: int, context: int) -> int:
        """Tokens of the longest prompt, as far as it can be known: later questions are counted with the longest replies."""
        lengths = [len(ids) for ids in self._ids.values()]
        for request in self.all:
            if request.turn:
                alone = self._encode(prompts.Prompt(request.where, "turns", [request.prompt.content[request.turn]]))
                lengths.append(len(self._ids[request.number - request.turn]) + request.turn * (new + len(alone)))
        return min(max(lengths), context - 1)


def _count(prompt: prompts.Prompt) -> int:
    return len(prompt.content) if prompt.kind == "turns" else 1
