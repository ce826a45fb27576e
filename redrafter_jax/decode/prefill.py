"""Prompts -> the first DecodeState: the cache filled in chunks, h of each prompt's last token, the first choice g, and the
proposer's memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from redrafter_jax.decode import adjust, commit, logprobs, sample, score
from redrafter_jax.decode.chunk import TILE_SLOTS, Chunk, read_on, unread
from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.propose.proposer import Memory, Proposer
from redrafter_jax.model import cache
from redrafter_jax.model.target import Target

CHUNK_TOKENS = 256  # tokens of a prompt that a pass reads
MIN_FINE_BUCKET_TOKENS = 1024  # tokens, above which buckets are finer than powers of two


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The static sizes of a batch: what shares a bucket shares a compiled program.

    prompt: tokens of the longest prompt; new: new tokens at most; length: L, which the buffers leave room for; text: tokens of
    prompt and reply together at most, where that is less than both (0: as many as both); chunk: tokens of a prompt that a pass
    reads (0: `CHUNK_TOKENS`).
    """

    prompt: int
    new: int
    length: int
    text: int = 0
    chunk: int = 0

    @property
    def pass_tokens(self) -> int:
        """Tokens that a pass over a prompt reads."""
        return min(self.chunk or CHUNK_TOKENS, self.prompt)

    @property
    def slots(self) -> int:
        """Cache slots, a multiple of `TILE_SLOTS`: the prompt in full chunks, the reply, and room for one round's write."""
        read = self.pass_tokens * -(-self.prompt // self.pass_tokens)
        text = min(self.text or read + self.new, read + self.new)
        return TILE_SLOTS * -(-max(read, text + self.length + 1) // TILE_SLOTS)


def bucket(prompt: int, new: int, length: int) -> Bucket:
    """The bucket of a request, which similar requests share. Numbers of tokens are rounded up to a power of two or, above
    `MIN_FINE_BUCKET_TOKENS`, to a quarter of one, so that at most a fifth of a long cache stays unused."""
    return Bucket(_round_up(prompt, 32), _round_up(new, 64), length)


def _round_up(count: int, smallest: int) -> int:
    power = max(smallest, 1 << (count - 1).bit_length())
    step = power // 8 if power > MIN_FINE_BUCKET_TOKENS else power
    return step * -(-count // step)


def prefixes(prompt: int, chunk: int = 0) -> tuple[int, ...]:
    """The numbers of cache slots that a chunk of a prompt may attend to: 0, then ``chunk`` tokens (0: `CHUNK_TOKENS`) times powers
    of two, then the prompt's. The program has a branch for each number, and a chunk takes the smallest that covers the tokens
    before it."""
    sizes, chunk = [0], chunk or CHUNK_TOKENS
    while sizes[-1] < prompt - chunk:
        sizes.append(min(max(2 * sizes[-1], chunk), chunk * (-(-prompt // chunk) - 1)))
    return tuple(sizes)


def prefill(
    target: Target,
    proposer: Proposer,
    prompts_BT: jax.Array,
    length_B: jax.Array,
    limit_B: jax.Array,
    stop_ids_BX: jax.Array,
    policy: Policy,
    bucket: Bucket,
    scores: bool = False,
) -> commit.DecodeState:
    """Reads left-aligned prompts ``[B, T]`` (T = bucket.prompt, padded with any id) of ``length`` >= 1 tokens. scores: the state
    has the log-probabilities of the prompts' tokens too (`score.py`), where the policy reports any."""
    given = (prompts_BT, limit_B, stop_ids_BX, policy, bucket)
    if not scores:
        return begin(target, proposer, *read(target, prompts_BT, length_B, bucket.slots), None, *given)
    watch = score.PromptScores(target, policy, prompts_BT)
    kv, h_BD, found = read_and_watch(target, prompts_BT, length_B, bucket.slots, None, watch.add, watch.empty())
    state = begin(target, proposer, kv, h_BD, None, *given)
    return dataclasses.replace(state, logprobs=score.put(state.logprobs, found, length_B))


def read(
    target: Target, tokens_BT: jax.Array, length_B: jax.Array, slots: int, arrives: int | None = None
) -> tuple[cache.KVCache, jax.Array]:
    """The cache of the first ``length`` tokens of each row, with room for ``slots`` or more, and h ``[B, D + F*D]`` of the last,
    zeros where there is none.

    Args:
      arrives: the length of the text that the tokens arrive with (`Target`), if it is not ``length``.
    """
    return read_and_watch(target, tokens_BT, length_B, slots, arrives, lambda seen, *_: seen, ())[:2]


def read_and_watch(
    target: Target, tokens_BT: jax.Array, length_B: jax.Array, slots: int, arrives: int | None, watch: Callable, seen
) -> tuple[cache.KVCache, jax.Array, Any]:
    """Likewise; and what ``watch(seen, start, hidden_BND)`` makes of ``seen`` at each chunk that begins at the token ``start``,
    ``hidden_BND`` being what the target shows of it (`Pass.shown`)."""
    B, T = tokens_BT.shape
    chunk = min(T, CHUNK_TOKENS)
    chunks, sizes = -(-T // chunk), prefixes(T)
    arrives_B = length_B if arrives is None else jnp.full_like(length_B, arrives)
    padded_BT = jnp.pad(tokens_BT, ((0, 0), (0, chunks * chunk - T)))

    def read_one(index, carry):
        *before, seen = carry
        start = index * chunk
        tokens_BN = jax.lax.dynamic_slice_in_dim(padded_BT, start, chunk, axis=1)
        kv, h_BD, hidden_BND = read_on(target, *before, Chunk(tokens_BN, start, length_B, arrives_B, sizes))
        return kv, h_BD, watch(seen, start, hidden_BND)

    needed = -(-jnp.max(length_B) // chunk)  # by the longest prompt, which may be shorter than its bucket
    return jax.lax.fori_loop(0, needed, read_one, (*unread(target, B, max(slots, chunks * chunk)), seen))


def begin(
    target: Target,
    proposer: Proposer,
    kv: cache.KVCache,
    h_BD: jax.Array,
    read: Memory,
    prompts_BT: jax.Array,
    limit_B: jax.Array,
    stop_ids_BX: jax.Array,
    policy: Policy,
    bucket: Bucket,
) -> commit.DecodeState:
    """The state behind prompts that are in the cache: with the first choice, and the proposer's memory; read: what the proposer
    has read of them (`Proposer.begin`)."""
    state = _first_choice(target, kv, h_BD, prompts_BT, limit_B, stop_ids_BX, policy, bucket)
    return dataclasses.replace(state, memory=proposer.begin(target, state.view(), read))


def _first_choice(target, kv, h_BD, prompts_BT, limit_B, stop_ids_BX, policy, bucket) -> commit.DecodeState:
    vocab = target.config.vocab_size
    logits_B1V = target.unembed(target.hidden_of(h_BD)[:, None])
    adjusted_B1V, seen = logits_B1V, adjust.begin(policy, prompts_BT, kv.length, vocab)
    if adjust.is_needed(policy):
        history = adjust.History(jnp.zeros_like(kv.length), stop_ids_BX, seen)
        adjusted_B1V = adjust.adjust(policy, history, logits_B1V, jnp.zeros((*logits_B1V.shape[:2], 0), jnp.int32))
    noise_B1V = sample.noise(policy, kv.length, 1, vocab)
    g_B1, finite_B1 = sample.choose(sample.warp(policy, adjusted_B1V), noise_B1V)
    g_B, failed_B = g_B1[:, 0], ~finite_B1[:, 0] & (limit_B > 0)
    zero_B = jnp.zeros_like(g_B)
    count_B, done_B = commit.ends(g_B[:, None], jnp.where(failed_B, 0, 1), zero_B, limit_B, stop_ids_BX)
    tokens_BS = jnp.pad(prompts_BT, ((0, 0), (0, bucket.slots - prompts_BT.shape[1])))
    room, first = logprobs.empty(policy, g_B.shape[0], bucket.slots, vocab), logprobs.measure(policy, logits_B1V, g_B[:, None])
    return commit.DecodeState(
        cache=kv,
        h=h_BD,
        g=g_B,
        tokens=commit.write(tokens_BS, g_B[:, None], kv.length, count_B),
        drafted=jnp.zeros_like(tokens_BS, bool),
        scored=jnp.zeros_like(tokens_BS),
        prompt=kv.length,
        count=count_B,
        limit=limit_B,
        stop_ids=stop_ids_BX,
        done=done_B | failed_B,
        failed=failed_B,
        rounds=zero_B,
        histogram=jnp.zeros((g_B.shape[0], bucket.length + 1), jnp.int32, out_sharding=P("data", None)),
        policy=policy,
        seen=adjust.add(seen, g_B[:, None], count_B),
        logprobs=jax.tree.map(lambda buffer, new: commit.write(buffer, new, kv.length, count_B), room, first),
    )
