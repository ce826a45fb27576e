"""How likely the target found the tokens of a prompt: measured chunk by chunk as the prompt is read, so that the logits of a chunk
are the most that there is at a time, and kept at the tokens' slots, as those of the reply are (`logprobs.py`)."""

import jax
import jax.numpy as jnp

from redrafter_jax.decode import logprobs
from redrafter_jax.decode.logprobs import Logprobs
from redrafter_jax.decode.policy import Policy
from redrafter_jax.model.target import Target


class PromptScores:
    """Of prompts ``[B, T]``; for `prefill.read_and_watch`. What it keeps at place t is of token t + 1, which the pass over token t
    decides."""

    def __init__(self, target: Target, policy: Policy, prompts_BT: jax.Array):
        self._target, self._policy, self._prompts_BT = target, policy, prompts_BT

    def empty(self) -> Logprobs | None:
        """``[B, T]`` of zeros."""
        return logprobs.empty(self._policy, *self._prompts_BT.shape, self._target.config.vocab_size)

    def add(self, seen: Logprobs | None, start: jax.Array, hidden_BND: jax.Array) -> Logprobs | None:
        """With those that the tokens from ``start`` on decide."""
        N, T = hidden_BND.shape[1], self._prompts_BT.shape[1]
        next_BT = jnp.pad(self._prompts_BT[:, 1:], ((0, 0), (0, N)))
        next_BN = jax.lax.dynamic_slice_in_dim(next_BT, start, N, axis=1)
        found = logprobs.measure(self._policy, self._target.unembed(self._target.hidden_of(hidden_BND)), next_BN)

        def write(buffer: jax.Array, new: jax.Array) -> jax.Array:  # the last chunk may be longer than what is left
            padded = jnp.pad(buffer, [(0, 0), (0, N)] + [(0, 0)] * (buffer.ndim - 2))
            return jax.lax.dynamic_update_slice_in_dim(padded, new.astype(buffer.dtype), start, axis=1)[:, :T]

        return jax.tree.map(write, seen, found)


def put(into: Logprobs | None, seen: Logprobs | None, length_B: jax.Array) -> Logprobs | None:
    """The log-probabilities of a state ``[B, S]`` with those of its prompts at slots 1 to length - 1."""

    def merge(buffer: jax.Array, new: jax.Array) -> jax.Array:
        rest = [(0, 0)] * (buffer.ndim - 2)
        at_its_slot = jnp.pad(new, [(0, 0), (1, max(0, buffer.shape[1] - new.shape[1])), *rest])[:, : buffer.shape[1]]
        is_prompt_BS = jnp.arange(buffer.shape[1]) < length_B[:, None]
        return jnp.where(is_prompt_BS[(..., *[None] * len(rest))], at_its_slot, buffer)

    return jax.tree.map(merge, into, seen)
