"""The decoding loop. A round is five calls in one device program; no value goes to the host inside it.

    noise    sample.noise(policy, position, L + 1, V)     -> noise [B, L + 1, V], or None for greedy decoding
    propose  proposer.propose(target, view, memory)       -> Tree of N nodes, memory
    verify   verify(target, tree, cache, policy, noise)   -> Verdict: the tokens that the target agrees with, and its own next
    accept   proposer.accept(memory, tree, verdict)       -> memory
    commit   commit(state, verdict)                       -> the next DecodeState

Plain decoding is the same loop over a tree of one node (`propose/plain.py`). Between rounds, a text that has outgrown the context
that its keys were made for is read again (`reread.py`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from redrafter_jax.decode import prefill, reread, sample, verify
from redrafter_jax.decode.commit import DecodeState, commit
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.model.target import Target

ALL_ROUNDS = 1 << 30  # rounds of a batch that nothing but its rows should end
ALL_ROWS = 1 << 30  # rows that may end in a `run`, where it should go on until all of them have


def one_round(target: Target, proposer: Proposer, state: DecodeState) -> DecodeState:
    """Drafts, scores and commits once: one pass of the target, at most L + 1 new tokens per row."""
    policy, length = state.policy.without(state.done), proposer.round.length
    state = dataclasses.replace(state, policy=policy)
    with jax.named_scope("noise"):  # of the positions that nodes at depth 0..L decide
        noise_BMV = sample.noise(policy, state.cache.length + 1, length + 1, target.config.vocab_size)
    tree, memory = proposer.propose(target, state.view(sample.show_noise(policy, noise_BMV)), state.memory)
    tree = reread.cut(target, tree, state.cache.length, state.cache.slots)
    with jax.named_scope("verify"):
        verdict = verify.verify(target, tree, state.cache, policy, noise_BMV, length, state.history())
    with jax.named_scope("accept"):
        memory = proposer.accept(memory, tree, verdict)
    with jax.named_scope("commit"):
        return dataclasses.replace(commit(state, verdict), memory=memory)


@functools.partial(jax.jit, donate_argnames="state")
def run(
    target: Target, proposer: Proposer, state: DecodeState, rounds: jax.Array | int, ends: jax.Array | int = ALL_ROWS
) -> DecodeState:
    """Runs at most ``rounds`` rounds, and fewer where all rows are done, or ``ends`` of those that were running at its start.
    ``state`` is donated: use the returned one."""
    running_before = jnp.sum(~state.done)

    def unfinished(carry):
        index, state = carry
        ended = running_before - jnp.sum(~state.done)
        return (index < rounds) & ~jnp.all(state.done) & (ended < ends)

    def body(carry):
        index, state = carry
        return index + 1, one_round(target, proposer, reread.at_crossing(target, state))

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


start = jax.jit(prefill.prefill, static_argnames=("bucket", "scores"))


def end(state: DecodeState, rows_B: jax.Array) -> DecodeState:
    """With these rows ``[B]`` done, whatever they asked for; their replies stay as they are. For the host, between runs."""
    return dataclasses.replace(state, done=_either(state.done, rows_B))


_either = jax.jit(jnp.logical_or)
