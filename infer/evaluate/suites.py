"""The suites of prompts that methods are measured on: files of JSONL with a `category`, or the embedded one.

Spec-Bench, MT-bench and SPEED-bench are such files as they are published: `question_id`, `category`, `turns`. Nothing here
starts JAX.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from infer import prompts
from redrafter_jax.errors import BadInput

EMBEDDED = "embedded"
EMBEDDED_FILE = pathlib.Path(__file__).parents[1] / "demo_pair" / "suite.jsonl"
NO_CATEGORY = "(none)"  # of prompts that have none


@dataclasses.dataclass(frozen=True)
class Suite:
    """Conversations, or single prompts, and the category of each. name: as it was given."""

    name: str
    given: tuple[prompts.Prompt, ...]
    categories: tuple[str, ...]

    @property
    def distinct(self) -> list[str]:
        """The categories in their order in the file."""
        return list(dict.fromkeys(self.categories))

    def of(self, category: str) -> list[int]:
        """The numbers of its conversations."""
        return [number for number, own in enumerate(self.categories) if own == category]


def read(name: str, wanted: Sequence[str] = (), limit: int | None = None) -> Suite:
    """The conversations of a suite, of the categories that are ``wanted`` (none named: of all), of each the first ``limit``.

    Raises:
      BadInput: the file is missing or no JSONL of prompts, a category is no text, or one that is wanted is not there.
    """
    given = prompts.read((), str(EMBEDDED_FILE) if name == EMBEDDED else name, "--suite")
    categories = [_category(prompt) for prompt in given]
    there = list(dict.fromkeys(categories))
    missing = [category for category in wanted if category not in there]
    if missing:
        raise BadInput(f"--categories: {name} has no category {missing[0]!r}; it has {', '.join(there)}")
    kept, counts = [], dict.fromkeys(there, 0)
    for prompt, category in zip(given, categories, strict=True):
        counts[category] += 1
        if (not wanted or category in wanted) and (limit is None or counts[category] <= limit):
            kept.append((prompt, category))
    return Suite(name, *map(tuple, zip(*kept, strict=True)))


def _category(prompt: prompts.Prompt) -> str:
    found = prompt.metadata.get("category", NO_CATEGORY)
    if not isinstance(found, str) or not found.strip():
        raise BadInput(f"{prompt.where}: category should be a text, not {found!r}")
    return found
