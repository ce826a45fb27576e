"""Prompts: from options, files or standard input to token ids. An error names the prompt's place.

Not here: the tokenizer itself (`text.py`).
"""

import dataclasses
import os
import pathlib
import select
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence

from infer import templates
from redrafter_jax.decode.request import check_prompt
from redrafter_jax.errors import BadInput
from redrafter_jax.files import json_files

KINDS = ("prompt", "messages", "token_ids", "turns")
ONE_OF = "prompt, messages, token_ids or turns"
BYTE_ORDER_MARK = "\ufeff"  # some editors begin a file with it; it is no part of the text
PIPE_WAIT_SECONDS = 1.0  # seconds to wait for the first byte of a pipe that no option names


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt as given. ``where`` names it in errors; ``kind`` says what ``content`` is: a text, the messages of a
    chat, token ids, or the questions of a conversation in their order, each asked behind the replies to those before it;
    ``is_default``: nobody gave it; ``metadata``: what else its line has, such as an id."""

    where: str
    kind: str
    content: str | list
    is_default: bool = False
    metadata: dict = dataclasses.field(default_factory=dict)


def read(texts: tuple[str, ...], file: str | None, option: str = "--prompts") -> list[Prompt]:
    """What the options name: ``texts`` are prompts (`-`: all of standard input is one), ``file`` is JSONL (`-`: standard
    input). Neither: a prompt that is piped in, or nothing. ``option``: what named the file, for errors.

    Raises:
      BadInput: a file is missing, empty or not JSONL, or a prompt is none or no text.
    """
    found = _found(texts, file, option)
    for prompt in found:
        check_text(prompt)
    return found


def _found(texts: tuple[str, ...], file: str | None, option: str) -> list[Prompt]:
    if file is not None:
        name = "standard input" if file == "-" else file
        return list(_lines(_stdin(option) if file == "-" else _text(file, option), f"{option} {name}"))
    if texts:
        return [_given(text, number) for number, text in enumerate(texts, 1)]
    piped = _unread_pipe()
    return [Prompt("standard input", "prompt", piped)] if piped else []


def _given(text: str, number: int) -> Prompt:
    return Prompt(f"--prompt {number}", "prompt", _stdin("--prompt").removesuffix("\n") if text == "-" else text)


def _stdin(option: str) -> str:
    try:
        return sys.stdin.read().removeprefix(BYTE_ORDER_MARK)
    except (ValueError, OSError, AttributeError) as error:
        raise BadInput(f"{option} -: standard input cannot be read as UTF-8 text ({error})") from None


def _unread_pipe() -> str:
    """The text that is piped in, less its last line break; "" at a terminal, from /dev/null, or from a silent pipe."""
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (ValueError, OSError, AttributeError):  # closed, or not a real file
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return ""
    if not select.select([descriptor], [], [], PIPE_WAIT_SECONDS)[0]:
        print(f"standard input sent nothing for {PIPE_WAIT_SECONDS:.0f} s and is not read (`--prompt -` waits)", file=sys.stderr)
        return ""
    return _stdin("--prompt").removesuffix("\n")


def _text(file: str, option: str) -> str:
    path = pathlib.Path(file)
    if not path.exists():
        raise BadInput(f"{option}: there is no file {file}")
    try:
        return path.read_text(encoding="utf-8").removeprefix(BYTE_ORDER_MARK)
    except (OSError, ValueError) as error:
        raise BadInput(f"{option}: {file} cannot be read as UTF-8 text ({error})") from None


def _lines(text: str, name: str) -> Iterator[Prompt]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise BadInput(f"{name} is empty; it should hold one JSON object per line, with {ONE_OF}")
    for number, line in lines:
        yield _line(line, f"{name}:{number}")


def _line(line: str, where: str) -> Prompt:
    try:
        found = json_files.parse(line)
    except ValueError as error:
        raise BadInput(f'{where} is not JSON ({error}); a line should be like {{"prompt": "..."}}') from None
    kinds = [kind for kind in KINDS if kind in found] if isinstance(found, dict) else []
    if len(kinds) != 1:
        raise BadInput(f"{where} should be a JSON object with one of {ONE_OF}")
    kind, content = kinds[0], found[kinds[0]]
    check_content(where, kind, content)
    return Prompt(where, kind, content, metadata={name: value for name, value in found.items() if name != kind})


def check_content(where: str, kind: str, content: object) -> None:
    """Raises BadInput for a content that is not of its kind."""
    if not _FITS[kind](content):
        raise BadInput(f"{where}: {kind} should be {_SHOULD_BE[kind]}")


def _are_messages(content) -> bool:
    def whole(message) -> bool:
        return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))

    return isinstance(content, list) and bool(content) and all(map(whole, content))


def _are_turns(content) -> bool:
    return isinstance(content, list) and bool(content) and all(isinstance(turn, str) for turn in content)


def _are_ids(content) -> bool:
    return isinstance(content, list) and bool(content) and all(type(token) is int for token in content)


_FITS = {
    "prompt": lambda content: isinstance(content, str),
    "messages": _are_messages,
    "token_ids": _are_ids,
    "turns": _are_turns,
}
_SHOULD_BE = {
    "prompt": "a string",
    "messages": "a list of objects with the strings role and content, at least one",
    "token_ids": "a list of whole numbers, at least one",
    "turns": "a list of strings, at least one",
}


def uses_template(prompt: Prompt) -> bool:
    """Whether a chat template writes it."""
    return prompt.kind in ("messages", "turns")


def check_text(prompt: Prompt) -> None:
    """Raises BadInput for half a surrogate pair anywhere in a prompt: JSON can write one, and Python makes them of the
    bytes of an argument that are not UTF-8."""
    waiting = [prompt.content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            halves = [letter for letter in part if "\ud800" <= letter <= "\udfff"] if not part.isascii() else []
            if halves:
                raise BadInput(f"{prompt.where} should be UTF-8 text, and {halves[0]!a} is half a surrogate pair")
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list) and prompt.kind != "token_ids":
            waiting += part


def turn_of(prompt: Prompt, replies: Sequence[str]) -> Prompt:
    """The messages of a conversation's next question, behind the replies to those before it."""
    messages = []
    for question, reply in zip(prompt.content, replies, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    asked = {"role": "user", "content": prompt.content[len(replies)]}
    where = prompt.where if len(prompt.content) == 1 else f"{prompt.where}, turn {len(replies) + 1}"
    return dataclasses.replace(prompt, where=where, kind="messages", content=[*messages, asked])


def encode(
    prompt: Prompt,
    tokenizer,
    vocabulary: int,
    context: int,
    template: str | None = None,
    template_kwargs: Mapping[str, object] | None = None,
) -> list[int]:
    """The prompt's token ids, which leave room for a new token in ``context``; of turns, those of the first.

    Args:
      template: writes messages, in place of the tokenizer's chat template (Vicuna's where it has none).
      template_kwargs: further variables of the template.

    Raises:
      BadInput: text without a tokenizer or that is none, messages that the chat template refuses, an id that the target does not
        know, an empty or too long prompt.
    """
    ids = _ids(turn_of(prompt, ()) if prompt.kind == "turns" else prompt, tokenizer, template, template_kwargs)
    check_prompt(ids, vocabulary, context, prompt.where)
    return ids


def _ids(prompt: Prompt, tokenizer, template: str | None, kwargs: Mapping[str, object] | None) -> list[int]:
    if prompt.kind == "token_ids":
        return prompt.content
    check_text(prompt)
    if tokenizer is None:
        raise BadInput(f"{prompt.where} is text, but the target's folder has no tokenizer; give token_ids in a --prompts file")
    if prompt.kind == "prompt":
        return tokenizer(prompt.content, verbose=False)["input_ids"]
    try:
        text = templates.render(tokenizer, prompt.content, True, templates.choose(tokenizer, template), kwargs)
    except templates.Refused as error:
        raise BadInput(f"{prompt.where}: the chat template refuses these messages ({error})") from None
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
