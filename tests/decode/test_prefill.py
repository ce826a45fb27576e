"""Prompts that are read in several chunks: each attends to what is before it, and no chunk is read behind the longest prompt."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode import prefill
from redrafter_jax.decode.propose.plain import Plain
from tests import support
from tests.support import put

LENGTHS = [5, 8, 9, 33, 1, 40, 16, 17]
BUCKET = prefill.Bucket(64, 8, 2)


def read(target, lengths: list[int], bucket: prefill.Bucket, chunk: int, monkeypatch):
    """The first state of prompts that are read ``chunk`` tokens at a time."""
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", chunk)
    B = len(lengths)
    prompts = np.random.default_rng(0).integers(0, 503, (B, bucket.prompt))
    start = jax.jit(lambda *given: prefill.prefill(target, Plain(), *given, bucket))
    return start(put(prompts), put(lengths), put([8] * B), jnp.array([-1]), support.policy(B, 0.7))


@pytest.mark.parametrize("chunk", [8])
def test_chunks_give_what_one_pass_gives_whatever_the_lengths_of_the_rows(mha, chunk, monkeypatch):
    parts, whole = (read(mha[0], LENGTHS, BUCKET, size, monkeypatch) for size in (chunk, 64))
    np.testing.assert_array_equal(parts.g, whole.g)
    np.testing.assert_allclose(parts.h, whole.h, atol=2e-5)
    for row, length in enumerate(LENGTHS):
        assert int(parts.cache.length[row]) == length
        for ours, theirs in zip(parts.cache.keys + parts.cache.values, whole.cache.keys + whole.cache.values, strict=True):
            np.testing.assert_allclose(ours[row, :, :length], theirs[row, :, :length], atol=2e-5)


@pytest.mark.parametrize(("longest", "chunks"), [(40, 5), (41, 6)])
def test_no_chunk_is_read_behind_the_longest_prompt(mha, longest, chunks, monkeypatch):
    reads, append = [], prefill.cache.append
    monkeypatch.setattr(prefill.cache, "append", lambda *given: jax.debug.callback(lambda: reads.append(1)) or append(*given))
    jax.block_until_ready(read(mha[0], [longest, 2], BUCKET, 8, monkeypatch))
    jax.effects_barrier()
    assert len(reads) == chunks


def test_a_chunk_attends_to_the_least_of_a_few_prefixes_that_holds_what_is_before_it():
    for prompt in (256, 257, 513, 1024, 1536, 5120, 131072):
        sizes, before = prefill.prefixes(prompt), range(0, prompt, prefill.CHUNK_TOKENS)
        assert sizes == tuple(sorted(set(sizes))) and len(sizes) <= 2 + max(0, (prompt // prefill.CHUNK_TOKENS).bit_length())
        assert all(any(start <= size <= max(2 * start, prefill.CHUNK_TOKENS) for size in sizes) for start in before)


def test_a_bucket_of_a_long_prompt_wastes_at_most_a_quarter_of_it_and_short_ones_share_theirs():
    sizes = {prompt: prefill.bucket(prompt, 128, 4).prompt for prompt in (1, 32, 33, 1000, *range(1025, 9000, 61), 40_000)}
    assert all(size >= prompt for prompt, size in sizes.items())
    assert [sizes[prompt] for prompt in (1, 32, 33, 1000)] == [32, 32, 64, 1024]
    assert max(size / prompt for prompt, size in sizes.items() if prompt > 1024) <= 1.25
    assert len({prefill.bucket(prompt, 128, 4).prompt for prompt in range(1025, 4097)}) <= 8


@pytest.mark.parametrize("length", [0, 1, 4, 15, 16, 64])
def test_a_bucket_has_room_for_its_last_chunk_and_for_the_write_of_its_last_round(length):
    """A write past the last slot would be moved back over live ones."""
    for prompt, new in itertools.product((32, 256, 257, 640, 1280), (64, 128)):
        bucket = prefill.Bucket(prompt, new, length)
        chunks = -(-prompt // prefill.CHUNK_TOKENS) * min(prompt, prefill.CHUNK_TOKENS)
        longest = max(prompt, chunks) + new - 1  # of a row that is done, whose last pass wrote L + 1 rows behind it
        assert bucket.slots >= longest + length + 1 and bucket.slots % prefill.TILE_SLOTS == 0


def test_a_bucket_has_no_more_slots_than_prompt_and_reply_together_may_have():
    assert prefill.Bucket(1000, 2000, 3, text=2000).slots == 2016
    assert prefill.Bucket(1000, 100, 3, text=5000).slots == prefill.Bucket(1000, 100, 3).slots == 1136
    assert prefill.Bucket(1000, 100, 3, text=1001).slots == 1024  # a prompt is written in full chunks
