"""One round of a head from each of many places of a text: which of the nodes the target accepted."""

import dataclasses
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax.decode import loop, prefill, sample, verify
from redrafter_jax.decode.engine import Engine, Sampling
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.devices import processes
from redrafter_jax.model.parts import all_features, pick_features

CONTEXT_TOKENS = 64


def read(engine: Engine, contexts: list[list[int]], temperature: float, batch: int) -> dict[str, np.ndarray]:
    """Of every node of the rounds ``[R, N]``: ``depth``, ``parent`` (a node), ``score``, ``valid`` (bool) and ``accepted`` (bool,
    True at the root). Contexts have `CONTEXT_TOKENS` tokens each; those behind the last full batch are left out."""
    return read_each({"": engine}, contexts, temperature, batch)[""]


def read_each(
    engines: dict[Hashable, Engine], contexts: list[list[int]], temperature: float, batch: int
) -> dict[Hashable, dict[str, np.ndarray]]:
    """`read` of several engines of the same target, whose proposers have no memory, so that contexts are prefilled once."""
    any_engine, parts = next(iter(engines.values())), {name: [] for name in engines}
    shown = all_features(engine.target.features for engine in engines.values())
    length = max(engine.proposer.round.length for engine in engines.values())
    bucket = prefill.bucket(CONTEXT_TOKENS, length + 1, length)
    with jax.set_mesh(any_engine.mesh):
        for first in range(0, len(contexts) - batch + 1, batch):
            policy = make_policy([Sampling(temperature)] * batch, list(range(first, first + batch)))
            sizes = ([size] * batch for size in (CONTEXT_TOKENS, length + 1))
            given = (contexts[first : first + batch], *sizes, [[-1]] * batch)
            placed = (processes.put(np.asarray(values, np.int32), "data") for values in given)
            started = loop.start(any_engine.target.showing(shown), any_engine.proposer, *placed, policy, bucket)
            for name, engine in engines.items():
                h = pick_features(started.h, shown, engine.target.features)
                found = _round(engine.target, engine.proposer, dataclasses.replace(started, h=h))
                parts[name].append({field: np.asarray(value) for field, value in found.items()})
    return {name: {field: np.concatenate([part[field] for part in each]) for field in each[0]} for name, each in parts.items()}


@jax.jit
def _round(target, proposer, state) -> dict[str, jax.Array]:
    policy, length = state.policy, proposer.round.length
    noise_BMV = sample.noise(policy, state.cache.length + 1, length + 1, target.config.vocab_size)
    tree, _ = proposer.propose(target, state.view(sample.show_noise(policy, noise_BMV)), state.memory)
    verdict = verify.verify(target, tree, state.cache, policy, noise_BMV, length, state.history())
    is_step_BM = jnp.arange(length + 1) <= verdict.accepted[:, None]
    on_path_BMN = verdict.path[:, :, None] == jnp.arange(tree.tokens.shape[1])
    accepted_BN = jnp.any(on_path_BMN & is_step_BM[..., None], axis=1)
    return {"depth": tree.depth, "parent": tree.parent, "score": tree.scores, "valid": tree.valid, "accepted": accepted_BN}
