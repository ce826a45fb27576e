"""Seconds until the first token of a prompt: read as one batch's, read in chunks, and with what a row has already.

    python -m docs.scripts.prompt_reading --tokens 200 300 500
    python -m docs.scripts.prompt_reading --shape qwen3-0.6b --layers 4 --tokens 200 300 500

Plain decoding by the embedded target, or by one of this shape with as many layers and random weights. A next turn has the prompt, a
reply of 40 tokens and a question of 40; what it does not take it reads. All ways run in turn, compiled beforehand; medians.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import infer
from redrafter_jax.decode import prefill
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.policy import Needs
from redrafter_jax.decode.room import Room
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.model.shapes import SHAPES
from redrafter_jax.model.target import Target

NEW, MORE, ENDS = 64, 80, (32, 64)


def main() -> None:
    """Prints a row of the table for each number of tokens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[200, 300, 500])
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--shape")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    engine = Engine(random_target(options.shape, options.layers)) if options.shape else infer.load().engine.autoregressive()
    longest = max(options.tokens) + MORE
    rooms = {chunk: Room(prefill.Bucket(longest, NEW, 0, chunk=chunk), Needs(), 4, ENDS) for chunk in options.chunks}
    schedulers = {chunk: Scheduler(engine.runner, 2, room) for chunk, room in rooms.items()}
    columns = [f"chunks of {chunk}, ms | next turn, ms" for chunk in schedulers]
    print(f"| tokens | batch, ms | {' | '.join(columns)} |\n|---|---|{'---|---|' * len(columns)}", flush=True)
    for count in options.tokens:
        found = [times(engine, schedulers, count, seed) for seed in range(options.repeats + 1)][1:]
        print(
            f"| {count} | {' | '.join(f'{1e3 * statistics.median(each):.0f}' for each in zip(*found, strict=True))} |", flush=True
        )


def random_target(shape: str, layers: int) -> Target:
    jax.set_mesh(make_mesh())
    config = dataclasses.replace(SHAPES[shape], num_hidden_layers=layers)
    return jax.jit(Target, static_argnums=(1, 2))(jax.random.key(0), config, jnp.float32)


def times(engine: Engine, schedulers: dict[int, Scheduler], count: int, seed: int) -> list[float]:
    """Seconds of each way, for a prompt that no way has seen."""
    ids = np.random.default_rng(seed).integers(0, engine.target.config.vocab_size, count + MORE).tolist()
    began = time.perf_counter()
    next(engine.stream([ids[:count]], Sampling(), Limits(NEW), [0]))
    found = [time.perf_counter() - began]
    for scheduler in schedulers.values():
        scheduler.reset()
        for prompt in (ids[:count], ids):
            ticket = scheduler.submit(*engine.requests([prompt], Sampling(), Limits(NEW), [0]))
            began = time.perf_counter()
            scheduler.step(0)
            found.append(time.perf_counter() - began)
            scheduler.cancel(ticket)
    return found


if __name__ == "__main__":
    main()
