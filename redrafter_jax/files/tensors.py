"""A model's leaves from the tensors of a folder, and back: names, shapes and number formats are checked, the rest is the caller's.

One device's part of one tensor at a time goes from the file to its place: a process reads the bytes that its own devices
need, and holds no tensor whole unless a device does. Files keep matrices ``[out, in]``; we keep ``[in, out]``.
"""

import json
import pathlib
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files.atomic import replacing
from redrafter_jax.files.quantisation import PER_PACK, Packed
from redrafter_jax.files.weight_files import Float8, Stored

KEY_VALUE = re.compile(r"\.blocks\[\d+\]\.[kv]\.")  # leaves whose rows are those of key-value heads
NOTHING = re.compile(r"(?!)")
FLOATS, INTEGERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16", "U16")
KINDS = {"float8_e4m3fn": Float8}  # how a leaf in a format is read, where that is not as usual
STORED = {("int8", Stored): "I8", ("int8", Packed): "I32", ("float8_e4m3fn", Float8): "F8_E4M3"}
FLOAT_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # that JAX has


def write(
    folder: pathlib.Path | str,
    arrays: dict[tuple[str, bool], jax.Array],
    fields: dict[str, object],
    file: str = "model.safetensors",
    config_file: str = "config.json",
) -> None:
    """A model's folder: tensors by their name in the file and whether it holds them transposed, and config.json. All processes
    call it; the first writes."""
    host = {name: processes.fetch(leaf) for (name, _), leaf in arrays.items()}
    if not processes.is_first():
        return
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    host = {name: np.ascontiguousarray(host[name].T if flip else host[name]) for name, flip in arrays}
    with replacing(folder / config_file) as config, replacing(folder / file) as tensors:
        safetensors.numpy.save_file(host, tensors, metadata={"format": "pt"})
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        tensors.chmod(stat.S_IMODE(config.stat().st_mode))  # safetensors makes a file that only its owner may read


def rename(path: str, table: list[tuple[str, str, bool]]) -> tuple[str, bool]:
    """The name in the file of a leaf of ours, and whether the file holds it transposed."""
    for ours, theirs, transposed in table:
        match = re.fullmatch(ours, path)
        if match:
            return match.expand(theirs), transposed
    raise KeyError(path)


def leaves(module) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(module):
        yield re.sub(r"\.value$|\.raw_value$|\.get_value\(\)$", "", jax.tree_util.keystr(path)), leaf


def fill(
    abstract,
    name_of: Callable[[str], tuple[str, bool]],
    files: Mapping[str, pathlib.Path],
    folder: pathlib.Path,
    what: str,
    ignored: re.Pattern = NOTHING,
    repeated: tuple[int, int] = (1, 1),
    made: Mapping[str, Callable[[jax.Array], Any]] = {},
    into: Any = None,
):
    """A model with these leaves from the tensors of a folder.

    Args:
      ignored: names of tensors that need no place.
      repeated: how often each key-value head is wanted, and its width.
      made: for leaves with these paths, what is made of the tensor in its file's number format, as soon as it is placed; the
        leaves of that come in the place of the leaf.
      into: a tree of the model's structure, where ``made`` changes that of ``abstract``.
    """
    wanted = {path: name_of(path) for path, _ in leaves(abstract)}
    names = {name for name, _ in wanted.values()}
    missing = sorted(name for name in names if name not in files)
    extra = sorted(name for name in files if name not in names and not ignored.search(name))
    if missing:
        raise BadInput(f"{what}: {folder} lacks the tensor {missing[0]} ({len(missing)} missing in all)")
    if extra:
        raise BadInput(f"{what}: {folder} has the tensor {extra[0]}, which its config.json has no place for ({len(extra)} in all)")
    stored = []
    for path, leaf in leaves(abstract):
        name, transposed = wanted[path]
        copies, width = repeated if KEY_VALUE.match(path) else (1, 1)
        kind, is_scale = KINDS.get(leaf.dtype.name, Stored), path.endswith(".scale")
        with safetensors.safe_open(files[name], framework="numpy") as opened:
            tensor = opened.get_slice(name)
            kind = Packed if kind is Stored and name.endswith("_packed") else kind
            _check(tensor, name, leaf, kind, transposed, copies, is_scale, folder, what)
            like = _like(leaf, tensor) if path in made else leaf
        stored.append((path, like, kind(files[name], name, transposed, copies, width, what, is_scale)))
    placed = (made.get(path, lambda leaf: leaf)(_place(like, each)) for path, like, each in stored)
    found = [leaf for each in placed for leaf in jax.block_until_ready(jax.tree.leaves(each))]
    return jax.tree.unflatten(jax.tree.structure(abstract if into is None else into), found)


def _like(leaf, tensor) -> jax.ShapeDtypeStruct:
    """The leaf in the number format of its file."""
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(FLOAT_DTYPES[tensor.get_dtype()]), sharding=leaf.sharding)


def _check(tensor, name: str, like, kind, transposed: bool, copies: int, is_scale: bool, folder: pathlib.Path, what: str) -> None:
    first, *rest = like.shape[::-1] if transposed else like.shape
    shape = [first // copies, *rest]
    shape = [shape[0], -(-shape[1] // PER_PACK)] if kind is Packed else [*shape, 1] if is_scale else shape
    found, number_format = list(tensor.get_shape()), tensor.get_dtype()
    if found != shape and not (is_scale and found == shape[:1]):
        raise BadInput(f"{what}: {name} in {folder} has shape {found}; its config.json asks for {shape}")
    wanted = STORED.get((like.dtype.name, kind))
    if wanted is not None and number_format != wanted:
        raise BadInput(f"{what}: {name} in {folder} is {number_format}; its config.json asks for {wanted}")
    if wanted is None and jnp.issubdtype(like.dtype, jnp.integer):
        if number_format not in INTEGERS:
            raise BadInput(f"{what}: {name} in {folder} is {number_format}; it should hold whole numbers")
    elif wanted is None and number_format not in FLOATS:
        raise BadInput(f"{what}: {name} in {folder} is {number_format}; only floating-point weights are supported")


def _place(like, stored: Stored) -> jax.Array:
    """A leaf on the current mesh, from the parts of it that this process's devices hold, each read once."""
    sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), like.sharding.spec)
    by_device = sharding.addressable_devices_indices_map(like.shape)
    places: dict[tuple, list] = {}
    for device, index in by_device.items():
        places.setdefault(tuple((each.start, each.stop) for each in index), []).append(device)
    placed = {}
    for devices in places.values():
        part = stored.part(by_device[devices[0]], like.shape, like.dtype)
        placed |= {device: jax.device_put(part, device) for device in devices}
        jax.block_until_ready([placed[device] for device in devices])  # else several parts wait on the host
    return jax.make_array_from_single_device_arrays(like.shape, sharding, [placed[device] for device in by_device])
