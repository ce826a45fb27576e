"""Heads with a draft vocabulary, or with candidates, converted for what uses them. Training excludes the table of ids; decoding
gathers its columns once; other programs need an LM head over the full vocabulary.

Not here: which tokens to take (`train/data/rows.py`), the lookups of a round (`drafter.py`).
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax.errors import BadInput
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.medusa import MedusaConfig
from redrafter_jax.model.target import Target, TargetConfig

Model = TypeVar("Model", Drafter, Target)
Config = TypeVar("Config", DrafterConfig, MedusaConfig, TargetConfig)
LOGIT_OF_OTHERS = -1e4  # the logit of a token that cannot be drafted, where there has to be one; within float16's range
# where a head without candidates has its matrices of all tokens, and where one with candidates has them transposed
BY_TOKEN = {".lm_head.value": ".candidates.rows.value", ".bigram.columns.value": ".candidates.bigram_rows.value"}
EXIT_MULTIPLE = 8  # exit widths stay multiples of this, for the sake of matrix units


def trainable(drafter: Drafter) -> Drafter:
    """The head with None in place of its table: what is differentiated, and what an optimizer keeps state for."""
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else None, drafter)


def merge(weights: Drafter, drafter: Drafter) -> Drafter:
    """The inverse of `trainable`: its result, with the table of ``drafter``."""
    return jax.tree.map(lambda new, old: old if new is None else new, weights, drafter, is_leaf=lambda leaf: leaf is None)


def cast(model: Model, dtype) -> Model:
    """A head, or a target, with weights of another number format; a table of ids stays as it is."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, model)


def materialised_config(config: Config, target: TargetConfig) -> Config:
    """The shapes of what `materialise_columns` makes of a head of these; Medusa's, and a small model's, decode as they are."""
    if not isinstance(config, DrafterConfig):
        return config
    is_copied = config.draft_vocab or (config.candidates and not target.tie_word_embeddings)
    return dataclasses.replace(config, tied=config.tied and not is_copied)


def materialise_columns(drafter: Drafter, target: Target) -> Drafter:
    """A slim head with a draft vocabulary as one that holds its U columns of the target's LM head, ``[D, U]``, so that they are
    gathered once and not in every round. A slim head with candidates as one that holds that LM head by token, ``[V, D]``, unless
    it is the target's embedding. Any other head as it is."""
    config = materialised_config(drafter.config, target.config)
    if config == drafter.config:
        return drafter
    if config.candidates:
        return _rebuilt(drafter, config, {".candidates.rows.value": target.columns().T})
    return _rebuilt(drafter, config, {".lm_head.value": target.columns(drafter.ids)})


def with_candidates(drafter: Drafter, count: int, down: np.ndarray, up: np.ndarray) -> Drafter:
    """A head without candidates as one that looks up C of them by the factors ``[E + r, R]`` and ``[R, V]`` of its LM head's matrix
    (`candidates.py`)."""
    config = dataclasses.replace(drafter.config, candidates=count, candidate_rank=down.shape[1])
    dtype = next(leaf.dtype for leaf in jax.tree.leaves(drafter) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    factors = {".candidates.down.value": down.astype(dtype), ".candidates.up.value": up.astype(dtype)}
    return _rebuilt(drafter, config, factors | _turned(drafter, BY_TOKEN))


def without_candidates(drafter: Drafter) -> Drafter:
    """The same head without candidates, which computes the logits of all tokens."""
    if drafter.candidates is None:
        return drafter
    config = dataclasses.replace(drafter.config, candidates=0, candidate_rank=0)
    return _rebuilt(drafter, config, _turned(drafter, {to: at for at, to in BY_TOKEN.items()}))


def _turned(drafter: Drafter, places: dict[str, str]) -> dict[str, jax.Array]:
    """The leaves at some places, transposed, at others."""
    return {to: leaf.T for at, leaf in _leaves(drafter).items() for to in [places.get(at)] if to}


def as_decoded(drafter: Drafter, target: Target) -> Drafter:
    """The head as decoding wants it, made once from the head as it is stored: `materialise_columns`, and `Drafter.split`."""
    return materialise_columns(drafter, target).split()


def expand(drafter: Drafter, target: Target) -> Drafter:
    """The head with an LM head of its own over the full vocabulary, as in Apple's architecture.

    A slim head gets the target's LM head. Of a draft vocabulary the result has the very distributions, although that
    architecture's LM head has no bias: the exit is widened by a feature that is always 1 (the bias of ``input_proj`` makes
    it, the residual blocks pass it on, for silu(0) = 0), and a token outside the draft vocabulary has `LOGIT_OF_OTHERS` for that
    feature and zeros elsewhere. A head that has no ``input_proj`` gets the identity for one.

    Raises:
      BadInput: the head has parts that the architecture has no place for.
    """
    if drafter.config.beyond_the_papers:
        has = " and ".join(drafter.config.beyond_the_papers)
        raise BadInput(f"the head has {has}, and Apple's architecture has no place for that; write it as it is, for this project")
    config, D = drafter.config, drafter.config.hidden_size
    if not config.draft_vocab:
        tied = {".lm_head.value": target.columns()} if config.tied else {}
        return _rebuilt(drafter, dataclasses.replace(config, tied=False), tied)
    drafter, E = materialise_columns(drafter, target), config.exit_size
    wide = E - E % EXIT_MULTIPLE + EXIT_MULTIPLE
    wide += EXIT_MULTIPLE if wide == 2 * D else 0  # at that width the architecture has no input_proj
    old = {path: np.asarray(leaf) for path, leaf in _leaves(drafter).items()}
    dtype = old[".lm_head.value"].dtype
    weight = old.get(".input_proj.weight.value", np.eye(2 * D, dtype=dtype))
    one = np.zeros(wide - E, dtype)
    one[0] = 1
    new = {
        ".input_proj.weight.value": np.pad(weight, ((0, 0), (0, wide - E))),
        ".input_proj.bias.value": np.concatenate([old.get(".input_proj.bias.value", np.zeros(E, dtype)), one]),
    }
    for path, leaf in old.items():
        if path.startswith(".blocks"):
            new[path] = np.pad(leaf, [(0, wide - E)] * leaf.ndim)
    columns = np.zeros((wide, config.vocab_size), dtype)
    columns[E] = LOGIT_OF_OTHERS
    columns[:E, old[".ids.value"]] = old[".lm_head.value"]
    columns[E, old[".ids.value"]] = 0
    shapes = dataclasses.replace(config, tied=False, draft_vocab=0, exit_size=wide)
    return _rebuilt(drafter, shapes, new | {".lm_head.value": columns})


def _leaves(drafter) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(drafter)}


def _rebuilt(drafter: Drafter, config: DrafterConfig, changes: dict[str, jax.Array | np.ndarray]) -> Drafter:
    """A head of these shapes with the leaves of ``drafter``, but for the changes; each where its sharding puts it."""
    leaves = _leaves(drafter) | changes
    like = jax.eval_shape(lambda: Drafter(jax.random.key(0), config))
    placed = [jax.device_put(leaves[path], abstract.sharding.spec) for path, abstract in _leaves(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)
