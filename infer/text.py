"""Token ids and text: a target's tokenizer, and the text of a reply that grows token by token.

Nothing here starts JAX. Not here: chat templates (`templates.py`), prompts (`prompts.py`), what a terminal shows (`terminal.py`).
"""

import os
import pathlib
from collections.abc import Sequence

from redrafter_jax.errors import BadInput
from redrafter_jax.files import json_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# AutoTokenizer finds the same class for these, after it has imported PyTorch (where that is installed) and every family's config
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
CONTEXT_TOKENS = 6  # of the prompt, behind which a first token is decoded, for its leading space
MAX_CHARACTER_TOKENS = 16  # after which bytes that are no character are shown as they are


def load_tokenizer(folder: pathlib.Path, option: str = "--target"):
    """The tokenizer in a folder, or None where there is none.

    Raises:
      BadInput: there is one, and it is broken.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return _read(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise BadInput(f"{option}: the tokenizer in {folder} cannot be read ({error})") from None


def require_tokenizer(folder: pathlib.Path, needed_by: str, option: str = "--target"):
    """The tokenizer in a folder; ``needed_by`` says in an error what cannot do without it.

    Raises:
      BadInput: there is none, or it is broken.
    """
    try:
        return _read(folder)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{option}: {folder} has no tokenizer, which {needed_by} needs ({reason})") from None


def check_same_tokens(target: pathlib.Path, drafter: pathlib.Path, option: str) -> None:
    """Raises BadInput where a draft model's tokenizer is another than the target's; where one has none, nothing can be compared."""
    files = [folder / "tokenizer.json" for folder in (target, drafter)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return
    ours, theirs = load_tokenizer(target), load_tokenizer(drafter, option)
    if ours is not None and theirs is not None and ours.get_vocab() != theirs.get_vocab():
        raise BadInput(
            f"{option}: the tokenizer in {drafter} has other tokens than the target's, so its drafts would mean other text"
        )


def _read(folder: pathlib.Path):
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it warns that there is no PyTorch, which is not needed here
    import transformers  # takes a second, and prompts of token ids do not need it

    transformers.logging.set_verbosity_error()
    fields = json_files.find_object(pathlib.Path(folder) / "tokenizer_config.json") or {}
    is_plain = fields.get("tokenizer_class") in PLAIN_CLASSES and "auto_map" not in fields
    kind = transformers.PreTrainedTokenizerFast if is_plain else transformers.AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True)


class Detokenizer:
    """Ids to text one by one; a character is returned once all of its bytes are there. All returned text, joined, equals
    the text of all ids decoded at once.
    """

    def __init__(self, tokenizer, prompt: list[int]):
        self.decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.shown = list(prompt[-CONTEXT_TOKENS:])
        self.waiting: list[int] = []

    def push(self, token: int) -> str:
        """The characters that this token completes; may be empty."""
        self.waiting.append(token)
        before, after = self.decode(self.shown), self.decode(self.shown + self.waiting)
        if after.endswith("\ufffd") and len(self.waiting) < MAX_CHARACTER_TOKENS:
            return ""
        return self._give_out(before, after)

    def push_all(self, tokens: Sequence[int]) -> str:
        """The characters that these tokens complete, for what one costs where none is left in part."""
        if len(tokens) > 1 and not self.waiting:
            before, after = self.decode(self.shown), self.decode([*self.shown, *tokens])
            if not (before.endswith("\ufffd") or after.endswith("\ufffd")):  # no character is there in part
                self.waiting = list(tokens)
                return self._give_out(before, after)
        return "".join(map(self.push, tokens))

    def flush(self) -> str:
        """What is left when no more tokens come."""
        return self._give_out(self.decode(self.shown), self.decode(self.shown + self.waiting)) if self.waiting else ""

    def _give_out(self, before: str, after: str) -> str:
        self.shown, self.waiting = (self.waiting or self.shown)[-CONTEXT_TOKENS:], []
        return after[len(before) :]


def text_of(tokenizer, prompt: list[int], ids: list[int]) -> str | None:
    """The text of a reply behind its prompt; None without a tokenizer."""
    if tokenizer is None:
        return None
    detokenizer = Detokenizer(tokenizer, prompt)
    return detokenizer.push_all(ids) + detokenizer.flush()


def pieces_of(tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    """The characters that each token of a reply completes; what is left at the end goes to the last one."""
    detokenizer = Detokenizer(tokenizer, prompt)
    pieces = [detokenizer.push(token) for token in ids]
    return [*pieces[:-1], pieces[-1] + detokenizer.flush()] if pieces else []
