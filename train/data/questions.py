"""Prompts for a target to answer: the first questions of conversations, or pieces of texts."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence

from infer import text_files
from train.data import examples, records


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Which pieces of texts are prompts: their length and the distance from one to the next, both in tokens."""

    length: int
    stride: int


def read(
    conversations: Sequence[pathlib.Path],
    texts: Sequence[pathlib.Path],
    pieces: Pieces,
    tokenizer,
    room: int,
    vocab_size: int,
) -> Iterator[list[int]]:
    """The prompts as token ids, none longer than ``room``; says which records were passed over.

    Raises:
      BadInput: a file cannot be read, or the tokenizer writes ids beyond the target's.
    """
    skips, long = examples.Skips(1.0), 0
    for record in (record for path in text_files.files(conversations) for record in records.read(path)):
        skips.read += 1
        try:
            turns = examples.messages(record.content)
            first = next(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
            text = examples.template_writes(turns[:first], tokenizer, asks=True)
        except examples.Malformed as reason:
            skips.skip(record.where, str(reason))
            continue
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        text_files.check_known(ids, record.where, vocab_size)
        if 0 < len(ids) <= room:
            yield ids
        else:
            long += 1
    longest = min(room, pieces.length)
    found = examples.text(text_files.files(texts), tokenizer, skips) if texts else ()
    for example in examples.known(found, vocab_size):
        for start in range(0, len(example.tokens) - longest, pieces.stride):
            yield example.tokens[start : start + longest].tolist()
    for reason in skips.reasons:
        print(f"skipped {reason}", file=sys.stderr)
    if skips.skipped or long:
        passed_over = f"{skips.skipped} are malformed and {long} too long"
        print(f"of {skips.read} records {passed_over}; they are passed over", file=sys.stderr)
