"""Files -> examples: token ids, and which of them are labels. Conversations, plain text, or token ids as they stand.

Conversations may be ShareGPT (`conversations`), messages (`messages`) or Alpaca (`instruction`), as JSON Lines or as one
JSON array. They are written out by the tokenizer's chat template (Vicuna's where it has none), and the assistant's
tokens are the labels. Not here: reading files (`records.py`, `infer/text_files.py`), datasets on disk (`datasets.py`), rows
(`rows.py`).
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from infer import templates, text_files
from redrafter_jax.errors import BadInput
from train.data import records

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
            "assistant": "assistant", "system": "system"}  # fmt: skip
RECORDS_AT_ONCE = 256  # that are tokenised together, in parallel
Kwargs = Mapping[str, object] | None  # further variables of a chat template


@dataclasses.dataclass(frozen=True)
class Example:
    """tokens: ``[n]`` int32; labelled: ``[n]`` bool, the tokens whose prediction counts; where: the record it is from."""

    tokens: np.ndarray
    labelled: np.ndarray
    where: str


class Malformed(ValueError):
    """A record that cannot be trained on; the message says why."""


@dataclasses.dataclass
class Skips:
    """The records that were passed over: how many, and where and why the first of them were."""

    share: float
    read: int = 0
    skipped: int = 0
    reasons: list[str] = dataclasses.field(default_factory=list)

    def skip(self, where: str, reason: str) -> None:
        self.skipped += 1
        if len(self.reasons) < 20:
            self.reasons.append(f"{where}: {reason}")

    def check(self) -> None:
        """Raises BadInput if more than the stated share was skipped, or nothing is left."""
        first = f"the first: {'; '.join(self.reasons[:3]) or 'there are none'}"
        if self.skipped == self.read:
            raise BadInput(f"all {self.read} records are malformed; {first}")
        if self.skipped > self.share * self.read:
            allowed = f"--max-malformed allows {self.share:.1%}"
            raise BadInput(f"{self.skipped} of {self.read} records are malformed, and {allowed}; {first}")


def messages(content: dict | None) -> list[dict[str, str]]:
    """A record's turns as `role` and `content`, without the assistant's turns before the first question: ShareGPT cuts long
    conversations into pieces that begin anywhere.

    Raises:
      Malformed: it is no conversation, has no turn of the assistant's, or begins with one and asks nothing.
    """
    if content is None:
        raise Malformed("not a JSON object")
    if "instruction" in content:
        question = "\n\n".join(_string(content[key], key) for key in ("instruction", "input") if content.get(key))
        turns = [("user", question), ("assistant", _string(content.get("output"), "output"))]
    elif "conversations" in content or "messages" in content:
        kind, speaker, said = ("messages", "role", "content") if "messages" in content else ("conversations", "from", "value")
        if not isinstance(content[kind], list):
            raise Malformed(f"`{kind}` is not a list")
        turns = [_turn(turn, speaker, said) for turn in content[kind]]
    else:
        raise Malformed("has neither `messages`, `conversations` nor `instruction`")
    question = next((number for number, (role, _) in enumerate(turns) if role == "user"), 0)
    turns = [turn for number, turn in enumerate(turns) if number >= question or turn[0] != "assistant"]
    if not any(role == "assistant" and text.strip() for role, text in turns):
        raise Malformed("the assistant says nothing")
    if turns[0][0] == "assistant":
        raise Malformed("nothing is asked")
    return [{"role": role, "content": text} for role, text in turns]


def _turn(turn, speaker: str, said: str) -> tuple[str, str]:
    role = turn.get(speaker) if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in SPEAKERS:
        raise Malformed(f"a turn's `{speaker}` is not one of {', '.join(SPEAKERS)}")
    return SPEAKERS[role], _string(turn.get(said), said)


def _string(value, name: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"`{name}` is not a text")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Malformed(f"`{name}` has half a surrogate pair, which is no character")
    return value


def template_writes(turns: list[dict[str, str]], tokenizer, asks: bool = False, kwargs: Kwargs = None) -> str:
    """The turns as the tokenizer's chat template writes them (Vicuna's where it has none); ``asks`` for a reply at the end;
    ``kwargs``: further variables of the template.

    Raises:
      Malformed: the template refuses these turns.
      BadInput: the template writes or runs beyond bounds.
    """
    try:
        return templates.render(tokenizer, turns, asks, templates.choose(tokenizer), kwargs)
    except templates.Refused as error:
        raise Malformed(f"the chat template refuses it ({error})") from None


Written = tuple[str, list[tuple[int, int]]]
"""A text, and the stretches of it that are labels, as characters (start, end)."""


def write_out(turns: list[dict[str, str]], tokenizer, kwargs: Kwargs = None) -> list[Written]:
    """The conversation as its template writes it, and the assistant's stretches of it: each from where the template asks for a
    reply to the end of the turn. Where the template writes earlier turns otherwise once later ones follow, as those do that leave
    out what was thought, it is several texts: one for each reply, which ends there, as it is when the reply is generated.

    Raises:
      Malformed: the template refuses these turns, or does not write a reply as the continuation of its question.
    """
    whole, written = template_writes(turns, tokenizer, kwargs=kwargs), []
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = template_writes(turns[:number], tokenizer, asks=True, kwargs=kwargs)
            through = template_writes(turns[: number + 1], tokenizer, kwargs=kwargs)
            if not through.startswith(before):
                raise Malformed("the chat template does not write a reply behind its question")
            written.append((through, (len(before), len(through))))
    if all(whole.startswith(through) for through, _ in written):
        return [(whole, [span for _, span in written])]
    return [(through, [span]) for through, span in written]


def conversations(paths: Iterable[pathlib.Path], tokenizer, skips: Skips, kwargs: Kwargs = None) -> Iterator[Example]:
    """Examples from conversations, labelled on the assistant's tokens; ``kwargs``: further variables of the chat template."""
    for batch in _batches(record for path in paths for record in records.read(path)):
        written = []
        for record in batch:
            skips.read += 1
            try:
                written += [(record.where, *text) for text in write_out(messages(record.content), tokenizer, kwargs)]
            except Malformed as reason:
                skips.skip(record.where, str(reason))
        if not written:
            continue
        encoded = tokenizer(
            [text for _, text, _ in written], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )  # fmt: skip
        for (where, _, spans), ids, offsets in zip(written, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            starts = np.array([start for start, _ in offsets])
            labelled = np.zeros(len(ids), bool)
            for start, end in spans:
                labelled |= (start <= starts) & (starts < end)
            yield Example(np.asarray(ids, np.int32), labelled, where)
    skips.check()


def text(paths: Iterable[pathlib.Path], tokenizer, skips: Skips) -> Iterator[Example]:
    """One example per file of plain text (`infer.text_files.tokenise`); every token is a label."""
    paths = list(paths)
    skips.read += len(paths)
    for name, ids in text_files.tokenise(paths, tokenizer, skips.skip):
        yield Example(np.asarray(ids, np.int32), np.ones(len(ids), bool), name)
    skips.check()


def token_ids(paths: Iterable[pathlib.Path], vocabulary: int, skips: Skips) -> Iterator[Example]:
    """Examples from JSON Lines of `token_ids` and `prompt_tokens`, how many of them are the prompt's and so no labels."""
    for record in (record for path in paths for record in records.read(path)):
        skips.read += 1
        content = record.content or {}
        ids, prompt = content.get("token_ids"), content.get("prompt_tokens", 0)
        unknown = [i for i in ids if not (type(i) is int and 0 <= i < vocabulary)] if isinstance(ids, list) else []
        if not isinstance(ids, list) or not ids:
            skips.skip(record.where, "`token_ids` should be a list of token ids, one or more")
        elif unknown:
            skips.skip(
                record.where,
                f"`token_ids` should be from 0 to {vocabulary - 1}, the target's vocabulary, not {str(unknown[0])[:40]}",
            )
        elif type(prompt) is not int or not 0 <= prompt < len(ids):
            skips.skip(record.where, "`prompt_tokens` should be fewer than `token_ids`")
        else:
            yield Example(np.asarray(ids, np.int32), np.arange(len(ids)) >= prompt, record.where)
    skips.check()


def known(found: Iterable[Example], vocabulary: int) -> Iterator[Example]:
    """The examples, whose tokens are all in the target's vocabulary.

    Raises:
      BadInput: one is not, so the tokenizer is not this target's.
    """
    for example in found:
        text_files.check_known(example.tokens, example.where, vocabulary)
        yield example


def _batches(items: Iterable) -> Iterator[list]:
    waiting = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) == RECORDS_AT_ONCE:
            yield list(waiting)
            waiting.clear()
    if waiting:
        yield list(waiting)
