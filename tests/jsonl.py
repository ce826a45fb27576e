"""JSON Lines of `infer.generate`: files of prompts, and the replies that it prints."""

import json
import pathlib
from collections.abc import Sequence


def write_prompts(folder: pathlib.Path, ids: Sequence[Sequence[int]]) -> pathlib.Path:
    """A file of these prompts."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"token_ids": each}) + "\n" for each in ids))
    return path


def replies(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]
