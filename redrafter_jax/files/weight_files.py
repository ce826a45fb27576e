"""The safetensors files of a folder: which tensors they hold, and parts of tensors, none of them NaN or Inf.

Whatever is wrong with a file is one sentence. Not here: what the tensors are for (`weights.py`).
"""

import dataclasses
import functools
import json
import math
import os
import pathlib

import ml_dtypes
import numpy as np
import safetensors

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.files import json_files

WEIGHT_INDEX = "model.safetensors.index.json"
FLOATS, INTEGERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16", "U16")
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
          "I64": np.int64, "I32": np.int32, "I16": np.int16, "U16": np.uint16}  # fmt: skip
CHUNK_BYTES = 1 << 19  # bytes that are read, cast and turned over at a time, such that they stay in a core's cache


def files_of_tensors(folder: pathlib.Path, what: str, only: str | None = None) -> dict[str, pathlib.Path]:
    """Tensor name -> file, of all files that the folder's model consists of, once their headers have been read. ``only``: the
    name of its one file, where that is not the usual one.

    Raises:
      BadInput: a file is missing, broken or outside the folder, or a tensor is there twice.
    """
    files: dict[str, pathlib.Path] = {}
    for name in [only] if only else _names(folder, what):
        path = folder / name
        _check_is_file(path, what)
        for tensor in _header(path, what):
            if tensor in files:
                raise BadInput(f"{what}: {files[tensor].name} and {name} in {folder} both have the tensor {tensor}")
            files[tensor] = path
    return files


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies: bytes ``start`` to ``end`` - 1 of a file, in C order. dtype: as safetensors calls it, of `DTYPES`."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read_middle(self, size: int) -> bytes:
        """Up to ``size`` bytes from its middle."""
        size = min(size, self.end - self.start)
        with open(self.file, "rb") as opened:
            opened.seek(self.start + (self.end - self.start - size) // 2)
            return opened.read(size)

    def read(self, first: int, last: int, columns: tuple[int, int] | None = None) -> np.ndarray:
        """Rows ``first`` to ``last`` - 1; of a matrix, these columns of them. Raises OSError."""
        dtype, shape = np.dtype(DTYPES[self.dtype]), (last - first, *self.shape[1:])
        start = self.start + first * math.prod(self.shape[1:]) * dtype.itemsize
        if columns is not None and columns != (0, self.shape[1]):
            return np.array(np.memmap(self.file, dtype, "r", start, shape)[:, slice(*columns)])
        found = np.empty(shape, dtype)
        rest = memoryview(found.reshape(-1).view(np.uint8))
        with open(self.file, "rb", buffering=0) as opened:
            while rest:
                count = os.preadv(opened.fileno(), [rest], start)
                if not count:
                    raise OSError(f"it ends before byte {start}")
                rest, start = rest[count:], start + count
        return found


def places(file: pathlib.Path) -> dict[str, Place]:
    """Where each tensor of a file lies, whose header is known to be sound (`files_of_tensors`)."""
    found = file.stat()
    return _places(file, (found.st_size, found.st_mtime_ns, found.st_ino))


@functools.lru_cache(maxsize=256)
def _places(file: pathlib.Path, state: tuple[int, ...]) -> dict[str, Place]:
    """``state``: changes when the file does."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    found = {}
    for name, fields in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in fields["data_offsets"])
            found[name] = Place(file, fields["dtype"], tuple(fields["shape"]), start, end)
    return found


def _names(folder: pathlib.Path, what: str) -> list[str]:
    """The names of a folder's weight files. Those of an index are plain names, so that a downloaded index cannot name
    any other file of the machine."""
    index = folder / WEIGHT_INDEX
    if not index.is_file():
        return ["model.safetensors"]
    found = json_files.read_object(index, what).get("weight_map")
    names = list(found.values()) if isinstance(found, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{what}: {index} is not a safetensors index; weight_map should give the file of each tensor")
    outside = [name for name in names if name in ("", ".", "..") or any(mark in name for mark in "/\\:\0")]
    if outside:
        raise BadInput(f"{what}: {index} names {shown(outside[0])}; it should name files of its own folder")
    return sorted(set(names))


def _check_is_file(path: pathlib.Path, what: str) -> None:
    folder, name = path.parent, path.name
    try:
        if path.is_file():
            return
        is_there = path.exists() or path.is_symlink()
    except OSError as error:  # the name is too long, or the folder may not be entered
        raise BadInput(f"{what}: {shown(name)} in {folder} cannot be read ({error.strerror})") from None
    raise BadInput(f"{what}: {f'{path} is not a file' if is_there else f'{folder} has no {name}{conversion(folder)}'}")


def _header(path: pathlib.Path, what: str) -> list[str]:
    """The names of the tensors in a file."""
    try:
        with safetensors.safe_open(path, framework="numpy"):  # refuses whatever is not a whole file
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            pairs = json.loads(file.read(length), object_pairs_hook=list)
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{what}: {path} is not a whole safetensors file ({error})") from None
    names = sorted(name for name, _ in pairs if name != "__metadata__")
    for name, after in zip(names, names[1:], strict=False):
        if name == after:  # safetensors takes the last
            raise BadInput(f"{what}: {path} has the tensor {name} twice")
    return names


def conversion(folder: pathlib.Path) -> str:
    """How to make safetensors of pickled weights, where a folder has those, or is of the hub, which gives none."""
    from_hub = next((part for part in folder.parts if part.startswith("models--")), None)
    if not from_hub and not any(folder.glob("*.bin*")):
        return ""
    settings = folder / "config.json"
    if settings.is_file() and "recurrent_drafting" in settings.read_text(errors="replace"):
        load = 'torch.load(BIN, weights_only=True), then safetensors.torch.save_file(it, "model.safetensors")'
        return f"; .bin files are not read, because unpickling runs code: convert a head's with {load}"
    name = from_hub.removeprefix("models--").replace("--", "/") if from_hub else str(folder)
    return (
        "; .bin files are not read, because unpickling runs code: convert them with transformers,"
        f" AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(FOLDER)"
    )


@dataclasses.dataclass(frozen=True)
class Delta:
    """What is added to a matrix ``[out, in]`` of a file: scale B A, with a ``[R, in]`` and b ``[out, R]`` in float32."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def part(self, rows: slice, columns: slice) -> np.ndarray:
        """Some rows and columns of it."""
        return np.float32(self.scale) * (self.b[rows] @ self.a[:, columns])


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file; each ``width`` rows of it stand for ``copies`` times as many.

    ``what``: the option that names the folder, for errors; ``delta``: what is added to it, where an adapter changes it.
    """

    file: pathlib.Path
    name: str
    transposed: bool
    copies: int
    width: int
    what: str
    delta: Delta | None = None

    def part(self, index: tuple[slice, ...], shape: tuple[int, ...], dtype) -> np.ndarray:
        """The part ``index`` of a leaf of ours, read a few rows at a time.

        Raises:
          BadInput: a number in it is NaN or Inf, or becomes Inf in ``dtype``.
        """
        ranges = [each.indices(size)[:2] for each, size in zip(index, shape, strict=True)]
        part = np.empty([stop - start for start, stop in ranges], dtype)
        as_stored = part.T if self.transposed else part
        (first, last), *columns = ranges[::-1] if self.transposed else ranges
        row = max(1, as_stored[:1].nbytes)
        rows = self.width if self.copies > 1 else max(1, CHUNK_BYTES // row)
        for at in range(first, last, rows):
            end = min(at + rows, last)
            source = at if self.copies == 1 else at // (rows * self.copies) * rows
            as_stored[at - first : end - first] = self._finite(self._read((source, source + end - at), *columns), dtype)
        return part

    def _read(self, *ranges: tuple[int, int]) -> np.ndarray:
        rows, *columns = ranges
        try:
            chunk = places(self.file)[self.name].read(*rows, *columns)
        except (OSError, ValueError, KeyError) as error:  # it has changed since its header was read
            raise BadInput(f"{self.what}: {self.file} cannot be read ({getattr(error, 'strerror', None) or error})") from None
        return chunk if self.delta is None else chunk.astype(np.float32) + self.delta.part(*(slice(*each) for each in ranges))

    def _finite(self, chunk: np.ndarray, dtype) -> np.ndarray:
        """The chunk in ``dtype``."""
        with np.errstate(over="ignore", invalid="ignore"):
            cast = chunk.astype(dtype, copy=False)
        if is_finite(cast):
            return cast
        first = np.flatnonzero(~np.isfinite(cast.astype(np.float64)))[0]
        value = float(chunk.ravel()[first])
        why = f"{value:g} is too large for {np.dtype(dtype)}" if np.isfinite(value) else f"the first is {value:g}"
        raise BadInput(f"{self.what}: {self.name} in {self.file} holds NaN or Inf ({why})")


def is_finite(values: np.ndarray) -> bool:
    """Whether no number is NaN or Inf. This looks at the bits, for NumPy's own test of bfloat16 takes 40 times as long:
    of the numbers of one sign, NaN and Inf are those whose bits, read as a whole number, are largest."""
    if not values.size or values.dtype.kind in "iu":
        return True
    size = values.dtype.itemsize
    infinity = int(np.asarray(np.inf, values.dtype).view(f"u{size}"))
    sign = 1 << (8 * size - 1)
    return bool(values.view(f"i{size}").max() < infinity and values.view(f"u{size}").max() < infinity | sign)
