"""Decoding in many workers of a Ray cluster, each with a pair of its own: blocks of prompts go in, lines of replies come out.

    for line in spread(workers, make, blocks): ...      # in each worker make() gives what decodes a block

A worker that is lost is started again, and its block with it (Ray Data). JAX's devices are taken in the workers alone, so this
process needs none. Not here: what a block and a line are (`generate/spread.py`, `train/distill/spread.py`).
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from infer.options import check_range
from redrafter_jax.errors import BadInput

MAX_WORKERS, MAX_GPUS = 100_000, 1024
INSTALL = "pip install -r requirements-ray.txt, or redrafter-jax[ray]"


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many workers decode; without these options it is this process."""

    ray_workers: int = 0
    """Decode in so many workers of a Ray cluster, each with a pair of its own; 0: in this process."""
    ray_gpus: float = 0.0
    """With --ray-workers: GPUs of each worker, of those that Ray knows."""

    def check(self) -> None:
        """Raises BadInput for numbers out of range, and where Ray is missing."""
        check_range("ray_workers", self.ray_workers, 0, MAX_WORKERS)
        check_range("ray_gpus", self.ray_gpus, 0.0, float(MAX_GPUS))
        if self.ray_workers and importlib.util.find_spec("ray") is None:
            raise BadInput(f"--ray-workers needs ray; {INSTALL}")


def ask(workers: Workers, call: Callable[[], Any]) -> Any:
    """What a call returns in a worker. Raises its BadInput."""
    ray = _ray()
    found, refusal = ray.get(ray.remote(_answer).options(num_cpus=1, num_gpus=workers.ray_gpus).remote(call))
    if refusal is not None:
        raise BadInput(refusal)
    return found


def spread(workers: Workers, make: Callable[[], Callable[[Any], Iterable[dict]]], blocks: Sequence[Any]) -> Iterator[dict]:
    """The lines of all blocks, in any order. ``make`` is called once in each worker, and what it returns with one block after the
    other; both blocks and lines are JSON.

    Raises:
      BadInput: as ``make`` and what it returns do, in a worker.
    """
    ray = _ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    given = ray.data.from_items([{"block": json.dumps(block)} for block in blocks], override_num_blocks=len(blocks))
    size = ray.data.ActorPoolStrategy(size=min(workers.ray_workers, len(blocks)))
    how = {"batch_size": 1, "compute": size, "num_cpus": 1, "num_gpus": workers.ray_gpus}
    for row in given.map_batches(_Worker, fn_constructor_args=(make,), **how).iter_rows():
        if row["refusal"]:
            raise BadInput(row["refusal"])
        yield json.loads(row["line"])


class _Worker:
    """In a process of its own."""

    def __init__(self, make: Callable[[], Callable[[Any], Iterable[dict]]]):
        self._decode, self._refusal = _answer(make)

    def __call__(self, batch: dict) -> dict:
        lines, refusal = [], self._refusal
        for block in batch["block"] if refusal is None else ():
            found, refusal = _answer(lambda block=block: [json.dumps(line) for line in self._decode(json.loads(block))])
            lines += found or []
            if refusal is not None:
                break
        refused = [] if refusal is None else [refusal]
        return {"line": lines + [""] * len(refused), "refusal": [""] * len(lines) + refused}


def _answer(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call returns, or the sentence of its BadInput."""
    try:
        return call(), None
    except BadInput as error:
        return None, str(error)


def _ray():
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(logging_level="warning", log_to_driver=False)
    return ray
