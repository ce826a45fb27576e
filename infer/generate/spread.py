"""`infer.generate --ray-workers`: the prompts of a file in many workers, and the lines of one process in one file.

A block is some conversations: the numbers of their replies that are not in the file, and the texts of those that are.
"""

import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import jax

from infer import programs, workers
from infer.generate import session
from infer.generate.batches import Batches
from infer.generate.task import Task
from infer.prompts import Prompt
from infer.replies import Owner, ReplyFile

BLOCK_BATCHES = 8  # batches in a block, so that rows are refilled, at most


def run(task: Task, given: Sequence[Prompt]) -> int:
    """Decodes what is not in the file; returns the exit code."""
    cluster, cache = task.destination.workers, jax.config.jax_compilation_cache_dir
    runs, indexes = workers.ask(cluster, functools.partial(_describe, task, given))
    file = ReplyFile(task.destination.file, Owner.of_runs(dict(enumerate(runs))))
    if file.done:
        print(f"{len(file.done)} of {len(runs)} replies are in {file.path} already", file=sys.stderr)
    size = max(1, min(BLOCK_BATCHES * task.decoding.batch, -(-len(given) // cluster.ray_workers)))
    file.begin()
    failed = file.failed
    blocks = blocks_of(indexes, file, size)
    for line in workers.spread(cluster, functools.partial(_decoder, task, given, cache), blocks) if blocks else ():
        file.write([line])
        failed += line["finish_reason"] == "error"
    file.sort()
    return session.exit_code(failed, len(runs))


def blocks_of(indexes: Sequence[int], file: ReplyFile, size: int) -> list[dict]:
    """Blocks of ``size`` conversations with a missing reply; indexes: of each reply the number of its prompt."""
    missing = [number for number in range(len(indexes)) if number not in file.done]
    wanted = sorted({indexes[number] for number in missing})
    said = {number: line.get("text") for number, line in file.lines().items()}
    blocks = []
    for first in range(0, len(wanted), size):
        own = set(wanted[first : first + size])
        numbers = [number for number in missing if indexes[number] in own]
        blocks.append({"numbers": numbers, "said": [[n, text] for n, text in sorted(said.items()) if indexes[n] in own]})
    return blocks


def _describe(task: Task, given: Sequence[Prompt]) -> tuple[list[str], list[int]]:
    """Of each reply the hash of its line, and the number of its prompt."""
    _, turns, _, runs = session.plan(task, given)
    return runs, [turn.index for turn in turns.all]


def _decoder(task: Task, given: Sequence[Prompt], cache: str | None) -> Callable[[dict], Iterator[dict]]:
    """What decodes blocks, with the pair in memory."""
    if cache is not None:
        programs.use_cache(pathlib.Path(cache))
    prepared, turns, seeds, runs = session.plan(task, given)
    session.check_room(prepared, turns)
    batches = Batches(prepared.task, prepared.fill(), turns, [seeds[turn.index] for turn in turns.all], runs, None)

    def decode(block: dict) -> Iterator[dict]:
        for number, text in block["said"]:
            turns.answer(number, text)
        return batches.lines(block["numbers"])

    return decode
