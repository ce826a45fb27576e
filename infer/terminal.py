"""What a person sees: text as it is decided, accepted drafts in another colour, and the closing line.

Not here: JSON (`replies.py`), ids to text (`text.py`).
"""

import contextlib
import dataclasses
import math
import os
import sys
import threading
import time
from collections.abc import Iterator

from infer.stopping import StopText
from infer.text import Detokenizer
from redrafter_jax.decode.reply import tokens_per_step
from redrafter_jax.devices import processes

PATIENCE_SECONDS = 1.0  # of compiling before a line says so, where standard error is no terminal
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
# A model's text should not steer the terminal: control characters are shown as their pictures, or, where there is none (C1), as
# the replacement character. Line feeds and tabs are text.
CONTROL_SYMBOLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
CONTROL_SYMBOLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


LEGEND = f"{GREEN}green{PLAIN}: drafted, and accepted by the target; the rest the target added itself"


@contextlib.contextmanager
def compiling(is_shown: bool = True, kept_in: str | None = None) -> Iterator[None]:
    """Says on standard error that programs are being compiled: at once on a terminal, else where it takes longer than a second.

    Args:
      kept_in: the folder where they are kept for the next start.
    """
    said = []

    def say() -> None:
        said.append(f"compiling for this shape, once{f' (kept in {_short(kept_in)})' if kept_in else ''} ...")
        processes.say(said[0], sys.stderr)

    waiting = threading.Timer(0.0 if sys.stderr.isatty() else PATIENCE_SECONDS, say)
    if is_shown:
        waiting.start()
    began = time.perf_counter()
    try:
        yield
    finally:
        waiting.cancel()
        if said:
            processes.say(f"compiled in {seconds(time.perf_counter() - began)}", sys.stderr)


def _short(folder: str) -> str:
    home = os.path.expanduser("~")
    return folder.replace(home, "~", 1) if folder.startswith(home + os.sep) else folder


class Stream:
    """Writes one reply to standard output as it grows."""

    def __init__(self, tokenizer, prompt: list[int], coloured: bool, text: StopText | None = None):
        """``text``: of the tokens, where it ends at a stop string."""
        self.detokenizer = text or (Detokenizer(tokenizer, prompt) if tokenizer is not None else None)
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


def counted(count: int, noun: str) -> str:
    """`1 token`, `2 tokens`."""
    plural = {"reply": "replies", "pass": "passes"}
    return f"{count} {noun if count == 1 else plural.get(noun, noun + 's')}"


@dataclasses.dataclass
class Legend:
    """Explains the colour of accepted drafts, once, behind the first text that has it."""

    coloured: bool
    is_due: bool = False
    is_said: bool = False

    def see(self, replies) -> None:
        """Takes note of replies with accepted drafts."""
        self.is_due |= any(any(reply.drafted) for reply in replies)

    def print(self) -> None:
        """Prints it where a colour was seen, and not before."""
        if self.coloured and self.is_due and not self.is_said:
            self.is_said = True
            print(LEGEND, file=sys.stderr)


@dataclasses.dataclass
class Totals:
    """What the closing line adds up. ``seconds`` counts a batch once; compilation is not in it."""

    tokens: int = 0
    rounds: int = 0
    prefills: int = 0
    failed_prefills: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0

    def add(self, replies, seconds: float | None = None) -> None:
        """A batch of replies, which took so many seconds; None: until the last of them was complete."""
        self.tokens += sum(len(reply.token_ids) for reply in replies)
        self.rounds += sum(reply.rounds for reply in replies)
        self.prefills += len(replies)
        self.failed_prefills += sum(not reply.token_ids for reply in replies)
        self.seconds += max(reply.seconds for reply in replies) if seconds is None else seconds
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
        return f"{self.tokens_per_step:.2f} tokens per step" if self.rounds else "no pass was needed"

    def __str__(self) -> str:
        """The closing line, of at most 80 characters. A reply's first token is that of the prefill; the passes are those of
        the target after it."""
        passes = f"then {counted(self.rounds, 'pass')} of {self.tokens_per_step:.2f}" if self.rounds else "no pass was needed"
        speed = f"{figure(self.speed)} tokens/s"
        if self.prefills == 1 and self.tokens:
            first = f"{counted(self.tokens, 'token')}: first in {seconds(self.first_token_seconds)}"
            return f"{first}, {passes}{' tokens' if self.rounds else ''}; {speed}"
        return f"{counted(self.prefills, 'reply')}, {counted(self.tokens, 'token')}: 1 each, {passes}; {speed}"


def figure(value: float) -> str:
    """A number in three digits, or in as many as it has before the point."""
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f}"


def milliseconds(value: float) -> str:
    """A time of so many seconds in ms, in three digits."""
    return figure(value * 1e3) if value >= 1e-3 else f"{value * 1e3:.3f}"


def seconds(value: float) -> str:
    """A time, in milliseconds where it is below a second."""
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{figure(value)} s"
