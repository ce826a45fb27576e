"""`--interactive`: a chat where the tokenizer has a chat template, else a text that both sides add to in turn.

/reset starts over, /quit or the end of input ends, Ctrl-C stops a reply. Not here: decoding and showing a reply.
"""

import contextlib
import sys
from collections.abc import Callable

from infer import prompts
from redrafter_jax.errors import BadInput


class Conversation:
    """What has been said. A chat is a list of messages, a completion one text; `prompt` is either with a turn added."""

    def __init__(self, is_chat: bool):
        self.is_chat = is_chat
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.text = ""

    def prompt(self, said: str) -> prompts.Prompt:
        if not self.is_chat:
            return prompts.Prompt("this turn", "prompt", self.text + said)
        return prompts.Prompt("this turn", "messages", [*self.messages, {"role": "user", "content": said}])

    def add(self, said: str, reply: str) -> None:
        """Only answered turns are remembered, so a refused turn can be rephrased."""
        self.messages += [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
        self.text += said + reply + "\n"


def converse(tokenizer, answer: Callable[[prompts.Prompt, int], str]) -> None:
    """Reads turns until the end. ``answer(prompt, turn)`` shows the reply and returns its text."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives `input` its history and editing)
    conversation = Conversation(bool(tokenizer.chat_template))
    kind = "Chat" if conversation.is_chat else "Completion: what you type is continued"
    print(f"{kind}. /reset starts over, /quit or Ctrl-D ends.", file=sys.stderr)
    for turn, said in enumerate(iter(_ask, None)):
        if said.strip() == "/reset":
            conversation.reset()
        elif said.strip():
            _take_turn(conversation, said, turn, answer)


def _take_turn(conversation: Conversation, said: str, turn: int, answer: Callable[[prompts.Prompt, int], str]) -> None:
    try:
        conversation.add(said, answer(conversation.prompt(said), turn))
    except BadInput as error:
        print(f"{error}; /reset starts over", file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _ask() -> str | None:
    """The next turn; None ends the conversation."""
    try:
        said = input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None
    return None if said.strip() == "/quit" else said
