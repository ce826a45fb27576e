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
from redrafter_jax.families.names import Location
from redrafter_jax.files.atomic import replacing
from redrafter_jax.files.quantisation import PER_PACK, Packed
from redrafter_jax.files.weight_files import Float8, Stored, StoredStack

KEY_VALUE = re.compile(r"\.blocks\[\d+\]\.([kv]\.|k_width_norm$)")  # leaves whose rows are those of key-value heads
NOTHING = re.compile(r"(?!)")
FLOATS, INTEGERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16", "U16")
KINDS = {"float8_e4m3fn": Float8}  # how a leaf in a format is read, where that is not as usual
STORED = {("int8", Stored): "I8", ("int8", Packed): "I32", ("float8_e4m3fn", Float8): "F8_E4M3"}
FLOAT_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # that JAX has


def write(
    folder: pathlib.Path | str,
    arrays: dict[tuple, jax.Array],
    fields: dict[str, object],
    file: str = "model.safetensors",
    config_file: str = "config.json",
) -> None:
    """A model's folder: leaves by their places in the file (`Location`, or a name and whether the file holds it transposed), and
    config.json. All processes call it; the first writes."""
    host = {Location(*at): processes.fetch(leaf) if isinstance(leaf, jax.Array) else leaf for at, leaf in arrays.items()}
    if not processes.is_first():
        return
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / config_file) as config, replacing(folder / file) as tensors:
        safetensors.numpy.save_file(_as_stored(host), tensors, metadata={"format": "pt"})
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        tensors.chmod(stat.S_IMODE(config.stat().st_mode))  # safetensors makes a file that only its owner may read


def _as_stored(host: dict[Location, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a file: leaves turned over, taken apart or joined, as their places say."""
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for location, array in host.items():
        array = array.swapaxes(-1, -2) if location.transposed else array
        for number, name in enumerate(location.names):
            parts.setdefault(name, []).append((location.first, array[number] if location.count else array))
    joined = {name: [array for _, array in sorted(found, key=lambda part: part[0])] for name, found in parts.items()}
    return {name: np.ascontiguousarray(np.concatenate(found, axis=max(found[0].ndim - 2, 0))) for name, found in joined.items()}


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
    name_of: Callable[[str], tuple],
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
      name_of: the place of a leaf, as `write` takes it.
      ignored: names of tensors that need no place.
      repeated: how often each key-value head is wanted, and its width.
      made: for leaves with these paths, what is made of the tensor in its file's number format, as soon as it is placed; the
        leaves of that come in the place of the leaf.
      into: a tree of the model's structure, where ``made`` changes that of ``abstract``.
    """
    wanted = {path: Location(*name_of(path)) for path, _ in leaves(abstract)}
    names = {name for location in wanted.values() for name in location.names}
    missing = sorted(name for name in names if name not in files)
    extra = sorted(name for name in files if name not in names and not ignored.search(name))
    if missing:
        raise BadInput(f"{what}: {folder} lacks the tensor {missing[0]} ({len(missing)} missing in all)")
    if extra:
        raise BadInput(f"{what}: {folder} has the tensor {extra[0]}, which its config.json has no place for ({len(extra)} in all)")
    stored = []
    for path, leaf in leaves(abstract):
        copies, width = repeated if KEY_VALUE.match(path) else (1, 1)
        stored.append((path, *_find(path, leaf, wanted[path], files, copies, width, folder, what, path in made)))
    placed = (made.get(path, lambda leaf: leaf)(_place(like, each)) for path, like, each in stored)
    found = [leaf for each in placed for leaf in jax.block_until_ready(jax.tree.leaves(each))]
    return jax.tree.unflatten(jax.tree.structure(abstract if into is None else into), found)


def _find(
    path: str, leaf, location: Location, files, copies: int, width: int, folder: pathlib.Path, what: str, as_stored: bool
) -> tuple[jax.ShapeDtypeStruct, Stored | StoredStack]:
    """A leaf, in its file's number format if ``as_stored``, and its tensors, whose shapes and number formats are right."""
    *planes, first, last = leaf.shape if leaf.ndim > 1 else (*leaf.shape, None)
    first, *rest = (last, first) if location.transposed else (first, last)
    matrix = (location.height or first // copies, *(size for size in rest if size is not None))
    kind, is_scale = KINDS.get(leaf.dtype.name, Stored), path.endswith(".scale")
    if location.name.endswith("_packed"):
        kind, matrix = Packed, (matrix[0], -(-matrix[1] // PER_PACK))
    shape = matrix if location.count else (*planes, *matrix)
    for name in location.names:
        with safetensors.safe_open(files[name], framework="numpy") as opened:
            tensor = opened.get_slice(name)
            _check(tensor, name, leaf, kind, shape, is_scale, folder, what)
    like = (
        jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(FLOAT_DTYPES[tensor.get_dtype()]), sharding=leaf.sharding) if as_stored else leaf
    )

    def stored(name: str, plane: int | None = None) -> Stored:
        return kind(files[name], name, location.transposed, copies, width, what, location.first, plane, is_scale)

    if location.count:
        return like, StoredStack(tuple(map(stored, location.names)))
    if planes:
        return like, StoredStack(tuple(stored(location.name, plane) for plane in range(planes[0])))
    return like, stored(location.name)


def _check(tensor, name: str, like, kind, shape: tuple[int, ...], is_scale: bool, folder: pathlib.Path, what: str) -> None:
    found, number_format = tuple(tensor.get_shape()), tensor.get_dtype()
    if found != shape and not (is_scale and found == (*shape, 1)):
        wanted = [*shape, 1] if is_scale else list(shape)
        raise BadInput(f"{what}: {name} in {folder} has shape {list(found)}; its config.json asks for {wanted}")
    wanted = STORED.get((like.dtype.name, kind))
    if wanted is not None and number_format != wanted:
        raise BadInput(f"{what}: {name} in {folder} is {number_format}; its config.json asks for {wanted}")
    if wanted is None and jnp.issubdtype(like.dtype, jnp.integer):
        if number_format not in INTEGERS:
            raise BadInput(f"{what}: {name} in {folder} is {number_format}; it should hold whole numbers")
    elif wanted is None and number_format not in FLOATS:
        raise BadInput(f"{what}: {name} in {folder} is {number_format}; only floating-point weights are supported")


def _place(like, stored: Stored | StoredStack) -> jax.Array:
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
