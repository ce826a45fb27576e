"""One round of a head from each of many places of a text: which of the nodes the target accepted."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from redrafter_jax.decode import loop, prefill, sample, verify
from redrafter_jax.decode.engine import Engine, Sampling
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.devices import processes

CONTEXT_TOKENS = 64


def read(engine: Engine, contexts: list[list[int]], temperature: float, batch: int) -> dict[str, np.ndarray]:
    """Of every node of the rounds ``[R, N]``: ``depth``, ``parent`` (a node), ``score``, ``valid`` (bool) and ``accepted`` (bool; the
    root is). Contexts have `CONTEXT_TOKENS` tokens each; those behind the last full batch are left out."""
    parts = list(_batches(engine, contexts, temperature, batch))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _batches(engine: Engine, contexts: list[list[int]], temperature: float, batch: int) -> Iterator[dict[str, np.ndarray]]:
    length = engine.proposer.round.length
    bucket = prefill.bucket(CONTEXT_TOKENS, length + 1, length)
    with jax.set_mesh(engine.mesh):
        for first in range(0, len(contexts) - batch + 1, batch):
            policy = make_policy([Sampling(temperature)] * batch, list(range(first, first + batch)))
            sizes = ([size] * batch for size in (CONTEXT_TOKENS, length + 1))
            given = (contexts[first : first + batch], *sizes, [[-1]] * batch)
            placed = (processes.put(np.asarray(values, np.int32), "data") for values in given)
            state = loop.start(engine.target, engine.proposer, *placed, policy, bucket)
            yield {name: np.asarray(value) for name, value in _round(engine.target, engine.proposer, state).items()}


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
