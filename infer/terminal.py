"""What a person sees: text as it is decided, accepted drafts in another colour, and the closing line.

Not here: JSON (`replies.py`), ids to text (`text.py`).
"""

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Iterator

from infer.text import Detokenizer
from redrafter_jax.decode.reply import tokens_per_step
from redrafter_jax.devices import processes

PATIENCE_SECONDS = 1.0  # of compiling before a line says so, where standard error is no terminal
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
# A model's text should not steer the terminal: control characters are shown as their pictures, or, where there is none (C1), as
# the replacement character. Line feeds and tabs are text.
CONTROL_SYMBOLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
CONTROL_SYMBOLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


@contextlib.contextmanager
def compiling(is_shown: bool = True) -> Iterator[None]:
    """Says on standard error that programs are being compiled: at once on a terminal, else where it takes longer than a second."""
    say = threading.Timer(0.0 if sys.stderr.isatty() else PATIENCE_SECONDS, processes.say, ("compiling ...", sys.stderr))
    if is_shown:
        say.start()
    try:
        yield
    finally:
        say.cancel()


class Stream:
    """Writes one reply to standard output as it grows."""

    def __init__(self, tokenizer, prompt: list[int], coloured: bool):
        self.detokenizer = Detokenizer(tokenizer, prompt) if tokenizer is not None else None
        self.coloured = coloured
        self.count = 0

    def show(self, reply) -> None:
        """Writes what is new since the last call."""
        for token, drafted in zip(reply.token_ids[self.count :], reply.drafted[self.count :], strict=True):
            self._write(f"{token} " if self.detokenizer is None else self.detokenizer.push(token), drafted)
        self.count = len(reply.token_ids)
        sys.stdout.flush()

    def close(self) -> None:
        self._write(self.detokenizer.flush() if self.detokenizer is not None else "", False)
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _write(self, text: str, drafted: bool) -> None:
        if sys.stdout.isatty():
            text = text.translate(CONTROL_SYMBOLS)
        sys.stdout.write(f"{GREEN}{text}{PLAIN}" if drafted and self.coloured and text else text)


def coloured(no_color: bool) -> bool:
    """Whether standard output is a terminal that may be coloured (https://no-color.org)."""
    return sys.stdout.isatty() and not no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@dataclasses.dataclass
class Totals:
    """What the closing line adds up. ``seconds`` counts a batch once; compilation is not in it."""

    tokens: int = 0
    rounds: int = 0
    prefills: int = 0
    failed_prefills: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    compile_seconds: float = 0.0

    def add(self, replies) -> None:
        """A batch of replies."""
        self.tokens += sum(len(reply.token_ids) for reply in replies)
        self.rounds += sum(reply.rounds for reply in replies)
        self.prefills += len(replies)
        self.failed_prefills += sum(not reply.token_ids for reply in replies)
        self.seconds += max(reply.seconds for reply in replies)
        self.first_token_seconds = self.first_token_seconds or replies[0].first_token_seconds

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_step(self) -> float | None:
        return tokens_per_step(self.tokens, self.prefills - self.failed_prefills, self.rounds)

    @property
    def tokens_per_step_in_words(self) -> str:
        """Tokens per step, in words."""
        return f"{self.tokens_per_step:.2f} tokens per step (the +1 is counted)" if self.rounds else "no step was needed"

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens in {self.rounds} target passes (+ {self.prefills} to read the prompt):"
            f" {self.tokens_per_step_in_words}, {self.speed:.1f} tokens/s,"
            f" first token after {self.first_token_seconds:.3f} s; compiling took {self.compile_seconds:.1f} s more"
        )
