"""Rotary positions as a config.json describes them <-> `Rope`; the same for all families."""

from typing import Any

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families.fields import MAX_CONTEXT_TOKENS, number, whole
from redrafter_jax.model.layers import Rope


def read(fields: dict[str, Any], head_dim: int, context: int, what: str) -> Rope:
    """From `rope_parameters`, or `rope_scaling` as older files call it; where there are both, they should agree."""
    given = [fields[key] for key in ("rope_parameters", "rope_scaling") if fields.get(key) is not None]
    for scaling in given:
        if not isinstance(scaling, dict):
            names = "rope_parameters or rope_scaling"
            raise BadInput(f"{what}: {names} in config.json should be an object, not {shown(scaling)}")
        nested = [key for key, value in scaling.items() if isinstance(value, dict)]
        if nested:  # transformers' own Llama has one for all layers, too
            per_type = f"are given per layer type ({nested[0]})"
            raise BadInput(f"{what}: rope_parameters in config.json {per_type}, which is not supported")
    rope, *others = [_scaled(scaling, fields, head_dim, context, what) for scaling in given or [{}]]
    if any(other != rope for other in others):
        raise BadInput(f"{what}: rope_parameters and rope_scaling in config.json differ; there should be one of them")
    return rope


def _scaled(scaling: dict[str, Any], fields: dict[str, Any], head_dim: int, context: int, what: str) -> Rope:
    theta = number({"rope_theta": 10000.0} | fields | scaling, "rope_theta", what)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "dynamic", "llama3"):
        raise BadInput(f"{what}: rope type {shown(kind)} is not supported; default, linear, dynamic and llama3 are")
    if scaling.get("partial_rotary_factor", fields.get("partial_rotary_factor")) not in (None, 1.0):
        raise BadInput(f"{what}: partial_rotary_factor is not supported")
    if kind == "default":
        return Rope(theta, original_length=context)
    factor = number(scaling, "factor", f"{what}: rope type {kind!r}")
    if kind == "dynamic" and head_dim == 2:
        raise BadInput(f"{what}: rope type 'dynamic' needs a head_dim of 4 or more, not 2")
    if kind != "llama3":  # transformers scales the base of `dynamic` by the context, whatever the original length says
        return Rope(theta, kind, factor, original_length=context)
    low, high = (number(scaling, key, f"{what}: rope type 'llama3'") for key in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise BadInput(f"{what}: low_freq_factor in config.json should be below high_freq_factor {high:g}, not {low:g}")
    key = "original_max_position_embeddings"
    if fields.get(key) is not None:  # transformers prefers it to the one in `scaling`
        scaling = scaling | {key: fields[key]}
    original = whole(scaling, key, f"{what}: rope type 'llama3'", MAX_CONTEXT_TOKENS)
    return Rope(theta, kind, factor, low, high, original)


def fields_of(rope: Rope) -> dict[str, Any]:
    """The inverse of `read`, in the classic layout."""
    fields: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        fields |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_length,
        }
    scaling = {} if rope.kind == "default" else {"rope_scaling": fields}
    return {"rope_theta": rope.theta} | scaling
