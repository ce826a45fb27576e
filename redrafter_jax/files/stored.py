"""Parts of a leaf of ours from the tensors of files, a few rows at a time, none of their numbers NaN or Inf.

Not here: where the bytes of a tensor are (`weight_files.py`), which tensors make up a leaf (`tensors.py`).
"""

import dataclasses
import functools
import pathlib

import numpy as np

from redrafter_jax.errors import BadInput
from redrafter_jax.files.weight_files import DTYPES, is_finite, places

CHUNK_BYTES = 1 << 19  # bytes that are read, cast and turned over at a time, such that they stay in a core's cache


@dataclasses.dataclass(frozen=True)
class LowRankDelta:
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

    ``what``: the option that names the folder, for errors; ``first``: the row of the tensor at which it begins; ``plane``: the
    matrix that it is part of, where the tensor has three axes; ``delta``: what is added to the tensor, where an adapter changes it;
    is_scale: of a quantised matrix, so that no number is negative.
    """

    file: pathlib.Path
    name: str
    transposed: bool
    copies: int
    width: int
    what: str
    first: int = 0
    plane: int | None = None
    delta: LowRankDelta | None = None
    is_scale: bool = False

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers: that of the file, or float32 where something is added."""
        return np.dtype(np.float32 if self.delta else DTYPES[places(self.file)[self.name].dtype])

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
        rows, *columns = ranges
        try:
            chunk = places(self.file)[self.name].read(*rows, *columns, plane=self.plane)
        except (OSError, ValueError, KeyError) as error:  # it has changed since its header was read
            raise BadInput(f"{self.what}: {self.file} cannot be read ({getattr(error, 'strerror', None) or error})") from None
        return chunk if self.delta is None else chunk.astype(np.float32) + self.delta.part(*(slice(*each) for each in ranges))

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
class StoredStack:
    """Matrices of a leaf with three axes, along its first."""

    each: tuple[Stored, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers, as `Stored.dtype`: one that has room for those of every matrix."""
        return functools.reduce(np.promote_types, (stored.dtype for stored in self.each))

    def part(self, index: tuple[slice, ...], shape: tuple[int, ...], dtype) -> np.ndarray:
        """As `Stored.part`, one matrix after the other."""
        wanted = self.each[index[0]]
        size = [len(range(*one.indices(length))) for one, length in zip(index, shape, strict=True)]
        part = np.empty(size, dtype)
        for number, stored in enumerate(wanted):
            part[number] = stored.part(index[1:], shape[1:], dtype)
        return part
