"""Rows of a target's own greedy text, which heads learn from."""

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from infer import failures
from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.model.target import Target

BATCH = 64  # prompts decoded together


def greedy_rows(target: Target, prompts: Sequence[list[int]], length: int, batch: int = BATCH) -> np.ndarray:
    """``[n, length]``: prompts, all of the same length, with the target's greedy continuation. Raises BadInput as
    `failures.check`."""
    new = length - len(prompts[0])
    decoded = Engine(target).generate(prompts, limits=Limits(new=new), batch=min(batch, len(prompts)))
    written = list(tqdm(decoded, "own text", len(prompts)))
    failures.check(written)
    return np.asarray([prompt + reply.token_ids for prompt, reply in zip(prompts, written, strict=True)], np.int32)
