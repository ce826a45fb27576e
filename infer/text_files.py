"""Text files as their users name them: which files, the text in them, and its token ids. Nothing here starts JAX."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from infer.text import require_tokenizer
from redrafter_jax.errors import BadInput

FILES_AT_ONCE = 256  # that are tokenised together, in parallel
BEGINNING_BYTES = 8192  # of a file, in which a zero byte shows that it is no text (as git has it)
NAMED_FILES = 3  # that are passed over
MIN_TEXT_TOKENS = 1000  # that can be measured on


def files(paths: Iterable[pathlib.Path], patterns: Sequence[str] = ()) -> list[pathlib.Path]:
    """The files that paths name, and the files in the folders among them, in order of name, less those that are empty and
    those that are hidden or in a hidden folder.

    Args:
      patterns: of which a file in a folder has to match one, such as `*.md`; none: every file does.

    Raises:
      BadInput: a path is missing, or a folder has no file that is not empty.
    """
    found = []
    for path in paths:
        if not (path.is_dir() or path.is_file()):
            raise BadInput(f"there is no file or folder {path}")
        inside = sorted(file for file in path.rglob("*") if _is_read(file, path)) if path.is_dir() else [path]
        if path.is_dir() and patterns:
            inside = [file for file in inside if any(map(file.match, patterns))]
        if not inside:
            matches = f" and matches {' or '.join(patterns)}" if patterns else ""
            raise BadInput(f"there is no file in {path} that is neither empty nor hidden{matches}")
        found += inside
    return found


@dataclasses.dataclass(frozen=True)
class Texts:
    """The text files among `files`, and the binary files in folders, which are passed over, for nobody named them."""

    files: list[pathlib.Path]
    binary: list[pathlib.Path]

    def note(self) -> str | None:
        """What is said of the binary files; None where there are none."""
        names = ", ".join(file.name for file in self.binary[:NAMED_FILES])
        more = ", ..." if len(self.binary) > NAMED_FILES else ""
        count = f"{len(self.binary)} binary file{'s are' if len(self.binary) > 1 else ' is'}"
        return f"{count} passed over ({names}{more})" if self.binary else None


def texts(paths: Iterable[pathlib.Path], patterns: Sequence[str] = ()) -> Texts:
    """The text files that paths name. Raises BadInput as `files`, and where a folder's files are all binary."""
    paths = list(paths)
    named, found = set(paths), files(paths, patterns)
    is_passed_over = {file: file not in named and _is_binary(file) for file in found}
    binary = [file for file in found if is_passed_over[file]]
    if found and len(binary) == len(found):
        raise BadInput(f"there is no text in {', '.join(map(str, paths))}: every file is binary, such as {binary[0].name}")
    return Texts([file for file in found if not is_passed_over[file]], binary)


def _is_binary(file: pathlib.Path) -> bool:
    try:
        with open(file, "rb") as opened:
            return b"\0" in opened.read(BEGINNING_BYTES)
    except OSError:
        return False  # whoever reads it says what is wrong


def _is_read(file: pathlib.Path, folder: pathlib.Path) -> bool:
    is_hidden = any(name.startswith(".") for name in file.relative_to(folder).parts)
    return not is_hidden and file.is_file() and not _is_blank(file)


def _is_blank(file: pathlib.Path) -> bool:
    try:
        with open(file, "rb") as opened:
            return not any(map(bytes.strip, opened))
    except OSError:
        return False  # the reader reports the error


def read_text(path: pathlib.Path) -> str:
    """The text of a file. Raises BadInput where it cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} cannot be read as UTF-8 text ({error})") from None


def tokenise(paths: Iterable[pathlib.Path], tokenizer, skip: Callable[[str, str], None]) -> Iterator[tuple[str, list[int]]]:
    """The name and the token ids of each file, which begin with the beginning-of-text id where the tokenizer's prompts do, and
    end with the end-of-text id.

    Args:
      skip: called with the name of a file that holds no text, and the reason.
    """
    begin = [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    waiting = iter(paths)
    while batch := list(itertools.islice(waiting, FILES_AT_ONCE)):
        texts = {path: text for path in batch if (text := _text_or_skip(path, skip))}
        encoded = tokenizer(list(texts.values()), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        for path, ids in zip(texts, encoded, strict=True):
            yield path.name, begin + ids + end


def _text_or_skip(path: pathlib.Path, skip: Callable[[str, str], None]) -> str | None:
    try:
        text = read_text(path)
    except BadInput as error:
        return skip(path.name, str(error))
    return text if text.strip() else skip(path.name, "is empty")


def check_known(tokens: Sequence[int] | np.ndarray, where: str, vocab_size: int) -> None:
    """Raises BadInput for a token that the tokenizer has and the target has not; ``where`` it was read."""
    highest = int(np.max(tokens, initial=0))
    if highest >= vocab_size:
        raise BadInput(
            f"--target: the tokenizer writes token id {highest} ({where}), but vocab_size in config.json is {vocab_size};"
            " it should be the tokenizer that the target was trained with"
        )


def read_stream(files: Sequence[pathlib.Path], target: pathlib.Path, vocab_size: int) -> np.ndarray:
    """The token ids of all files, one after the other, as one array.

    Raises:
      BadInput: the target has no tokenizer or does not know all ids, a file holds no text, or they are too few.
    """
    tokenizer, wrong = require_tokenizer(target, "text to evaluate on"), []
    read = list(tokenise(files, tokenizer, lambda name, reason: wrong.append(f"{name}: {reason}")))
    if wrong:
        raise BadInput(f"--text: {wrong[0]}; it should be text, in UTF-8")
    for name, ids in read:
        check_known(ids, name, vocab_size)
    stream = np.concatenate([np.asarray(ids, np.int32) for _, ids in read])
    if len(stream) < MIN_TEXT_TOKENS:
        raise BadInput(f"--text: {len(stream)} tokens are too few to measure on; give {MIN_TEXT_TOKENS:,} or more")
    return stream
