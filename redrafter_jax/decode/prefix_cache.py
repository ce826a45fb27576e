"""Which tokens the rows of a running batch have in their caches, so that a prompt that begins alike takes them from there.

    row 0, running   [system prompt][question A ..] reply ..
    row 1, free      [system prompt][question B ..] reply ..       its cache is still there, until the row is filled again
    a new prompt     [system prompt][question B ..][reply][more]   takes from row 1 what chunks of its prompt they share

On the host alone: ids in, rows out. What was read in full chunks has the bits that reading it again would make. A reply's keys were
made by rounds, and differ from these by rounding, as rounds of different shapes do among themselves; so only a scheduler that
takes several shapes in turn has them kept, once the reply is complete.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence

import numpy as np

from redrafter_jax.model.target_config import TargetConfig


@dataclasses.dataclass
class _Record:
    """The tokens that can be taken from a row, and when it was last used, as a count."""

    tokens: np.ndarray
    used: int


class PrefixCache:
    """chunk: tokens that a pass reads; rewritten: tokens at the end of a prompt whose place in a proposer's memory rounds write
    again; exact: tokens of a text up to which its cache does not depend on how long it becomes (`exact_length`)."""

    def __init__(self, chunk: int, rewritten: int, exact: float = math.inf):
        self._chunk, self._rewritten, self._exact = chunk, rewritten, exact
        self._records: dict[int, _Record] = {}
        self._clock = itertools.count()

    def find(self, prompt: Sequence[int]) -> tuple[int, int]:
        """The row to take tokens from and how many of them, full chunks that the prompt begins with and that are not all of it;
        0 where no row has any."""
        ids = np.asarray(prompt, np.int32)
        if len(ids) > self._exact:
            return 0, 0
        shared = {row: self._shared(record.tokens, ids) for row, record in self._records.items()}
        row = max(shared, key=lambda row: (shared[row], -row), default=0)
        if not shared.get(row):
            return 0, 0
        self._records[row].used = next(self._clock)
        return row, shared[row]

    def _shared(self, ours: np.ndarray, ids: np.ndarray) -> int:
        most = min(len(ours), len(ids) - 1)  # the last token is always read: its hidden state is needed
        differs = ours[:most] != ids[:most]
        return self._chunk * ((int(differs.argmax()) if differs.any() else most) // self._chunk)

    def keep(self, row: int, text: Sequence[int], new: int) -> None:
        """The row has the keys of this text, behind which at most so many tokens come."""
        full = self._chunk * (max(0, len(text) - self._rewritten) // self._chunk)
        tokens = np.asarray(text[: full if len(text) + new <= self._exact else 0], np.int32)
        self._records[row] = _Record(tokens, next(self._clock))

    def choose(self, free: Collection[int], source: int, taken: int) -> int:
        """The free row that a prompt should fill, which took so many tokens from ``source``: that one if it had no others, else the
        one whose tokens were used the longest ago, the first of several."""
        record = self._records.get(source)
        if taken and source in free and record is not None and taken == len(record.tokens):
            return source
        return min(free, key=self._last_use)

    def swap(self, one: int, other: int) -> None:
        """These rows have changed places."""
        records = {one: self._records.pop(other, None), other: self._records.pop(one, None)}
        self._records |= {row: record for row, record in records.items() if record is not None}

    def _last_use(self, row: int) -> int:
        record = self._records.get(row)
        return record.used if record is not None and len(record.tokens) else -1

    def clear(self) -> None:
        """No row has anything."""
        self._records.clear()


def exact_length(config: TargetConfig) -> float:
    """Tokens of a text up to which no key of this target depends on the text behind it: all, but for rotary kinds that depend on
    the length."""
    ropes = [config.rope_of(layer) for layer in range(config.num_hidden_layers)]
    return min((rope.original_length for rope in ropes if rope and rope.kind in ("dynamic", "longrope")), default=math.inf)
