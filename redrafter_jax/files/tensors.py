"""A model's leaves from the tensors of a folder, and back: names, shapes and number formats are checked, the rest is the caller's.

Devices' parts of tensors go from the file to their places, a few at a time: a process reads the bytes that its own devices need,
and holds no tensor whole unless a device does. Files keep matrices ``[out, in]``; we keep ``[in, out]``.
"""

import functools
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
from redrafter_jax.files import reading, weight_files
from redrafter_jax.files.atomic import replacing
from redrafter_jax.files.peft import StoredAdapter
from redrafter_jax.files.quantisation import PER_PACK, Packed
from redrafter_jax.files.stored import Stored, StoredStack
from redrafter_jax.files.weight_files import FLOATS, INTEGERS, Place

KEY_VALUE = re.compile(r"\.blocks\[\d+\]\.([kv]\.|k_width_norm$)")  # leaves whose rows are those of key-value heads
NOTHING = re.compile(r"(?!)")
STORED = {"int8": "I8", "float8_e4m3fn": "F8_E4M3"}  # what files call the formats of quantised matrices


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
    adapter: StoredAdapter | None = None,
    made: Mapping[str, Callable[[jax.Array], Any]] = {},
    into: Any = None,
):
    """A model with these leaves from the tensors of a folder.

    Args:
      name_of: the place of a leaf, as `write` takes it.
      ignored: names of tensors that need no place.
      repeated: how often each key-value head is wanted, and its width.
      adapter: what it adds is added to the tensors as they are read.
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
    if adapter is not None:
        adapter.check_names(names, folder)
    stored = []
    for path, leaf in leaves(abstract):
        copies, width = repeated if KEY_VALUE.match(path) else (1, 1)
        is_scale = path.endswith(".scale")
        stored.append(_find(leaf, wanted[path], files, copies, width, folder, what, adapter, is_scale))
    current = jax.sharding.get_mesh()
    pairs = zip(leaves(abstract), stored, strict=True)
    found = [(path, _as_in_file(leaf, each) if path in made else leaf) for (path, leaf), each in pairs]
    tasks = [functools.partial(_place, leaf, each, current) for (_, leaf), each in zip(found, stored, strict=True)]
    placed = reading.in_turn(tasks, [leaf.size * leaf.dtype.itemsize for _, leaf in found])
    finished = (made[path](leaf) if path in made else leaf for (path, _), leaf in zip(found, placed, strict=True))
    flat = [leaf for each in finished for leaf in jax.block_until_ready(jax.tree.leaves(each))]
    return jax.tree.unflatten(jax.tree.structure(abstract if into is None else into), flat)


def _as_in_file(leaf, stored: Stored | StoredStack) -> jax.ShapeDtypeStruct:
    """The leaf in the number format of its file."""
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(stored.dtype), sharding=leaf.sharding)


def _find(
    leaf,
    location: Location,
    files,
    copies: int,
    width: int,
    folder: pathlib.Path,
    what: str,
    adapter: StoredAdapter | None,
    is_scale: bool,
) -> Stored | StoredStack:
    """The tensors of a leaf, whose shapes and number formats are right."""
    *planes, first, last = leaf.shape if leaf.ndim > 1 else (*leaf.shape, None)
    first, *rest = (last, first) if location.transposed else (first, last)
    is_packed = leaf.dtype == jnp.int8 and location.name.endswith("_packed")
    rest = [1] if is_scale else [-(-size // PER_PACK) if is_packed else size for size in rest if size is not None]
    matrix = (location.height or first // copies, *rest)
    shape = matrix if location.count else (*planes, *matrix)
    kind, deltas = Packed if is_packed else Stored, {}
    for name in location.names:
        place = weight_files.places(files[name])[name]
        _check(place, name, leaf, shape, is_packed, is_scale, folder, what)
        deltas[name] = adapter.check(name, place.shape, place.dtype) if adapter is not None else None

    def stored(name: str, plane: int | None = None) -> Stored:
        return kind(files[name], name, location.transposed, copies, width, what, location.first, plane, deltas[name], is_scale)

    if location.count:
        return StoredStack(tuple(map(stored, location.names)))
    return StoredStack(tuple(stored(location.name, plane) for plane in range(planes[0]))) if planes else stored(location.name)


def _check(
    place: Place, name: str, like, shape: tuple[int, ...], is_packed: bool, is_scale: bool, folder: pathlib.Path, what: str
) -> None:
    if place.shape != shape and not (is_scale and place.shape == shape[:1]):
        raise BadInput(f"{what}: {name} in {folder} has shape {list(place.shape)}; its config.json asks for {list(shape)}")
    wanted = "I32" if is_packed else STORED.get(like.dtype.name)
    if wanted is not None and place.dtype != wanted:
        raise BadInput(f"{what}: {name} in {folder} is {place.dtype}; its config.json asks for {wanted}")
    if wanted is None and jnp.issubdtype(like.dtype, jnp.integer):
        if place.dtype not in INTEGERS:
            raise BadInput(f"{what}: {name} in {folder} is {place.dtype}; it should hold whole numbers")
    elif wanted is None and place.dtype not in FLOATS:
        raise BadInput(f"{what}: {name} in {folder} is {place.dtype}; only floating-point weights are supported")


def _place(like, stored: Stored | StoredStack, mesh: jax.sharding.Mesh) -> jax.Array:
    """A leaf on the mesh, from the parts of it that this process's devices hold, each read once."""
    sharding = jax.sharding.NamedSharding(mesh, like.sharding.spec)
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
