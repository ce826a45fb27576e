"""Reads the tensors of a model by several threads, hands them out in their order, and shows how far it is.

Reading a file, casting and turning over release Python's lock, so threads share the work. Not here: what is read (`tensors.py`),
where its bytes are (`weight_files.py`).
"""

import collections
import concurrent.futures
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm.auto import tqdm

from redrafter_jax.devices import processes

MAX_READERS = 4  # threads; more read no faster from one disk
MAX_SHARE_AHEAD = 0.05  # of a model's bytes: what is read and not yet handed out, if one tensor is not more
MIN_SHOWN_BYTES = 1 << 28  # a smaller model needs no bar
BAR_DELAY_SECONDS = 1.0
Read = TypeVar("Read")


def in_turn(tasks: Sequence[Callable[[], Read]], sizes: Sequence[int]) -> Iterator[Read]:
    """What the tasks return, in their order. They run in threads, ahead of the reader of this iterator by at most
    `MAX_SHARE_AHEAD` of all bytes, or by the largest of them.

    Args:
      sizes: bytes of what each returns.

    Raises:
      Whatever a task raises, the first of them in their order; those that have not begun are left out.
    """
    limit, ahead, waiting = max(max(sizes, default=0), int(MAX_SHARE_AHEAD * sum(sizes))), 0, collections.deque()
    readers = min(MAX_READERS, processes.count_cores())
    with _bar(sum(sizes)) as bar, concurrent.futures.ThreadPoolExecutor(readers) as pool:
        try:
            for task, size in [*zip(tasks, sizes, strict=True), (None, limit + 1)]:
                while waiting and ahead + size > limit:
                    oldest, its = waiting.popleft()
                    yield oldest.result()
                    ahead -= its
                    bar.update(its)
                if task is not None:
                    waiting.append((pool.submit(task), size))
                    ahead += size
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _bar(size: int) -> tqdm:
    """On a terminal, where there is something to wait for: bytes, and how many in a second."""
    is_shown = size >= MIN_SHOWN_BYTES and sys.stderr.isatty() and processes.is_first()
    units = {"unit": "B", "unit_scale": True, "delay": BAR_DELAY_SECONDS, "leave": False}
    return tqdm(total=size, desc="loading weights", disable=not is_shown, **units)
