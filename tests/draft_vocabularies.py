"""Heads with a draft vocabulary."""

import dataclasses

import jax
import numpy as np

from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter, full, slim
from redrafter_jax.model.target import Target

HEADS = {"full": full, "slim": slim}
U = 48


def cut(drafter: Drafter, ids) -> Drafter:
    """The head with these columns of its LM head alone."""
    config = dataclasses.replace(drafter.config, draft_vocab=len(ids))
    changes = {".ids.value": np.asarray(ids, np.int32)}
    changes |= {} if config.tied else {".lm_head.value": np.asarray(drafter.lm_head[...])[:, ids]}
    return vocabulary._rebuilt(drafter, config, changes)


def random_head(target: Target, kind: str, ids=None, blocks: int = 2) -> Drafter:
    """A head whose blocks and biases are not zero."""
    shape = HEADS[kind](target.config.vocab_size, target.config.hidden_size, blocks)
    drafter = Drafter(jax.random.key(3), dataclasses.replace(shape, draft_vocab=0 if ids is None else len(ids)), ids=ids)
    shift = lambda leaf: leaf + 0.03 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return vocabulary.merge(jax.tree.map(shift, vocabulary.trainable(drafter)), drafter)
