"""Renders a tokenizer's chat template, with bounds on length and time, because a template is a program that comes with the
model.

transformers' Jinja sandbox keeps it from files and from changing what it is shown, but lets it run for ever, or write
until the memory is full. What the bounds do not catch: time outside the main thread, which alone can be interrupted;
one huge step (`"%9999999999d"|format(1)`, `9**9**9`), which is not interrupted either; and, until the time is over, the
memory of a text put together in a macro or variable.
"""

import contextlib
import functools
import pathlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.files import json_files

VICUNA = (
    "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} ASSISTANT: {{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %} {{ message['content'] }}"
    "{% else %} USER: {{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
NAMED = {"vicuna": VICUNA}
MAX_CHARACTERS = 1 << 24  # that a template writes, or makes by repeating something; some 4 million tokens
MAX_SECONDS = 10.0  # that a template runs
MAX_REASON_CHARACTERS = 200
EXAMPLE_KWARGS = '{"enable_thinking": false}'
NO_VARIABLES = ("messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message",
                "chat_template", "tokenize")  # fmt: skip
"""Names that mean something else to a chat template, or to transformers' `apply_chat_template`, than a variable."""


class Refused(ValueError):
    """The template refuses these messages; what it says."""


class _BeyondBounds(Exception):
    """The template has written too much, or run too long."""


class _NotRead(Exception):
    """A variable is given that the template does not read; its name."""


def read(given: str) -> str:
    """The template of a name, or in a file.

    Raises:
      BadInput: there is no such file, or it is no text.
    """
    path = pathlib.Path(given)
    if given in NAMED and not path.exists():
        return NAMED[given]
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        names = ", ".join(NAMED)
        raise BadInput(f"--chat-template: {given} cannot be read as a template ({error}); give a file, or {names}") from None


def read_kwargs(text: str | None, option: str = "--chat-template-kwargs") -> dict[str, object]:
    """The variables of a chat template, from a JSON object; none of None.

    Raises:
      BadInput: as `check_kwargs`, or it is not JSON.
    """
    if text is None:
        return {}
    try:
        found = json_files.parse(text)
    except ValueError as error:
        raise BadInput(f"{option} should be a JSON object such as {EXAMPLE_KWARGS}, not {shown(text)} ({error})") from None
    return check_kwargs(found, option)


def check_kwargs(found: object, option: str) -> dict[str, object]:
    """The variables of a chat template.

    Raises:
      BadInput: they are no object, or one of them is the conversation itself.
    """
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise BadInput(f"{option} should be a JSON object such as {EXAMPLE_KWARGS}, not {shown(found)}")
    taken = [name for name in NO_VARIABLES if name in found]
    if taken:
        raise BadInput(f"{option} should hold variables of the chat template, and {taken[0]} is not one of them; leave it out")
    return found


def choose(tokenizer, given: str | None = None) -> str | None:
    """The template to write messages with: the one that is given, the tokenizer's own (None), or else Vicuna's."""
    return given if given is not None or tokenizer.chat_template else VICUNA


def render(
    tokenizer, messages: list[dict], asks: bool, template: str | None = None, kwargs: Mapping[str, object] | None = None
) -> str:
    """The messages as the tokenizer's chat template, or ``template``, writes them; ``asks`` for a reply at the end; ``kwargs`` are
    further variables, as of transformers' `apply_chat_template`.

    Raises:
      Refused: the template raises an error, for instance about the order of roles.
      BadInput: the template writes or runs beyond bounds, or does not read one of ``kwargs``.
    """
    kwargs = dict(kwargs or {})
    given = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        with _deadline():
            source = tokenizer.get_chat_template(template)
            compiled = _compiled(source)
            if kwargs:
                _check_reads(source, kwargs)
            variables = tokenizer.special_tokens_map | kwargs
            return compiled.render(messages=given, tools=None, documents=None, add_generation_prompt=asks, **variables)
    except _BeyondBounds as error:
        raise BadInput(f"--target: its chat template {error}") from None
    except _NotRead as error:
        raise BadInput(f"--chat-template-kwargs: the chat template reads no variable {error}; leave it out") from None
    except Exception as error:  # a template may raise anything
        raise Refused(" ".join(str(error).split())[:MAX_REASON_CHARACTERS]) from None


def _check_reads(source: str, kwargs: Mapping[str, object]) -> None:
    """Raises _NotRead for a variable that would change nothing, such as a misspelt one."""
    unread = sorted(kwargs.keys() - _variables(source))
    if unread:
        raise _NotRead(shown(unread[0]))


@functools.lru_cache(maxsize=8)
def _variables(source: str) -> frozenset[str]:
    """The names that a template reads and does not set itself."""
    import jinja2.meta  # of transformers, too

    return frozenset(jinja2.meta.find_undeclared_variables(_compiled(source).environment.parse(source)))


@functools.lru_cache(maxsize=8)
def _compiled(source: str):
    """The template in transformers' own environment, which offers what chat templates use, with the bounds put in."""
    from transformers.utils import chat_template_utils  # takes seconds, and prompts of token ids do not need it

    environment = chat_template_utils._compile_jinja_template("").environment
    environment.concat = _join
    environment.intercepted_binops = frozenset("*")  # else Jinja would work out "a" * 10**9 while it compiles
    environment.binop_table["*"] = _multiply
    return environment.from_string(source)


def _join(pieces: Iterable[str]) -> str:
    """Joins the pieces of a text, in place of Jinja's own function."""
    kept, characters = [], 0
    for piece in pieces:
        kept.append(piece)
        characters += len(piece)
        if characters > MAX_CHARACTERS:
            raise _BeyondBounds(f"writes more than {MAX_CHARACTERS} characters")
    return "".join(kept)


def _multiply(left, right):
    for repeated, times in ((left, right), (right, left)):
        if hasattr(repeated, "__len__") and isinstance(times, int) and len(repeated) * times > MAX_CHARACTERS:
            raise _BeyondBounds(f"writes more than {MAX_CHARACTERS} characters")
    return left * right


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Interrupts the body after ``MAX_SECONDS``."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_):
        raise _BeyondBounds(f"runs for more than {MAX_SECONDS:g} seconds")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS, 1.0)  # and again, because an exception raised in a destructor is lost
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
