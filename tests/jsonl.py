"""JSON Lines: files of prompts, of conversations, and the replies that `infer.generate` prints."""

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


def write_talk(folder: pathlib.Path) -> pathlib.Path:
    """A file of forty conversations of two turns."""
    path = folder / "talk.jsonl"
    turns = [[("user", f"What is {n} plus {n}?"), ("assistant", f"It is {2 * n}.")] for n in range(40)]
    path.write_text("".join(json.dumps({"messages": [{"role": r, "content": c} for r, c in t]}) + "\n" for t in turns))
    return path
