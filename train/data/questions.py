"""Prompts for a target to answer: the first questions of conversations, or pieces of texts."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence

from infer import text_files
from infer.terminal import counted
from train.data import examples, records


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Which pieces of texts are prompts: their length and the distance from one to the next, both in tokens; ``patterns`` of the
    files that are read in folders (none: all)."""

    length: int
    stride: int
    patterns: tuple[str, ...] = ()


def read(
    conversations: Sequence[pathlib.Path],
    texts: Sequence[pathlib.Path],
    pieces: Pieces,
    tokenizer,
    room: int,
    vocab_size: int,
    turns: int = 1,
    template_kwargs: examples.Kwargs = None,
) -> Iterator[list[int]]:
    """The prompts as token ids, none longer than ``room``; says which records were passed over. Of a conversation they are the
    first ``turns`` questions, written with ``template_kwargs``.

    Raises:
      BadInput: a file cannot be read, or the tokenizer writes ids beyond the target's.
    """
    skips, long, longer = examples.Skips(1.0), 0, 0
    for record in (record for path in text_files.files(conversations) for record in records.read(path)):
        skips.read += 1
        try:
            asked, is_longer = _write_out(record, tokenizer, turns, template_kwargs)
        except examples.Malformed as reason:
            skips.skip(record.where, str(reason))
            continue
        longer += is_longer
        for text in asked:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            text_files.check_known(ids, record.where, vocab_size)
            if 0 < len(ids) <= room:
                yield ids
            else:
                long += 1
    longest = min(room, pieces.length)
    chosen = text_files.texts(texts, pieces.patterns)
    found = examples.text(chosen.files, tokenizer, skips) if texts else ()
    for example in examples.known(found, vocab_size):
        for start in range(0, len(example.tokens) - longest, pieces.stride):
            yield example.tokens[start : start + longest].tolist()
    if longer:
        first = "the first question" if turns == 1 else f"the first {turns} questions"
        print(f"asked: {first} of each conversation; {longer} of them go on (--turns asks more)", file=sys.stderr)
    if chosen.binary:
        print(chosen.note(), file=sys.stderr)
    for reason in skips.reasons:
        print(f"skipped {reason}", file=sys.stderr)
    if skips.skipped or long:
        read = counted(skips.read, "record")
        print(f"of {read}, {skips.skipped} malformed and {counted(long, 'prompt')} too long are passed over", file=sys.stderr)


def _write_out(record: records.Record, tokenizer, count: int, kwargs: examples.Kwargs) -> tuple[list[str], bool]:
    """The first questions of a conversation, each as the chat template writes it behind what was said before it in the record; and
    whether it has more of them.

    Raises:
      Malformed: the record is no conversation, or the template refuses it.
    """
    said = examples.messages(record.content)
    roles = [turn["role"] for turn in said]
    replies = [number for number, role in enumerate(roles) if role == "assistant" != roles[number - 1]]
    asked = [examples.template_writes(said[:number], tokenizer, True, kwargs) for number in replies[:count]]
    return asked, len(replies) > count
