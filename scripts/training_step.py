"""A training step of a head on a frozen target at full size, with random weights: seconds and tokens per second, as JSON."""

import dataclasses
import functools
import json
import pathlib
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from infer import stages, synthetic
from redrafter_jax import loss
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.model.shapes import SHAPES
from train.data import rows
from train.run import step


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Time a training step."""

    output: pathlib.Path
    """JSON file for the result."""
    shape: str = "llama-7b"
    """Of the target, as in infer.benchmark."""
    layers: int | None = None
    """Fewer layers than it has."""
    head: str = "slim"
    """slim or full."""
    rows: int = 4
    """Texts in a batch."""
    row_length: int = 1024
    """Tokens of a text."""
    repeats: int = 5
    """Steps that are timed."""


def measure(options: StepOptions) -> dict:
    """The seconds of each step, the first of which is not counted; and what the compiled step needs."""
    jax.set_mesh(make_mesh())
    config = SHAPES[options.shape]
    config = dataclasses.replace(config, num_hidden_layers=options.layers or config.num_hidden_layers)
    target = synthetic.random_target(jax.random.key(0), config, jnp.bfloat16)
    schedule = step.Schedule(1000)
    state = step.start(jax.random.key(1), synthetic.head_config(config, options.head), schedule)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (options.rows, options.row_length), np.int32)
    batch = rows.put_unpacked(tokens)
    aim = functools.partial(step.step, schedule=schedule, config=loss.LossConfig())
    update = jax.jit(aim, donate_argnums=0).lower(state, target, batch).compile()
    seconds = []
    for _ in range(options.repeats + 1):
        made = []
        seconds.append(stages.clock(lambda state=state, made=made: made.append(update(state, target, batch)) or made))
        state, metrics = made[0]
    middle, memory = statistics.median(seconds[1:]), update.memory_analysis()
    return {
        "shape": options.shape, "layers": config.num_hidden_layers, "head": options.head, "dtype": "bfloat16 target, float32 head",
        "rows": options.rows, "row_length": options.row_length, "seconds": seconds[1:], "median_seconds": middle,
        "tokens_per_second": options.rows * options.row_length / middle, "gradient_norm": float(metrics.gradient_norm),
        "argument_bytes": memory.argument_size_in_bytes, "temporary_bytes": memory.temp_size_in_bytes,
    }  # fmt: skip


def main(options: StepOptions) -> None:
    """Measures, writes and prints."""
    result = measure(options)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['median_seconds']:.4f} s per step, {result['tokens_per_second']:,.0f} tokens/s")


if __name__ == "__main__":
    main(tyro.cli(StepOptions))
    sys.exit(0)
