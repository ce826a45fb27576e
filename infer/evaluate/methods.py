"""The methods of a `--method` option, read from its text: what drafts, in which shape, by which rule. Nothing here starts JAX.

    KIND[:FOLDER][:SHAPE][:TREE][@RULE][+lookup[:WxL]]

    recurrent:HEAD:8x5            the recurrent head in a folder, 8 beams of 5 tokens; a folder `embedded` is the embedded pair's
    recurrent:HEAD:4x4/17:beams   at most 17 nodes, the paper's tree
    medusa:HEADS:64               the 64 first nodes of Medusa's tree
    small:FOLDER:1x4@rejection    a small model, whose drafts are drawn
    lookup:1x8                    prompt lookup, 8 tokens behind the best match
    recurrent:HEAD:4x4+lookup     a head with a lookup beside it, one tree of both
    plain                         no drafts

Not here: folders and weights (`field.py`).
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

from infer.options import MAX_LENGTH, MAX_WIDTH
from redrafter_jax.decode.propose.lookup_sizes import LookupSizes
from redrafter_jax.decode.request import MAX_NODES, wrong_rule
from redrafter_jax.decode.rules import DEFAULT_RULE, RULES
from redrafter_jax.errors import BadInput

WITH_FOLDER = {"recurrent": "a recurrent head", "medusa": "Medusa's heads", "small": "a small model"}
KINDS = (*WITH_FOLDER, "lookup", "plain")
TREES = ("search", "beams", "chains")
EMBEDDED = "embedded"  # in place of a folder: the embedded pair's head
SHAPE = re.compile(r"(\d+)x(\d+)(?:/(\d+))?")
LOOKUP = re.compile(r"(.*)\+lookup(?::([^:+]*))?")


@dataclasses.dataclass(frozen=True)
class WantedTree:
    """W beams of L tokens, at most ``budget`` nodes (0: all), and which tree they make.

    width 0: the first ``budget`` nodes of Medusa's tree.
    """

    width: int
    length: int
    budget: int = 0
    kind: str = "search"


@dataclasses.dataclass(frozen=True)
class Method:
    """One of the methods that are compared. text: as it was given; folder: of what has weights; tree: None where none is given, so
    that the device decides; lookup: alone, or beside a head."""

    text: str
    kind: str
    folder: str | None = None
    tree: WantedTree | None = None
    tree_kind: str = "search"
    rule: str = DEFAULT_RULE
    lookup: LookupSizes | None = None

    @property
    def name(self) -> str:
        """As tables call it: its text, with the last part of its folder."""
        if self.folder is None or self.folder == EMBEDDED:
            return self.text
        return self.text.replace(self.folder, pathlib.PurePath(self.folder).name or self.folder, 1)

    @property
    def is_plain(self) -> bool:
        return self.kind == "plain"


PLAIN = Method("plain", "plain")


def read_all(texts: Sequence[str]) -> list[Method]:
    """The methods, with plain decoding before the others where none of them is it.

    Raises:
      BadInput: as `read`, or one is there twice.
    """
    found = list(map(read, texts))
    twice = [method.text for number, method in enumerate(found) if method in found[:number]]
    if twice:
        raise BadInput(f"--method {twice[0]} is given twice; each should be given once")
    return found if any(method.is_plain for method in found) else [PLAIN, *found]


def names_of(methods: Sequence[Method]) -> list[str]:
    """What tables call them; those that would share a name by their whole texts."""
    names = [method.name for method in methods]
    return [method.text if names.count(name) > 1 else name for method, name in zip(methods, names, strict=True)]


def read(text: str) -> Method:
    """One method.

    Raises:
      BadInput: one sentence that begins with the option and its value.
    """
    try:
        return _read(text)
    except BadInput as error:
        raise BadInput(f"--method {text or repr(text)}: {error}") from None


def _read(text: str) -> Method:
    body, beside = text, None
    if match := LOOKUP.fullmatch(text):
        body, beside = match[1], _lookup(match[2])
    body, rule = _rule(body)
    kind, *parts = body.split(":")
    if kind not in KINDS:
        *others, last = KINDS
        raise BadInput(f"a method begins with {', '.join(others)} or {last}, not {kind!r}")
    if kind == "plain" and (parts or rule or beside):
        raise BadInput("plain decoding drafts nothing, so nothing stands behind it")
    if kind == "lookup":
        if beside is not None:
            raise BadInput("a lookup goes beside a head or a model, not beside a lookup; leave out one of them")
        sizes = _lookup(_last(parts, "a lookup has a shape WxL alone"))
        return _fitting(Method(text, kind, rule=rule or DEFAULT_RULE, lookup=sizes))
    if kind == "plain":
        return Method(text, kind)
    if not parts or not parts[0]:
        raise BadInput(f"the folder of {WITH_FOLDER[kind]} is missing, as in {kind}:FOLDER{':64' if kind == 'medusa' else ':1x4'}")
    folder, *parts = parts
    tree = parts.pop() if parts and parts[-1] in TREES else "search"
    given = _last(parts, "behind the folder stand a shape such as 8x5 or 4x4/17, and a tree (search, beams or chains)")
    wanted = None if given is None else _shape(given, kind, tree)
    return _fitting(Method(text, kind, folder, wanted, tree, rule or DEFAULT_RULE, beside))


def _last(parts: Sequence[str], otherwise: str) -> str | None:
    if len(parts) > 1:
        raise BadInput(f"{otherwise}, not {':'.join(parts)}")
    return parts[0] if parts else None


def _rule(body: str) -> tuple[str, str | None]:
    """What stands before a rule, and the rule; a folder may have an @ in it."""
    before, at, rule = body.rpartition("@")
    if not at or "/" in rule or ":" in rule:
        return body, None
    wrong = wrong_rule(rule)
    if wrong:
        raise BadInput(f"the rule behind @ {wrong}")
    return before, rule


def _lookup(shape: str | None) -> LookupSizes:
    if shape is None:
        return LookupSizes()
    match = re.fullmatch(r"(\d+)x(\d+)", shape)
    if match is None:
        raise BadInput(f"the shape of a lookup should be matches and tokens, such as 1x8, not {shape!r}")
    return LookupSizes(width=int(match[1]), length=int(match[2]))


def _shape(given: str, kind: str, tree: str) -> WantedTree:
    if kind == "medusa" and given.isdecimal():
        if not 2 <= int(given) <= MAX_NODES:
            raise BadInput(f"the nodes of the tree should be from 2 to {MAX_NODES}, not {given}")
        return WantedTree(0, 0, int(given), tree)
    match, nodes = SHAPE.fullmatch(given), " or, of Medusa's tree, its nodes, such as 64" if kind == "medusa" else ""
    if match is None:
        raise BadInput(f"a shape should be beams and tokens such as 8x5, or 4x4/17 with at most 17 nodes{nodes}, not {given!r}")
    width, length, budget = int(match[1]), int(match[2]), match[3]
    if not (1 <= width <= MAX_WIDTH and 1 <= length <= MAX_LENGTH):
        raise BadInput(f"a shape has from 1 to {MAX_WIDTH} beams of from 1 to {MAX_LENGTH} tokens, not {width}x{length}")
    if budget is not None and not 2 <= int(budget) <= MAX_NODES:
        raise BadInput(f"the nodes behind / should be from 2 to {MAX_NODES}, not {budget}")
    count = 1 + width * length
    if min(count, int(budget or count)) > MAX_NODES:
        raise BadInput(f"{width}x{length} has {count} nodes, over {MAX_NODES}; narrow it, or give a budget as in {given}/64")
    if tree == "chains" and budget is not None and int(budget) < count:
        raise BadInput(f"/{budget} would cut chains that were drawn; leave it out")
    return WantedTree(width, length, int(budget or 0), tree)


def _fitting(method: Method) -> Method:
    """The method, whose tree and rule go together."""
    if method.kind == "medusa" and method.tree_kind != "search":
        raise BadInput(f"{method.tree_kind} is a tree of a beam search, and Medusa's is a constant; leave it out")
    if not RULES[method.rule].drawn:
        return method
    if method.kind in ("medusa", "lookup") or method.lookup is not None:
        what = "Medusa's heads and lookups draw"
        raise BadInput(f"@{method.rule} needs drafts that are drawn, and {what} none; give it to a recurrent head or a small model")
    is_one_beam = method.kind == "small" if method.tree is None else method.tree.width == 1  # by default a model drafts a chain
    if method.tree_kind != "chains" and not is_one_beam:
        instead = "give one beam, as 1x4, or :chains"
        raise BadInput(f"@{method.rule} needs drafts that are drawn, and a beam search draws none; {instead}")
    return method


def medusa_width(nodes: int, length: int) -> int:
    """Beams of so great a length that have room for the nodes: at least two, since one is the chain of first ranks."""
    return max(2, math.ceil((nodes - 1) / max(length, 1)))
