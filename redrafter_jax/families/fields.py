"""The fields of a config.json, each in its range or refused by name, before anything is made of it."""

from typing import Any

from redrafter_jax.errors import BadInput, shown

MAX_LAYERS = 1000
MAX_FEATURES = 10**6  # of a hidden state, a feed-forward layer, or all heads together
MAX_VOCABULARY_TOKENS = 10**7
MAX_CONTEXT_TOKENS = 10**8
MIN_NUMBER, MAX_NUMBER = 1e-12, 1e12  # of what is divided by or raised to powers in float32


def whole(config: dict[str, Any], key: str, what: str, high: int, low: int = 1) -> int:
    """A whole number from ``low`` to ``high``.

    Raises:
      BadInput: it is missing, something else, or out of range.
    """
    value = config.get(key)
    if type(value) is not int or not low <= value <= high:
        span = f"from {low} to {high}"
        raise BadInput(f"{what}: {key} in config.json should be a whole number {span}, not {shown(value)}")
    return value


def number(config: dict[str, Any], key: str, what: str, high: float = MAX_NUMBER) -> float:
    """A number from ``MIN_NUMBER`` to ``high``.

    Raises:
      BadInput: it is missing, something else, or out of range.
    """
    value = config.get(key)
    if type(value) not in (int, float) or not MIN_NUMBER <= value <= high:
        span = f"{MIN_NUMBER:g} to {high:g}"
        raise BadInput(f"{what}: {key} in config.json should be a number above 0 ({span}), not {shown(value)}")
    return float(value)


def flag(config: dict[str, Any], key: str, default: bool, what: str) -> bool:
    """True or false.

    Raises:
      BadInput: it is something else.
    """
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise BadInput(f"{what}: {key} in config.json should be true or false, not {shown(value)}")
    return value
