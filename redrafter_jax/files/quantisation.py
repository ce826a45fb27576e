"""The quantization_config of a checkpoint: which stored matrices are read as they are, and what is refused by name.

Read: compressed-tensors in int8 or float8_e4m3fn with one scale per output channel, symmetric, without quantised activations:

    X.weight           [out, in]      int8, or float8_e4m3fn
    X.weight_packed    [out, in / 4]  int32: four int8 each, 128 added to each of them (format pack-quantized); instead of X.weight
    X.weight_scale     [out, 1]       floating point
    X.weight_shape     [2]            beside X.weight_packed, and not needed

Not here: quantising a float checkpoint as it is loaded (`weights.py`), what a quantised matrix is
(`redrafter_jax/model/quantised.py`).
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.families.names import Location
from redrafter_jax.files.stored import Stored

KEY = "quantization_config"
METHOD = "compressed-tensors"
INSTEAD = "take the float checkpoint, and quantise it as it is loaded (weights int8)"
READABLE = f"{METHOD} in int8 or fp8 with a scale per output channel (strategy channel) is read"
FORMATS = {"int-quantized", "naive-quantized", "float-quantized", "pack-quantized"}  # int8 and fp8 as they are, or in int32
IGNORED = re.compile(r"weight_shape$")
PER_PACK = 4  # int8 in an int32
PACK_OFFSET = 0x80
Rename = Callable[[str], Location]
"""The place in the files of a leaf of ours."""


@dataclasses.dataclass(frozen=True)
class Compression:
    """What a checkpoint's matrices are stored in. weight_format: of `quantised.FORMATS`; is_packed: int8, four in an int32;
    activations: what the config asks for of activations, which is not done here; None where it asks for nothing."""

    weight_format: str
    is_packed: bool = False
    activations: str | None = None

    def name_of(self, path: str, rename: Rename) -> Location:
        """As ``rename`` says, and for a leaf `values` or `scale` of a matrix by what it says of the matrix."""
        matrix, _, part = path.rpartition(".")
        if part not in ("values", "scale"):
            return rename(path)
        place = rename(matrix)
        if part == "scale":
            return place._replace(name=f"{place.name}_scale", transposed=False)
        return place._replace(name=f"{place.name}_packed") if self.is_packed else place

    def check_complete(self, paths: Iterable[str], rename: Rename, files: Container[str], where: str) -> None:
        """Raises BadInput where the files have a matrix of these leaves, which ``rename`` finds, but not its scale."""
        for path in paths:
            name = rename(path).name
            if path.endswith(".scale") and name not in files and (name.removesuffix("_scale") in files or self.is_packed):
                raise BadInput(f"{where} lacks the tensor {name}; every matrix of its layers should be quantised, with a scale")


def read(fields: Mapping[str, Any], what: str) -> Compression | None:
    """What a config.json says of the stored weights; None: they are floating-point numbers.

    Raises:
      BadInput: they are in a format that is not read.
    """
    config = fields.get(KEY)
    if not config:
        return None
    if not isinstance(config, Mapping):
        raise BadInput(f"{what}: {KEY} in config.json should be an object, not {shown(config)}")
    method = config.get("quant_method")
    if method != METHOD:
        raise BadInput(f"{what}: quantised weights ({KEY}) of {shown(method)} are not read; {INSTEAD}; {READABLE}")
    if config.get("format") not in FORMATS:
        raise BadInput(f"{what}: {METHOD} weights of format {shown(config.get('format'))} are not read; {INSTEAD}; {READABLE}")
    group = _only_group(config, what)
    weight_format = _weight_format(group.get("weights"), what)
    is_packed = config["format"] == "pack-quantized"
    if is_packed and weight_format != "int8":
        raise BadInput(f"{what}: {METHOD} weights in {weight_format} of format 'pack-quantized' are not read; {INSTEAD}")
    if config.get("kv_cache_scheme") or (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        name = "kv_cache_scheme" if config.get("kv_cache_scheme") else "sparsity_config"
        raise BadInput(f"{what}: {name} in {KEY} is not supported; {INSTEAD}")
    return Compression(weight_format, is_packed, _activations(group))


def _only_group(config: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    groups = config.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    if len(groups) != 1 or not isinstance(groups[0], Mapping) or groups[0].get("targets") != ["Linear"]:
        raise BadInput(f"{what}: config_groups in {KEY} should be one group, whose targets are ['Linear']; {INSTEAD}")
    return groups[0]


def _weight_format(weights: object, what: str) -> str:
    """Of the arguments of a group's weights."""
    weights = weights if isinstance(weights, Mapping) else {}
    bits, kind, strategy = (weights.get(key) for key in ("num_bits", "type", "strategy"))
    if strategy != "channel" or weights.get("group_size") not in (None, -1) or weights.get("block_structure"):
        of = f" in groups of {weights['group_size']}" if isinstance(weights.get("group_size"), int) else ""
        raise BadInput(f"{what}: {METHOD} weights of {shown(bits)} bits{of} with strategy {shown(strategy)} are not read;"
                       f" {INSTEAD}; {READABLE}")  # fmt: skip
    found = {(8, "int"): "int8", (8, "float"): "fp8"}.get((bits, kind))
    if found is None:
        raise BadInput(f"{what}: {METHOD} weights of {shown(bits)} bits and type {shown(kind)} are not read; {INSTEAD}; {READABLE}")
    if weights.get("symmetric", True) is not True or weights.get("dynamic", False) is not False:
        raise BadInput(f"{what}: {METHOD} weights should be symmetric and not dynamic; {INSTEAD}")
    return found


def _activations(group: Mapping[str, Any]) -> str | None:
    asked = group.get("input_activations") or group.get("output_activations")
    if not asked:
        return None
    bits, kind = (asked.get(key) if isinstance(asked, Mapping) else None for key in ("num_bits", "type"))
    return f"{shown(bits)} bits, type {shown(kind)}"


def weight_format(fields: Mapping[str, Any], wanted: str | None, what: str) -> str | None:
    """The format of a target's matrices: the one that is wanted (None: as they are stored), or that of a quantised checkpoint.

    Raises:
      BadInput: the checkpoint is in another format, or is computed with quantised activations, which changes its results, unless
        its own format is wanted: that asks for its weights alone.
    """
    found = read(fields, what)
    if found is None:
        return wanted
    if wanted is None and found.activations is not None:
        raise BadInput(
            f"{what}: config.json asks for quantised activations ({found.activations}), which are not rounded here, so the text"
            f" would be another; to take the weights alone, ask for their format (weights {found.weight_format})"
        )
    if wanted not in (None, found.weight_format):
        raise BadInput(f"{what}: its matrices are stored in {found.weight_format}, so weights {wanted} cannot be made of them")
    return found.weight_format


@dataclasses.dataclass(frozen=True)
class Packed(Stored):
    """A matrix ``[out, in]`` in int8 whose file has ``[out, in / 4]`` in int32. Its rows are read as those of `Stored` are."""

    def _read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        first, last = columns[0] // PER_PACK, -(-columns[1] // PER_PACK)
        packed = np.ascontiguousarray(super()._read(rows, (first, last)))
        if sys.byteorder == "big":
            packed = packed.byteswap()
        skipped = columns[0] - first * PER_PACK
        return (packed.view(np.uint8) ^ np.uint8(PACK_OFFSET)).view(np.int8)[:, skipped : skipped + columns[1] - columns[0]]
