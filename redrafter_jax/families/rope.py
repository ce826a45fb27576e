"""Rotary positions as a config.json describes them <-> `Rope`; the same for all families."""

import math
from typing import Any

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families.fields import MAX_CONTEXT_TOKENS, flag, number, whole
from redrafter_jax.model.rope import Rope

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
ORIGINAL = "original_max_position_embeddings"
SHARE = "partial_rotary_factor"


def read(fields: dict[str, Any], head_dim: int, context: int, what: str, turns_in_part: bool = False) -> Rope:
    """From `rope_parameters`, or `rope_scaling` as older files call it; where there are both, they should agree.

    Args:
      turns_in_part: whether the family honours `partial_rotary_factor`.
    """
    given = [fields[key] for key in ("rope_parameters", "rope_scaling") if fields.get(key) is not None]
    for scaling in given:
        if not isinstance(scaling, dict):
            names = "rope_parameters or rope_scaling"
            raise BadInput(f"{what}: {names} in config.json should be an object, not {shown(scaling)}")
        nested = [key for key, value in scaling.items() if isinstance(value, dict)]
        if nested:  # transformers' own Llama has one for all layers, too
            per_type = f"are given per layer type ({nested[0]})"
            raise BadInput(f"{what}: rope_parameters in config.json {per_type}, which is not supported")
    rope, *others = [_scaled(scaling, fields, head_dim, context, what, turns_in_part) for scaling in given or [{}]]
    if any(other != rope for other in others):
        raise BadInput(f"{what}: rope_parameters and rope_scaling in config.json differ; there should be one of them")
    return rope


def _scaled(scaling: dict[str, Any], fields: dict[str, Any], head_dim: int, context: int, what: str, turns_in_part: bool) -> Rope:
    scaling = {key: value for key, value in scaling.items() if value is not None}
    theta = number({"rope_theta": 10000.0} | fields | scaling, "rope_theta", what)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in KINDS:
        raise BadInput(f"{what}: rope type {shown(kind)} is not supported; {', '.join(KINDS[:-1])} and {KINDS[-1]} are")
    share = _share(scaling, fields, head_dim, what, turns_in_part)
    width = int(head_dim * share)
    if kind == "default":
        return Rope(theta, original_length=context, share=share)
    named = f"{what}: rope type {kind!r}"
    if kind == "longrope":
        return _longrope(scaling, fields, theta, share, width, context, named)
    factor = number(scaling, "factor", named)
    if kind == "yarn":
        return _yarn(scaling, fields, theta, factor, share, context, named)
    if kind == "dynamic" and width == 2:
        raise BadInput(f"{what}: rope type 'dynamic' needs a head_dim of 4 or more, not 2")
    if kind != "llama3":  # transformers scales the base of `dynamic` by the context, whatever the original length says
        return Rope(theta, kind, factor, original_length=context, share=share)
    low, high = (number(scaling, key, named) for key in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise BadInput(f"{what}: low_freq_factor in config.json should be below high_freq_factor {high:g}, not {low:g}")
    return Rope(theta, kind, factor, low, high, _original(scaling, fields, named), share=share)


def _share(scaling: dict[str, Any], fields: dict[str, Any], head_dim: int, what: str, turns_in_part: bool) -> float:
    """`partial_rotary_factor`, where a family has one."""
    found = {key: value for key, value in (fields | scaling).items() if key == SHARE and value is not None}
    if found.get(SHARE, 1.0) == 1.0:
        return 1.0
    if not turns_in_part:
        raise BadInput(f"{what}: partial_rotary_factor is not supported for this model_type")
    share = number(found, SHARE, what, high=1.0)
    width = int(head_dim * share)
    if width < 2 or width % 2:
        turned = f"{share:g} of a head_dim of {head_dim} is {width}"
        raise BadInput(f"{what}: partial_rotary_factor in config.json should turn an even number of features; {turned}")
    return share


def _original(scaling: dict[str, Any], fields: dict[str, Any], named: str, low: int = 1) -> int:
    """Tokens of the context before it was scaled. transformers prefers the field beside `rope_scaling` to the one in it."""
    if fields.get(ORIGINAL) is not None:
        scaling = scaling | {ORIGINAL: fields[ORIGINAL]}
    return whole(scaling, ORIGINAL, named, MAX_CONTEXT_TOKENS, low)


def _yarn(scaling, fields, theta: float, factor: float, share: float, context: int, named: str) -> Rope:
    fast, slow = (number({key: default} | _set(scaling), key, named) for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    if fast < slow:
        raise BadInput(f"{named}: beta_fast in config.json should be at least beta_slow {slow:g}, not {fast:g}")
    if theta <= 1:
        raise BadInput(f"{named}: rope_theta in config.json should be above 1, not {theta:g}")
    scales = [number(scaling, key, named) for key in ("mscale", "mscale_all_dim") if _set(scaling).get(key) is not None]
    if "attention_factor" in scaling:
        attention = number(scaling, "attention_factor", named)
    elif len(scales) == 2:
        attention = _growth(factor, scales[0]) / _growth(factor, scales[1])
    else:
        attention = _growth(factor, 1.0)
    original = _original({ORIGINAL: context} | scaling, fields, named)
    truncate = flag(scaling, "truncate", True, named)
    return Rope(
        theta, "yarn", factor, original_length=original, attention_factor=attention, beta_fast=fast, beta_slow=slow,
        truncate=truncate, share=share,
    )  # fmt: skip


def _set(scaling: dict[str, Any]) -> dict[str, Any]:
    """Without zeros, which transformers takes for defaults."""
    return {key: value for key, value in scaling.items() if value != 0}


def _growth(factor: float, scale: float) -> float:
    """YaRN's own factor of the attention's logits (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(scaling, fields, theta: float, share: float, width: int, context: int, named: str) -> Rope:
    original = _original({ORIGINAL: context} | scaling, fields, named, low=2)
    factor = number({"factor": context / original} | scaling, "factor", named)
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (_factors(scaling, key, width // 2, named) for key in ("short_factor", "long_factor"))
    attention = number({"attention_factor": attention} | scaling, "attention_factor", named)
    return Rope(
        theta, "longrope", factor, original_length=original, attention_factor=attention, short_factors=short, long_factors=long,
        share=share,
    )  # fmt: skip


def _factors(scaling: dict[str, Any], key: str, count: int, named: str) -> tuple[float, ...]:
    """One factor for each pair of features that turns."""
    found = scaling.get(key)
    if not isinstance(found, list) or len(found) != count:
        size = f"a list of {len(found)}" if isinstance(found, list) else shown(found)
        raise BadInput(f"{named}: {key} in config.json should be a list of {count} numbers, one per pair of features, not {size}")
    return tuple(number({key: value}, key, named) for value in found)


def fields_of(rope: Rope) -> dict[str, Any]:
    """The inverse of `read`, in the classic layout."""
    fields: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        fields |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        fields |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
    if rope.kind == "longrope":
        fields |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
    if rope.kind in ("yarn", "longrope"):
        fields["attention_factor"] = rope.attention_factor
    if rope.kind in ("llama3", "yarn", "longrope"):
        fields[ORIGINAL] = rope.original_length
    scaling = {} if rope.kind == "default" else {"rope_scaling": fields}
    return {"rope_theta": rope.theta} | ({} if rope.share == 1 else {SHARE: rope.share}) | scaling
