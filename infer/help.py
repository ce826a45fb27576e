"""The help of a command: its options in groups, plain names of their values, and examples at the end.

A command declares one flat dataclass. `grouped` makes the nested one that tyro reads, `flatten` takes the values back. Four class
attributes, each of which may be missing, say what tyro cannot know:

    GROUPS: ClassVar = {"sampling": "temperature"}   # title of a group: the first option in it
    VALUES: ClassVar = {"mesh": "D M"}               # how the value of an option is called
    DEFAULTS: ClassVar = {"temperature": 0.0}        # what None stands for, of an option that has to know whether it was given
    EXAMPLES: ClassVar = ("python -m infer.generate",)
"""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from typing import Annotated, Any

import tyro

MAX_COLUMNS = 100  # of a text; longer lines are hard to read
# What an option is called in other packages, and here. Only said where a command has the one and not the other.
ELSEWHERE = {
    "model": "target", "model-path": "target", "base-model": "target", "draft-model": "drafter", "draft": "drafter",
    "speculative-model": "drafter", "head-path": "drafter", "max-tokens": "max-new-tokens",
    "num-tokens": "max-new-tokens", "max-model-len": "max-length", "max-context": "max-length",
    "prompt-file": "prompts", "input": "prompts", "chat": "interactive", "tensor-parallel-size": "mesh",
    "beams": "beam-width", "num-beams": "beam-width", "precision": "dtype", "data": "conversations",
    "dataset": "conversations", "learning-rate": "rate", "lr": "rate", "epochs": "steps", "max-steps": "steps",
    "stop-token": "stop", "stop-strings": "stop", "num-return-sequences": "n", "num-samples": "n", "out": "output",
    "output-dir": "output",
}  # fmt: skip


def grouped(kind: type, default: Any = None) -> type:
    """A frozen dataclass of the same options, in groups, for `tyro.cli`.

    Args:
      default: an object of ``kind`` whose values are the defaults; None: those of the class.
    """
    starts = {first: title for title, first in getattr(kind, "GROUPS", {}).items()}
    hints, texts = typing.get_type_hints(kind, include_extras=True), _texts(kind)
    found: list = []
    into = found
    for field in dataclasses.fields(kind):
        if field.name in starts:
            into = []
            found.append((starts[field.name], into))
        given = _default(field) if default is None else getattr(default, field.name)
        inner = _dataclass_in(hints[field.name])
        if inner is not None:
            found.append(_nested(field.name, grouped(inner, given)))
        else:
            into.append(_option(kind, field.name, hints[field.name], texts.get(field.name, ""), given))
    fields = [_nested(part[0], _make(part[0], part[1])) if isinstance(part[1], list) else part for part in found]
    return _make(kind.__name__, fields, kind.__doc__)


def flatten(kind: type, parsed: Any) -> Any:
    """The object of ``kind`` whose values an object of `grouped` has."""
    hints, titles = typing.get_type_hints(kind, include_extras=True), getattr(kind, "GROUPS", {})
    found = {}
    for field in dataclasses.fields(parsed):
        part = getattr(parsed, field.name)
        found |= vars(part) if field.name in titles else {field.name: part}
    inner = {name: _dataclass_in(hints[name]) for name in found}
    return kind(**{name: value if inner[name] is None else flatten(inner[name], value) for name, value in found.items()})


def wrap(text: str) -> str:
    """The paragraphs of a text in lines as wide as the terminal, at most MAX_COLUMNS. tyro joins lines that
    begin with a letter."""
    columns = min(shutil.get_terminal_size().columns, MAX_COLUMNS)
    return "\n".join(textwrap.fill(part, columns, subsequent_indent="  ", break_on_hyphens=False) for part in text.split("\n"))


def examples(kind: type) -> str:
    """What stands below the help; empty where the command has none."""
    lines = getattr(kind, "EXAMPLES", ())
    return "".join(["\nexamples:\n", *(f"  {line}\n" for line in lines)]) if lines else ""


def named_elsewhere(kind: type, arguments: typing.Sequence[str]) -> str | None:
    """A sentence about the first option that has another name here; None: there is none."""
    names = {name.replace("_", "-") for name in _names(kind)}
    for argument in arguments:
        given = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        if argument.startswith("--") and given not in names and ELSEWHERE.get(given) in names:
            return f"there is no --{given}; here it is --{ELSEWHERE[given]}"
    return None


def _names(kind: type) -> list[str]:
    hints, found = typing.get_type_hints(kind, include_extras=True), []
    for field in dataclasses.fields(kind):
        inner = _dataclass_in(hints[field.name])
        found += [field.name] if inner is None else _names(inner)
    return found


def _make(name: str, fields: list, text: str | None = None) -> type:
    made = dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)
    made.__doc__ = text or ""
    return made


def _nested(name: str, made: type) -> tuple:
    """A field that holds options of its own."""
    is_complete = all(field.default is not dataclasses.MISSING for field in dataclasses.fields(made))
    return (name, Annotated[made, tyro.conf.OmitArgPrefixes], *([dataclasses.field(default=made())] if is_complete else []))


def _option(kind: type, name: str, hint: Any, text: str, given: Any) -> tuple:
    """One option as tyro reads it. What an option of None stands for, DEFAULTS say, or its text alone."""
    words: dict[str, Any] = {"help": " ".join(text.split())}
    value = getattr(kind, "VALUES", {}).get(name) or _value_name(hint)
    if value is not None:
        words["metavar"] = value
    if given is None or given is False or given == ():
        stands_for = getattr(kind, "DEFAULTS", {})
        words["help_behavior_hint"] = f"(default: {stands_for[name]})" if name in stands_for else ""
    required = given is dataclasses.MISSING or given is tyro.MISSING
    return (name, Annotated[hint, tyro.conf.arg(**words)], *([] if required else [dataclasses.field(default=given)]))


def _value_name(hint: Any) -> str | None:
    """How the value of an option is called that may be None or has several; None: as tyro calls it."""
    if typing.get_origin(hint) is Annotated:
        return _value_name(typing.get_args(hint)[0]) if tyro.conf.UseAppendAction not in typing.get_args(hint) else None
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,):
        return f"{typing.get_args(hint)[0].__name__.upper()} ..."
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if typing.get_origin(hint) not in (typing.Union, types.UnionType) or len(kinds) != 1:
        return None
    inside = typing.get_args(kinds[0])
    if typing.get_origin(kinds[0]) is typing.Literal:
        return "{" + ",".join(map(str, inside)) + "}"
    return " ".join(kind.__name__.upper() for kind in inside or kinds)


def _dataclass_in(hint: Any) -> type | None:
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return kind if dataclasses.is_dataclass(kind) else None


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _texts(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass, its parents' included."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(parent) or not (source := _source(parent)):
            continue
        (declared,) = ast.parse(textwrap.dedent(source)).body
        for field, below in zip(declared.body, declared.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
            if isinstance(field, ast.AnnAssign) and is_text:
                found[field.target.id] = below.value.value
    return found


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # a program without its source, or a class made at run time
        return ""
