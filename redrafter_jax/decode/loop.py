"""The decoding loop. A round is five calls, on one device program; nothing goes to the host inside.

    noise    sample.noise(policy, position, L + 1, V)     -> noise [B, L + 1, V], or None for greedy decoding
    propose  proposer.propose(target, view, memory)       -> Tree of N nodes, memory
    verify   verify(target, tree, cache, policy, noise)   -> Verdict: the tokens that the target agrees with, and its own next
    accept   proposer.accept(memory, tree, verdict)       -> memory
    commit   commit(state, verdict)                       -> the next DecodeState

Plain decoding is the same loop over a tree of one node (`propose/plain.py`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from redrafter_jax.decode import prefill, sample, verify
from redrafter_jax.decode.commit import DecodeState, commit
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.model.target import Target


def one_round(target: Target, proposer: Proposer, state: DecodeState) -> DecodeState:
    """One pass of the target and what leads up to it; up to L + 1 new tokens per row."""
    policy, length = state.policy, proposer.round.length
    with jax.named_scope("noise"):  # of the positions that nodes at depth 0..L decide
        noise_BMV = sample.noise(policy, state.cache.length + 1, length + 1, target.config.vocab_size)
    tree, memory = proposer.propose(target, state.view(shown(policy, noise_BMV)), state.memory)
    with jax.named_scope("verify"):
        verdict = verify.verify(target, tree, state.cache, policy, noise_BMV, length)
    with jax.named_scope("accept"):
        memory = proposer.accept(memory, tree, verdict)
    with jax.named_scope("commit"):
        return dataclasses.replace(commit(state, verdict), memory=memory)


def shown(policy: sample.Policy, noise_BMV: jax.Array | None) -> jax.Array | None:
    """Of the noise what a proposer sees: that of the L positions that it drafts, where the rule shows any."""
    return noise_BMV[:, :-1] if policy.sampled and policy.rule == "coupled" else None


@functools.partial(jax.jit, donate_argnames="state")
def run(target: Target, proposer: Proposer, state: DecodeState, rounds: jax.Array | int) -> DecodeState:
    """At most ``rounds`` rounds, fewer if every row is done. ``state`` is donated: use what is returned."""

    def unfinished(carry):
        index, state = carry
        return (index < rounds) & ~jnp.all(state.done)

    def body(carry):
        index, state = carry
        return index + 1, one_round(target, proposer, state)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


start = jax.jit(prefill.prefill, static_argnames="bucket")
