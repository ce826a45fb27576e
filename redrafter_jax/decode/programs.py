"""What decodes the batches of one bucket, compiled ahead of the first of them.

The programs take the arrays of target and proposer as one plain list. A module of Flax is flattened in Python at every call,
which costs as much as a short round (docs/decisions.md); so it is flattened once.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp

from redrafter_jax.decode import kept, ladder, loop, prefill, reading
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.insert import empty, insert
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.report import TEXTS
from redrafter_jax.decode.room import Room
from redrafter_jax.model.target import Target

RUN, READ = "run of rows and way", "read of tokens"  # begin the names of programs of which there are several
NOTHING = contextlib.nullcontext


@dataclasses.dataclass(frozen=True)
class Programs:
    """``start(weights, *inputs)`` is `loop.start`, ``run(weights, state, rounds, ends)`` is `loop.run`, which donates the state;
    ``weights``: of the target and the proposer that they were compiled for, by `flatten`."""

    start: jax.stages.Compiled
    run: jax.stages.Compiled


@dataclasses.dataclass(frozen=True)
class Refilled:
    """What decodes a running batch whose rows are refilled: ``empty()`` is its state before the first request; ``insert(state, row,
    one)`` is `insert.insert`, and ``swap(state, one, other)`` is `ladder.swap`, which donate the running state; ``runs[r, w]`` as
    ``run`` of `Programs`, of the first r rows with the way to draft number w, for the weights of that way; ``text(parts, row)`` is
    `ladder.row_of` of `report.TEXTS`, and ``logprobs`` the same of the state's log-probabilities, None where no row reports them.

    A prompt is read by ``take(state, row, length)``, by ``reads[N](weights, reading, tokens, start, length)`` for each chunk of N
    tokens, and by ``begin(weights, reading, tokens, limit, stop_ids, policy)``, which are those of `reading`, with the weights of
    the first way; the last two donate what was read. ``scoring(weights, *inputs)`` is `loop.start` of a few rows with the
    log-probabilities of their prompts; None where no request may ask for them.

    rows: r of each program, ascending; ways: how many there are.
    """

    empty: jax.stages.Compiled
    insert: jax.stages.Compiled
    swap: jax.stages.Compiled
    take: jax.stages.Compiled
    begin: jax.stages.Compiled
    reads: Mapping[int, jax.stages.Compiled]
    runs: Mapping[tuple[int, int], jax.stages.Compiled]
    text: jax.stages.Compiled
    logprobs: jax.stages.Compiled | None
    scoring: jax.stages.Compiled | None

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(sorted({rows for rows, _ in self.runs}))

    @property
    def ways(self) -> int:
        return len({way for _, way in self.runs})


def flatten(target: Target, proposer: Proposer) -> list[jax.Array]:
    """The arrays of both, as programs take them."""
    return jax.tree.leaves((target, proposer))


def compile_programs(target: Target, proposer: Proposer, inputs: tuple, bucket: prefill.Bucket, on_compile=NOTHING) -> Programs:
    """Compiles both programs in parallel for the mesh that is set, or takes those that an earlier process has compiled; nothing
    runs."""

    def build() -> dict:
        weights, structure = jax.tree.flatten((target, proposer))
        start = _start(structure, bucket)
        state = jax.eval_shape(start, weights, *inputs)
        return _compile({"start": jax.jit(start).lower(weights, *inputs), "run": _lower_run(structure, weights, state)})

    return Programs(**kept.programs(("batch", bucket), (target, proposer, inputs), build, on_compile))


def compile_refilled(
    target: Target, ways: Sequence[Proposer], inputs: tuple, few: tuple, room: Room, sizes: Sequence[int], on_compile=NOTHING
) -> Refilled:
    """Likewise. Of proposers with a memory only the first decodes: it would miss what others decode.

    Args:
      ways: to draft, the first of which reads prompts.
      inputs: of the running batch.
      few: of the few rows that are read at a time.
      sizes: rows of the programs that decode.
      on_compile: makes a context for compiling.
    """
    given = (target, tuple(ways), inputs, few)
    found = kept.programs(("refilled", room, sizes), given, lambda: _build_refilled(*given, room, sizes), on_compile)
    runs = {name[1:]: program for name, program in found.items() if name[0] == RUN}
    reads = {name[1]: program for name, program in found.items() if name[0] == READ}
    others = {name: program for name, program in found.items() if isinstance(name, str)}
    return Refilled(**{"logprobs": None, "scoring": None} | others, runs=runs, reads=reads)


def _build_refilled(target: Target, ways: Sequence[Proposer], inputs: tuple, few: tuple, room: Room, sizes: Sequence[int]) -> dict:
    weights, structure = jax.tree.flatten((target, ways[0]))
    bucket, (tokens, length, *others) = room.bucket, few

    def read(weights, was, tokens, start, length):
        return reading.read(*structure.unflatten(weights), was, tokens, start, length, bucket)

    def begin(weights, was, *given):
        return reading.begin(*structure.unflatten(weights), was, *given, bucket)

    def blank(rows):
        return jax.eval_shape(functools.partial(reading.blank, target, ways[0], rows, bucket.slots))

    def take(state, row, length):
        return reading.take(ways[0], state, row, length)

    number, one, all_rows = jnp.int32(0), blank(len(tokens)), blank(len(inputs[0]))
    state = jax.eval_shape(begin, weights, all_rows, inputs[0], *inputs[2:])
    begun = jax.eval_shape(begin, weights, one, tokens, *others)
    texts = {name: getattr(state, name) for name in TEXTS}
    lowered = {
        "empty": jax.jit(functools.partial(empty, state)).lower(),
        "insert": jax.jit(insert, donate_argnums=0).lower(state, number, begun),
        "swap": jax.jit(ladder.swap, donate_argnums=0).lower(state, number, number),
        "take": jax.jit(take).lower(state, number, number),
        "begin": jax.jit(begin, donate_argnums=1).lower(weights, one, tokens, *others),
        "text": jax.jit(ladder.row_of).lower(texts, number),
        **({} if state.logprobs is None else {"logprobs": jax.jit(ladder.row_of).lower(state.logprobs, number)}),
        **({"scoring": jax.jit(_start(structure, bucket, scores=True)).lower(weights, *few)} if room.scores else {}),
    }
    runs = {(RUN, *key): run for key, run in _lower_runs(target, ways, state, sizes).items()}
    reads = {
        (READ, size): jax.jit(read, donate_argnums=1).lower(weights, one, tokens[:, :size], number, length) for size in room.chunks
    }
    return _compile(lowered | runs | reads)


def _lower_runs(target: Target, ways: Sequence[Proposer], state: DecodeState, sizes: Sequence[int]) -> dict:
    memories = [jax.eval_shape(_begin, target, way, state) for way in ways] if len(ways) > 1 else [None]
    if any(map(jax.tree.leaves, memories)):
        ways, memories = ways[:1], [None]
    return {
        (rows, number): _lower_run(*_split(target, way), state, rows, memory)
        for number, (way, memory) in enumerate(zip(ways, memories, strict=True))
        for rows in sizes
    }


def _begin(target: Target, proposer: Proposer, state: DecodeState):
    return proposer.begin(target, state.view())


def _split(target: Target, proposer: Proposer) -> tuple:
    weights, structure = jax.tree.flatten((target, proposer))
    return structure, weights


def _start(structure, bucket: prefill.Bucket, scores: bool = False) -> Callable:
    def start(weights, *inputs):
        return loop.start(*structure.unflatten(weights), *inputs, bucket=bucket, scores=scores)

    return start


def _lower_run(structure, weights, state: DecodeState, rows: int | None = None, memory=None) -> jax.stages.Lowered:
    """rows: of the state, from its first on, that are decoded, None for all; memory: of a proposer that did not begin the state,
    which is empty, as the state's is, but for its structure."""

    def decode(weights, state, rounds, ends):
        models = structure.unflatten(weights)
        if memory is None:
            return loop.run(*models, state, rounds, ends)
        own = dataclasses.replace(state, memory=memory)
        return dataclasses.replace(loop.run(*models, own, rounds, ends), memory=state.memory)

    def run(weights, state, rounds, ends):
        if rows is None or rows == state.done.shape[0]:
            return decode(weights, state, rounds, ends)
        return ladder.put_back(state, decode(weights, ladder.first(state, rows), rounds, ends))

    return jax.jit(run, donate_argnums=1).lower(weights, state, jnp.int32(0), jnp.int32(0))


def _compile(lowered: dict) -> dict:
    with ThreadPoolExecutor(len(lowered)) as pool:
        return dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))
