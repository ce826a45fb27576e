"""Reads a low-rank adapter in PEFT's format (github.com/huggingface/peft): adapter_config.json and adapter_model.safetensors.

    W' = W + scale B A      A [R, in], B [out, R] float32; scale = alpha / R, or alpha / sqrt(R) with use_rslora

Adapters are merged while the weights are read, tensor by tensor under the names of the target's files, so a family needs no table
of its own for them. What would have to be approximated is refused by name. Not here: writing one (`adapters.py`).
"""

import dataclasses
import hashlib
import math
import pathlib
import re
from typing import Any

import numpy as np
import safetensors

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.files import json_files
from redrafter_jax.files.stored import LowRankDelta
from redrafter_jax.files.weight_files import FLOATS, files_of_tensors, is_finite

CONFIG_FILE, WEIGHT_FILE, PICKLED_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX, FACTOR = "base_model.model.", re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MAX_RANK, MAX_ALPHA = 1 << 16, 1e9
OFF = {  # fields that change what an adapter means, and the values with which they do not
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "bias": ("none",),
    "modules_to_save": ([],),
    "layer_replication": ([],),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "alora_invocation_tokens": ([],),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change W as well
}


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
    """An adapter as its folder has it. what: the option that named it, for errors; deltas: by the names of the target's tensors."""

    folder: pathlib.Path
    what: str
    deltas: dict[str, LowRankDelta]

    @property
    def fingerprint(self) -> str:
        """A hash of what it adds; another file with the same numbers has the same."""
        digest = hashlib.sha256()
        for name, delta in sorted(self.deltas.items()):
            digest.update(f"{name} {delta.scale!r} {delta.a.shape} {delta.b.shape}\n".encode())
            digest.update(delta.a.tobytes() + delta.b.tobytes())
        return digest.hexdigest()

    def check_names(self, names: set[str], target: pathlib.Path) -> None:
        """Raises BadInput unless all that it adapts is among the tensors that are read of a target."""
        unknown = sorted(self.deltas.keys() - names)
        if unknown:
            module = unknown[0].removesuffix(".weight")
            count = f"{len(unknown)} of {len(self.deltas)} modules"
            raise BadInput(f"{self.what}: {self.folder} adapts {module}, which the target in {target} has not ({count})")

    def check(self, name: str, shape: tuple[int, ...], dtype: str) -> LowRankDelta | None:
        """What it adds to a tensor of the target's files; None: nothing.

        Raises:
          BadInput: the tensor has another shape, or no floating-point numbers (it is quantised).
        """
        delta = self.deltas.get(name)
        if delta is None:
            return None
        if delta.shape != tuple(shape):
            fits = f"is for a matrix of shape {list(delta.shape)}, and the target's is {list(shape)}"
            raise BadInput(f"{self.what}: what {self.folder} adds to {name} {fits}; it is for another target")
        if dtype not in FLOATS:
            raise BadInput(f"{self.what}: {name} of the target is stored as {dtype}; an adapter is merged into float weights alone")
        return delta


def read(folder: pathlib.Path, what: str) -> StoredAdapter:
    """The adapter in a folder; ``what`` is the option that named it.

    Raises:
      BadInput: there is none, it is broken, or it is of a kind that is not honoured.
    """
    fields = _read_config(folder, what)
    factors: dict[str, dict[str, np.ndarray]] = {}
    for name, array in _read_tensors(folder, what).items():
        match = FACTOR.fullmatch(name)
        if match is None:
            should = "should hold lora_A and lora_B of linear layers alone"
            raise BadInput(f"{what}: {folder / WEIGHT_FILE} has the tensor {name}, and {should}")
        factors.setdefault(match[1], {})[match[2]] = array
    if not factors:
        raise BadInput(f"{what}: {folder / WEIGHT_FILE} is empty; it should hold lora_A and lora_B of linear layers")
    deltas = {f"{module}.weight": _delta(module, found, fields, folder, what) for module, found in sorted(factors.items())}
    return StoredAdapter(folder, what, deltas)


def _read_config(folder: pathlib.Path, what: str) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise BadInput(f"{what}: {folder} has no {CONFIG_FILE}, so it is no adapter in PEFT's format")
    fields = {name: value for name, value in json_files.read_object(path, what).items() if value is not None}
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise BadInput(f"{what}: peft_type in {path} should be 'LORA', not {shown(kind)}")
    for name, usual in OFF.items():
        if name in fields and fields[name] not in usual:
            raise BadInput(
                f"{what}: {name} {shown(fields[name])} in {path} is not supported; merge it with PEFT (merge_and_unload)"
            )
    _number(fields, "r", path, what, MAX_RANK, int)
    _number(fields, "lora_alpha", path, what, MAX_ALPHA, float)
    if not isinstance(fields.setdefault("use_rslora", False), bool):
        raise BadInput(f"{what}: use_rslora in {path} should be true or false, not {shown(fields['use_rslora'])}")
    for name, high, kind in (("rank_pattern", MAX_RANK, int), ("alpha_pattern", MAX_ALPHA, float)):
        pattern = fields.setdefault(name, {})
        if not isinstance(pattern, dict):
            raise BadInput(f"{what}: {name} in {path} should be an object, not {shown(pattern)}")
        for key in pattern:
            _number(pattern, key, path, f"{what}: {name}", high, kind)
            _matches(key, "", path, what)
    return fields


def _number(fields: dict[str, Any], name: str, path: pathlib.Path, what: str, high: float, kind: type) -> None:
    value, kinds = fields.get(name), (int,) if kind is int else (int, float)
    if type(value) not in kinds or not 0 < value <= high:
        words = "whole number" if kind is int else "number"
        raise BadInput(f"{what}: {name} in {path} should be a {words} above 0, at most {high:g}, not {shown(value)}")


def _matches(key: str, module: str, path: pathlib.Path, what: str) -> bool:
    """Whether a key of a pattern is of a module, as PEFT matches them: a regular expression for the end of the module's name."""
    try:
        return re.match(rf"(.*\.)?({key})$", module) is not None
    except re.error as error:
        raise BadInput(f"{what}: {shown(key)} in {path} is no regular expression ({error})") from None


def _read_tensors(folder: pathlib.Path, what: str) -> dict[str, np.ndarray]:
    if not (folder / WEIGHT_FILE).exists() and (folder / PICKLED_FILE).exists():
        how = "save it with PEFT's save_pretrained, which writes safetensors"
        raise BadInput(f"{what}: {folder} has a {PICKLED_FILE}, which is not read, because unpickling runs code; {how}")
    found = {}
    for name, file in files_of_tensors(folder, what, WEIGHT_FILE).items():
        with safetensors.safe_open(file, framework="numpy") as opened:
            kind = opened.get_slice(name).get_dtype()
            if kind not in FLOATS:
                raise BadInput(f"{what}: {name} in {file} is {kind}; it should hold floating-point numbers")
            stored = opened.get_tensor(name)
        with np.errstate(over="ignore", invalid="ignore"):
            found[name] = stored.astype(np.float32)
        if not is_finite(found[name]):
            raise BadInput(f"{what}: {name} in {file} holds NaN or Inf")
    return found


def _delta(module: str, factors: dict[str, np.ndarray], fields: dict[str, Any], folder: pathlib.Path, what: str) -> LowRankDelta:
    where = f"{what}: {module} in {folder / WEIGHT_FILE}"
    if len(factors) < 2:
        raise BadInput(f"{where} has lora_{min(factors)} alone; lora_{'B' if 'A' in factors else 'A'} is missing")
    a, b = factors["A"], factors["B"]
    path = folder / CONFIG_FILE
    rank, alpha = (
        next((value for key, value in fields[pattern].items() if _matches(key, module, path, what)), fields[usual])
        for pattern, usual in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
        shapes = f"lora_A {list(a.shape)} and lora_B {list(b.shape)}"
        raise BadInput(f"{where} has {shapes}; by {CONFIG_FILE} they should be [{rank}, in] and [out, {rank}]")
    return LowRankDelta(a, b, alpha / (math.sqrt(rank) if fields["use_rslora"] else rank))
