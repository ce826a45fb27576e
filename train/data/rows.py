"""Examples -> rows -> batches: packed, shuffled by seed and epoch; a step reads the same batch every time.

    row        a a a a a b b b c c c c c . .
    segments   1 1 1 1 1 2 2 2 3 3 3 3 3 0 0      0: padding
    positions  0 1 2 3 4 0 1 2 0 1 2 3 4 0 0

Not here: reading files (`records.py`, `examples.py`), datasets on disk (`datasets.py`), the update (`run/step.py`).
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from redrafter_jax.errors import BadInput
from redrafter_jax.loss import IGNORED_LABEL

UNPREDICTED_TOKENS = 2  # tokens of an example that a head reads before the first one that it predicts
READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed rows, each array ``[B, T]`` int32.

    Attributes:
      labels: the tokens, or IGNORED where their prediction does not count.
      segments: 1, 2, ... for the examples of a row, 0 for its padding.
      positions: within the example.
    """

    tokens: jax.Array
    labels: jax.Array
    segments: jax.Array
    positions: jax.Array


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens ``start .. end - 1`` of the example with number ``example``."""

    example: int
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


class Rows:
    """A sequence of packed rows over a sequence of examples (`tokens`, `labelled`, `where`). Its order depends on the
    examples alone. Examples longer than a row are cut; pieces without a label are left out.

    Args:
      what: names the examples in errors.

    Raises:
      BadInput: there is no label to predict.
    """

    def __init__(self, examples: Sequence[dict], length: int, what: str = "the training data"):
        self.examples, self.length = examples, length
        pieces, predicted = [], 0
        for number in range(len(examples)):
            labelled = np.asarray(examples[number]["labelled"]).astype(bool)
            for piece in _cut(labelled, number, length):
                pieces.append(piece)
                predicted += np.count_nonzero(labelled[piece.start + UNPREDICTED_TOKENS : piece.end])
        if not predicted:
            raise BadInput(
                f"{what}: there is no token to predict, for none of the {len(examples)} examples has a label after its first"
                f" {UNPREDICTED_TOKENS} tokens in a row"
            )
        self.plan = pack(pieces, length)

    @property
    def fill(self) -> float:
        """The share of the rows' tokens that is not padding."""
        return sum(piece.length for row in self.plan for piece in row) / (len(self.plan) * self.length)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = {name: np.zeros(self.length, np.int32) for name in ("tokens", "segments", "positions")}
        row["labels"] = np.full(self.length, IGNORED_LABEL, np.int32)
        at = 0
        for segment, piece in enumerate(self.plan[index], 1):
            example, inside = self.examples[piece.example], slice(at, at + piece.length)
            tokens, labelled = (np.asarray(example[name])[piece.start : piece.end] for name in ("tokens", "labelled"))
            row["tokens"][inside] = tokens
            row["labels"][inside] = np.where(labelled, tokens, IGNORED_LABEL)
            row["segments"][inside] = segment
            row["positions"][inside] = np.arange(piece.length)
            at += piece.length
        row["index"] = np.int32(index)
        return row

    def where(self, index: int) -> list[str]:
        """The records in a row, for messages."""
        names = [self.examples[piece.example].get("where", piece.example) for piece in self.plan[index]]
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _cut(labelled: np.ndarray, number: int, length: int) -> Iterator[Piece]:
    for start in range(0, len(labelled), length):
        end = min(start + length, len(labelled))
        if labelled[start:end].any():
            yield Piece(number, start, end)


def pack(pieces: Sequence[Piece], length: int) -> list[list[Piece]]:
    """Packs pieces into rows of at most ``length`` tokens by best-fit decreasing: the longest piece first, each into
    the fullest row that has room for it."""
    rows: list[list[Piece]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        at = bisect.bisect_left(open_rows, (piece.length, -1))
        if at == len(open_rows):
            room, row = length, len(rows)
            rows.append([])
        else:
            room, row = open_rows.pop(at)
        rows[row].append(piece)
        if room > piece.length:
            bisect.insort(open_rows, (room - piece.length, row))
    return rows


def find_most_frequent(examples: Sequence[dict], vocab_size: int, count: int) -> np.ndarray:
    """The ``count`` ids that are most frequent among the labelled tokens, ascending; ties go to smaller ids."""
    seen = np.zeros(vocab_size, np.int64)
    for number in range(len(examples)):
        tokens, labelled = (np.asarray(examples[number][name]) for name in ("tokens", "labelled"))
        seen += np.bincount(tokens[labelled.astype(bool)], minlength=vocab_size)
    return np.sort(np.argsort(-seen, kind="stable")[:count]).astype(np.int32)


def read_batches(rows: Rows, batch: int, seed: int, first: int, last: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """The batches of steps first..last-1, on the mesh, and the numbers of this process's rows in them. What a step
    reads is a function of (seed, step, batch) on any mesh: rows are shuffled anew in every epoch, and each process
    reads the rows of its own devices."""
    shuffled, mine = grain.MapDataset.source(rows).seed(seed).shuffle().repeat(), find_local_rows(batch)
    numbers = grain.MapDataset.range(first * len(mine), last * len(mine))
    read = numbers.map(lambda number: shuffled[number // len(mine) * batch + int(mine[number % len(mine)])])
    for host in read.batch(len(mine)).to_iter_dataset(READ_OPTIONS):
        index = host.pop("index")
        yield put_batch(host, batch), index


def find_local_rows(batch: int) -> np.ndarray:
    """The indices in a batch, ascending, of the rows on this process's devices."""
    parts = _row_sharding().addressable_devices_indices_map((batch, 1)).values()
    return np.unique(np.concatenate([np.arange(batch)[rows] for rows, _ in parts]))


def put_batch(host: dict[str, np.ndarray], batch: int | None = None) -> Batch:
    """Shards arrays ``[B, T]`` over ``data``.

    Args:
      batch: B, where ``host`` has this process's rows only (`find_local_rows`); None: it has all rows.
    """
    sharding = _row_sharding()

    def place(array: np.ndarray) -> jax.Array:
        if batch is None:
            return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
        mine = find_local_rows(batch)

        def take_part(part: tuple[slice, ...]) -> np.ndarray:
            return array[np.searchsorted(mine, np.arange(batch)[part[0]])]

        return jax.make_array_from_callback((batch, *array.shape[1:]), sharding, take_part)

    return Batch(**{name: place(array) for name, array in host.items()})


def _row_sharding() -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(jax.sharding.get_mesh(), P("data", None))


def put_unpacked(tokens: np.ndarray) -> Batch:
    """Rows of plain text ``[B, T]`` as a batch: one segment each, every token a label."""
    tokens = np.asarray(tokens, np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return put_batch({"tokens": tokens, "labels": tokens, "segments": np.ones_like(tokens), "positions": np.array(positions)})


def read_stream(stream: np.ndarray, length: int, batch: int, seed: int, first: int, last: int) -> Iterator[np.ndarray]:
    """The batches ``[batch, length]`` of steps first..last-1 from one long text: cut into rows, shuffled anew in every
    epoch.

    Raises:
      BadInput: the stream does not fill one batch.
    """
    count = len(stream) // length
    if count < batch:
        raise BadInput(
            f"--batch {batch}: the corpus has {len(stream)} tokens, which do not fill that many rows of {length} (--row-length and"
            " one more)"
        )
    cut = [stream[i * length : (i + 1) * length] for i in range(count)]
    steps = grain.MapDataset.source(cut).shuffle(seed).repeat().batch(batch)
    for step in range(first, last):
        yield steps[step]
