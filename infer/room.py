"""Checks, once the prompts are known and before any weight is read, that memory suffices for a pair and the cache of its
batches."""

from infer import pair
from redrafter_jax.decode import prefill
from redrafter_jax.devices import memory, placement
from redrafter_jax.devices.placement import Footprint


def check(resolved: pair.Resolved, longest: int, new: int, rows: int, length: int, refills: bool = False) -> None:
    """Refuses a batch whose cache does not fit beside the weights; names smaller options that would do.

    Args:
      longest: tokens of the longest prompt.
      new: new tokens at most.
      rows: prompts that are decoded together.
      length: drafted tokens per beam, L.
      refills: rows are refilled as they end (`placement.to_decode`).

    Raises:
      BadInput: a device of the resolved mesh, or the host, has too little memory.
    """

    def load(rows: int = rows, new: int = new, dtype: str = resolved.dtype, found: pair.Resolved = resolved) -> Footprint:
        slots = prefill.bucket(longest, new, length).slots
        return placement.to_decode(found.target_config, resolved.drafter_config, dtype, rows, slots, refills=refills and rows > 1)

    if memory.shortage(load(), resolved.mesh) is None:
        return
    ways, shards = {}, resolved.mesh[0]
    fewer = _first_that_fits({count: load(rows=count) for count in range(rows - shards, 0, -shards)}, resolved.mesh)
    shorter = _first_that_fits({count: load(new=count) for count in _smaller_buckets(new)}, resolved.mesh)
    if fewer is not None:
        ways[f"--batch-size {fewer}"] = load(rows=fewer)
    if shorter is not None:
        ways[f"--max-new-tokens {shorter}"] = load(new=shorter)
    ways["--dtype bfloat16"] = load(dtype="bfloat16")
    ways["--weights int8"] = load(found=resolved.with_weights("int8"))
    cache = f"the cache of --batch-size {rows}, prompts of up to {longest} tokens and --max-new-tokens {new}"
    what = f"--target in {resolved.numbers}, with {cache},"
    memory.check(load(), resolved.mesh, what, ways, "shorter prompts or more devices")


def _first_that_fits(loads: dict[int, Footprint], mesh: tuple[int, int]) -> int | None:
    return next((count for count, load in loads.items() if memory.shortage(load, mesh) is None), None)


def _smaller_buckets(new: int) -> list[int]:
    """Numbers of new tokens that need a smaller cache than ``new``, largest first: half of it, a quarter, and so on."""
    halves = []
    while new > 1 and prefill.bucket(1, new // 2, 0).new < prefill.bucket(1, new, 0).new:
        new //= 2
        halves.append(new)
    return halves
