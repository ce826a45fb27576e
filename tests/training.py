"""Training runs that several tests share: a small recipe, examples, and runs that are stopped."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax import loss as loss_of
from train.data import rows
from train.run import loop, step
from train.run.recipe import Recipe


def recipe(steps: int, **other) -> Recipe:
    return Recipe(**{"steps": steps, "batch": 2, "row_length": 32, "positions": 2, "save_every": 2, "warmup": 2} | other)


def examples(count: int = 30) -> list[dict]:
    tokens = np.arange(32, dtype=np.int32) * 7 % 16 + 1
    return [
        {"tokens": np.roll(tokens, shift), "labelled": np.ones(32, bool), "where": f"example {shift}"} for shift in range(count)
    ]


def same(one, other) -> None:
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def stops_after(batches, count: int):
    def interrupted(*arguments):
        for index, batch in enumerate(batches(*arguments)):
            if index == count:
                raise KeyboardInterrupt
            yield batch

    return interrupted


def is_asked_to_end(monkeypatch, batch: int):
    """Sends SIGTERM to this process while batch number ``batch``, from 0, is read."""
    batches = rows.read_batches

    def asks(*arguments):
        for index, read in enumerate(batches(*arguments)):
            if index == batch:
                os.kill(os.getpid(), signal.SIGTERM)
            yield read

    monkeypatch.setattr(loop, "read_batches", asks)


def metrics(loss: float, norm: float, fill: float = 0.5) -> step.UpdateMetrics:
    parts = loss_of.Metrics(jnp.full(2, loss / 2), jnp.full((2, 5), loss / 10), jnp.ones(2), jnp.ones(2))
    return step.UpdateMetrics(parts, jnp.float32(norm), jnp.float32(fill))


def idle(state, *_, **__):
    """A step that changes nothing and compiles quickly."""
    return step.HeadState(state.step + 1, state.drafter, state.optimizer), metrics(2.0, 1.0)
