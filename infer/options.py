"""Checks of options that several commands have: ranges, beam shapes, nodes, number formats, seeds.

Each check raises BadInput, one sentence that begins with the option. The ranges that hold in Python as well, and their
sentences, are those of `redrafter_jax/decode/request.py`. Nothing here starts JAX.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from redrafter_jax.decode.request import (
    MAX_NODES,
    MAX_SEED,
    require,
    wrong_for_vocabulary,
    wrong_number,
    wrong_temperature,
    wrong_top_p,
)
from redrafter_jax.errors import BadInput, shown

DTYPES = ("float32", "bfloat16")
Weights = Literal["int8", "fp8", "float32", "bfloat16"]
"""What `--weights` says of the target's matrices (`pair.number_formats`)."""
MAX_WIDTH, MAX_LENGTH = 1024, 64  # of a beam shape WxL


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def changed(options: Any, names: Sequence[str]) -> list[str]:
    """Those of the fields of an options dataclass that are not at their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return [name for name in names if getattr(options, name) != defaults[name]]


def given(options: Any, names: Sequence[str]) -> dict[str, Any]:
    """The values of those of the fields whose default is None that were given, be it what None stands for."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Checks that a number is in its range; None, the default, always is."""
    if value is not None and not low <= value <= high:
        raise BadInput(f"{flag(name)} should be from {low} to {high}, not {value}")


def check_ranges(ranges: Mapping[str, tuple[int, int]], values: Mapping[str, float | None]) -> None:
    """Checks the value of every name in ``ranges``."""
    for name, (low, high) in ranges.items():
        check_range(name, values[name], low, high)


def check_number(name: str, value: int | None, more: str = "") -> None:
    """Checks a number that has the same range in Python; ``more`` is appended to the sentence."""
    wrong = None if value is None else wrong_number(name, value)
    require(flag(name), wrong and wrong + more)


def check_temperature(value: float) -> None:
    """Checks that a temperature is 0 or in the range in which float32 can sample."""
    require("--temperature", wrong_temperature(value))


def check_top_p(value: float) -> None:
    """Checks that a top-p is above 0 and at most 1."""
    require("--top-p", wrong_top_p(value))


def wrong_dtype(value: object) -> str | None:
    """What is wrong with a number format of weights and cache."""
    return None if value in DTYPES else f"should be {' or '.join(DTYPES)}, not {shown(value)}"


def weights_beside(dtype: str | None, weights: str | None, prefix: str = "--") -> tuple[str | None, str | None]:
    """What is computed in (None: it was not said), and the format of `quantised.FORMATS` that matrices are stored in, if any, of
    options with this prefix.

    Raises:
      BadInput: they do not go together, or there is no such format.
    """
    if weights in DTYPES:
        if dtype not in (None, weights):
            apart = "weights that are not quantised are in the format that is computed in; leave out one of them"
            raise BadInput(f"{prefix}weights {weights} and {prefix}dtype {dtype} differ: {apart}")
        return weights, None
    names = get_args(Weights)
    is_known = weights is None or weights in names
    require(f"{prefix}weights", None if is_known else f"should be {', '.join(names[:-1])} or {names[-1]}, not {shown(weights)}")
    return dtype, weights


def name_formats(dtype: str, weight_format: str | None) -> str:
    """What is computed in, and the format of the target's matrices where that is another, in words."""
    return dtype if weight_format is None else f"{weight_format} weights, {dtype}"


def read_beam(text: str) -> tuple[int, int]:
    """W and L of a `--beams` value.

    Raises:
      BadInput: it is not of the form WxL, or out of range.
    """
    width, cross, length = text.partition("x")
    is_a_shape = cross and width.isdecimal() and length.isdecimal()
    if not (is_a_shape and 1 <= int(width) <= MAX_WIDTH and 1 <= int(length) <= MAX_LENGTH):
        raise BadInput(f"--beams should be widths and lengths such as 4x4, not {text}")
    return int(width), int(length)


def read_beams(texts: Sequence[str]) -> list[tuple[int, int]]:
    """W and L of each. Raises BadInput as `read_beam`."""
    return list(map(read_beam, texts))


def check_tree(width: int, length: int, budget: int, looked_up: int = 0) -> None:
    """Checks that a pass can score all nodes of a tree; ``looked_up`` of them are a lookup's."""
    most = 1 + width * length + looked_up
    count = min(budget, most) if budget else most
    if count > MAX_NODES:
        beside = f", with --lookup-length {looked_up}," if looked_up else ""
        raise BadInput(f"--beam-width {width} and --beam-length {length}{beside} make {count} nodes, over {MAX_NODES};"
                       " narrow them or give a --node-budget")  # fmt: skip


def check_each(name: str, values: Sequence[int], low: int, high: int) -> None:
    """Checks that there is a value, and that each is in its range."""
    if not values or any(not low <= value <= high for value in values):
        raise BadInput(f"{flag(name)} should be from {low} to {high}, not {' '.join(map(str, values)) or 'nothing'}")


def check_nodes(counts: Sequence[int]) -> None:
    """Checks that a pass can score trees of these numbers of nodes."""
    if counts:
        check_each("nodes", counts, 1, MAX_NODES)


def check_once(name: str, values: Sequence, said: Sequence) -> None:
    """Checks that an option names no value twice; ``said``: the values as they were given."""
    if len(set(values)) < len(values):
        raise BadInput(f"{flag(name)} should name each once, not {' '.join(map(str, said))}")


def check_drafted(option: str, value: int, vocab_size: int, draft_vocab: int = 0, candidates: int = 0) -> None:
    """Checks a number of beams, or --draft-top-k, against the tokens that can be drafted: the target's, the head's own, or its
    candidates."""
    require(option, wrong_for_vocabulary(value, vocab_size, draft_vocab, candidates))


def read_seeds(first: int, count: int) -> list[int]:
    """The seed of each of ``count`` prompts: the first seed plus the prompt's number."""
    highest = MAX_SEED - count + 1
    if first > highest:
        raise BadInput(f"--seed should be at most {highest}, not {first}, which leaves too few seeds for {count} prompts")
    return [first + index for index in range(count)]
