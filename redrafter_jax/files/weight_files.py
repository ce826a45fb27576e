"""The safetensors files of a folder: which tensors they hold, and parts of tensors, none of them NaN or Inf.

Whatever is wrong with a file is one sentence. Not here: what the tensors are for (`weights.py`).
"""

import dataclasses
import json
import pathlib

import ml_dtypes
import numpy as np
import safetensors

from redrafter_jax.errors import BadInput, shown
from redrafter_jax.files import json_files

WEIGHT_INDEX = "model.safetensors.index.json"
CHUNK_BYTES = 1 << 23  # bytes of a file that are read, cast and turned over at a time


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
class Stored:
    """A tensor in a file; each ``width`` rows of it stand for ``copies`` times as many.

    ``what``: the option that names the folder, for errors; ``first``: the row of the tensor at which it begins; ``plane``: the
    matrix that it is part of, where the tensor has three axes; is_scale: of a quantised matrix, so that no number is negative.
    """

    file: pathlib.Path
    name: str
    transposed: bool
    copies: int
    width: int
    what: str
    first: int = 0
    plane: int | None = None
    is_scale: bool = False

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
            source = self.first + (at if self.copies == 1 else at // (rows * self.copies) * rows)
            chunk = self._finite(self._read((source, source + end - at), *columns), dtype)
            as_stored[at - first : end - first] = chunk.reshape(end - at, *as_stored.shape[1:])  # a file has scales as [out, 1]
        return part

    def _read(self, *ranges: tuple[int, int]) -> np.ndarray:
        """Opened for each chunk: until it is closed, pages of a file stay mapped and count as this process's memory."""
        with safetensors.safe_open(self.file, framework="numpy") as opened:
            index = tuple(slice(*each) for each in ranges)
            tensor = opened.get_slice(self.name)
            return tensor[index] if self.plane is None else tensor[slice(self.plane, self.plane + 1), *index][0]

    def _finite(self, chunk: np.ndarray, dtype) -> np.ndarray:
        """The chunk in ``dtype``."""
        with np.errstate(over="ignore", invalid="ignore"):
            cast = chunk.astype(dtype, copy=False)
        if self.is_scale and cast.size and cast.min() < 0:
            least = float(cast.min())
            raise BadInput(f"{self.what}: {self.name} in {self.file} holds the scale {least:g}; scales are not negative")
        if is_finite(cast):
            return cast
        first = np.flatnonzero(~np.isfinite(cast.astype(np.float64)))[0]
        value = float(chunk.ravel()[first])
        why = f"{value:g} is too large for {np.dtype(dtype)}" if np.isfinite(value) else f"the first is {value:g}"
        raise BadInput(f"{self.what}: {self.name} in {self.file} holds NaN or Inf ({why})")


@dataclasses.dataclass(frozen=True)
class Float8(Stored):
    """A tensor in float8_e4m3fn, which safetensors cannot read into NumPy: its bytes are, where the header says that they are."""

    def _read(self, *ranges: tuple[int, int]) -> np.ndarray:
        with open(self.file, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))[self.name]
        at = 8 + length + header["data_offsets"][0]
        mapped = np.memmap(self.file, ml_dtypes.float8_e4m3fn, "r", at, tuple(header["shape"]))
        return np.array(mapped[tuple(slice(*each) for each in ranges)])


@dataclasses.dataclass(frozen=True)
class StoredStack:
    """Matrices of a leaf with three axes, along its first."""

    each: tuple[Stored, ...]

    def part(self, index: tuple[slice, ...], shape: tuple[int, ...], dtype) -> np.ndarray:
        """As `Stored.part`, one matrix after the other."""
        wanted = self.each[index[0]]
        size = [len(range(*one.indices(length))) for one, length in zip(index, shape, strict=True)]
        part = np.empty(size, dtype)
        for number, stored in enumerate(wanted):
            part[number] = stored.part(index[1:], shape[1:], dtype)
        return part


def is_finite(values: np.ndarray) -> bool:
    """Whether no number is NaN or Inf. This looks at the bits, for NumPy's own test of bfloat16 takes 40 times as long:
    of the numbers of one sign, NaN and Inf are those whose bits, read as a whole number, are largest."""
    if not values.size or values.dtype.kind in "iu":
        return True
    size = values.dtype.itemsize
    infinity = int(np.asarray(np.inf, values.dtype).view(f"u{size}"))
    sign = 1 << (8 * size - 1)
    return bool(values.view(f"i{size}").max() < infinity and values.view(f"u{size}").max() < infinity | sign)
