"""`--interactive`: a chat where the tokenizer has a chat template, else a text that both sides add to in turn.

Not here: decoding and showing a reply.
"""

import contextlib
import re
import sys
from collections.abc import Callable

from infer import prompts
from redrafter_jax.errors import BadInput

HELP = """\
/reset   forget what was said, and start over
/help    this list
/quit    end (so do /exit and Ctrl-D)
Ctrl-C   stop a reply
Anything else is said to the model."""
ENDS = ("/quit", "/exit")
A_COMMAND = re.compile(r"/[a-z]+")  # alone on its line


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


def converse(is_chat: bool, answer: Callable[[prompts.Prompt, int], str]) -> None:
    """Reads turns until the end. ``answer(prompt, turn)`` shows the reply and returns its text."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives `input` its history and editing)
    conversation = Conversation(is_chat)
    kind = "Chat. " if is_chat else "Completion: what you type is continued (--chat-template makes it a chat).\n"
    print(f"{kind}/help lists what can be typed, Ctrl-D ends.", file=sys.stderr)
    for turn, said in enumerate(iter(_ask, None)):
        if A_COMMAND.fullmatch(said.strip()):
            _obey(conversation, said.strip())
        elif said.strip():
            _take_turn(conversation, said, turn, answer)


def _obey(conversation: Conversation, command: str) -> None:
    if command == "/reset":
        conversation.reset()
        print("what was said is forgotten", file=sys.stderr)
    else:
        print(HELP if command == "/help" else f"there is no {command}; /help lists what there is", file=sys.stderr)


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
    return None if said.strip() in ENDS else said
