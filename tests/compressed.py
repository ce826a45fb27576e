"""Checkpoints in compressed-tensors' layout, made by hand after its description, and the float ones that they stand for."""

import json
import pathlib
import re

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

LARGEST = {"int8": 127.0, "fp8": 448.0}
NAMES = {
    "int8": "I8", "int32": "I32", "int64": "I64", "float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
}  # fmt: skip
MATRIX = re.compile(r"(self_attn|mlp)\.\w+_proj\.weight$")


def arguments(kind: str = "int8", **changes) -> dict:
    """How a group's weights are quantised."""
    weights = {
        "num_bits": 8,
        "type": "int" if kind == "int8" else "float",
        "symmetric": True,
        "strategy": "channel",
        "dynamic": False,
    }
    return weights | {"group_size": None, "block_structure": None, "observer": "minmax", "actorder": None} | changes


def config(weights: dict, form: str, activations: dict | None = None, **changes) -> dict:
    """A quantization_config."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"],
            "kv_cache_scheme": None, "quantization_status": "compressed", "version": "0.15.0"} | changes  # fmt: skip


def quantise(matrix: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[out, in]`` and scales ``[out, 1]`` in bfloat16, row by row."""
    values = np.zeros(matrix.shape, np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn)
    scales = np.zeros((len(matrix), 1), ml_dtypes.bfloat16)
    for row, weights in enumerate(matrix.astype(np.float32)):
        scales[row] = max(abs(weights)) / LARGEST[kind] * 1.01  # rounding the scale leaves no value outside
        exact = weights / scales[row].astype(np.float32)
        values[row] = np.round(exact) if kind == "int8" else exact
    return values, scales


def pack(values: np.ndarray) -> np.ndarray:
    """``[out, in]`` int8 as ``[out, ceil(in / 4)]`` int32: 128 is added to each, and the first of four is in the lowest bits."""
    rows, columns = values.shape
    packed = np.zeros((rows, -(-columns // 4)), np.int64)
    for column in range(columns):
        packed[:, column // 4] |= (values[:, column].astype(np.int64) + 128) << 8 * (column % 4)
    return packed.astype(np.uint32).view(np.int32)


def compress(source: pathlib.Path, folder: pathlib.Path, kind: str = "int8", packed: bool = False, activations: dict | None = None):
    """Writes the target in ``source`` quantised, and beside it the float target that this stands for; both folders."""
    compressed, floats = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not MATRIX.search(name):
            compressed[name] = floats[name] = tensor
            continue
        values, scales = quantise(tensor, kind)
        floats[name] = values.astype(np.float32) * scales.astype(np.float32)
        compressed[f"{name}_scale"] = scales
        if packed:
            compressed |= {f"{name}_packed": pack(values), f"{name}_shape": np.asarray(values.shape)}
        else:
            compressed[name] = values
    form = "pack-quantized" if packed else "int-quantized" if kind == "int8" else "float-quantized"
    fields = json.loads((source / "config.json").read_text())
    for name in ("compressed", "float"):
        (folder / name).mkdir(parents=True)
    write(folder / "compressed" / "model.safetensors", compressed)
    save_file(floats, folder / "float" / "model.safetensors")
    (folder / "float" / "config.json").write_text(json.dumps(fields))
    (folder / "compressed" / "config.json").write_text(
        json.dumps(fields | {"quantization_config": config(arguments(kind), form, activations)})
    )
    return folder / "compressed", folder / "float"


def write(file: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, of number formats too that safetensors does not write from NumPy."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": NAMES[tensor.dtype.name], "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts = (np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def change(folder: pathlib.Path, name: str, new: np.ndarray | None) -> None:
    """Replaces a tensor of a folder that `compress` wrote, or removes it."""
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    formats = {stored: np.dtype(name) for name, stored in NAMES.items()}
    tensors = {}
    for each, about in json.loads(whole[8 : 8 + length]).items():
        begin, end = about["data_offsets"]
        found = np.frombuffer(whole[8 + length + begin : 8 + length + end], formats[about["dtype"]])
        tensors[each] = found.reshape(about["shape"])
    tensors |= {} if new is None else {name: new}
    write(file, {each: tensor for each, tensor in tensors.items() if new is not None or each != name})
