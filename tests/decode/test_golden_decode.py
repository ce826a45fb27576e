"""Packing, verification, acceptance and whole rounds against the published ReDrafter."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from redrafter_jax.decode import loop, pack, verify
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.model import cache
from tests import support
from tests.support import GOLDEN, golden, put

TREE_CASES = sorted({name.split("/")[0] for name in golden("tree")[0]})
E2E = json.loads((GOLDEN / "e2e.json").read_text())


def packed(beams: np.ndarray) -> pack.Tree:
    """The tree of golden beams below a virtual root (their first column is the init token, not necessarily shared)."""
    B, W, L = beams.shape
    scores = np.broadcast_to(-np.arange(1.0, L + 1), beams.shape)
    make = jax.jit(pack.pack_sequences, static_argnames="N")
    return make(put(np.zeros(B), np.int32), put(beams, np.int32), put(scores, np.float32), N=1 + W * L)


@pytest.mark.parametrize("case", TREE_CASES)
def test_a_tree_holds_every_prefix_once_in_the_published_order(case):
    vectors = {key.split("/", 1)[1]: value for key, value in golden("tree")[0].items() if key.startswith(f"{case}/")}
    tree = packed(vectors["beams"])
    S = vectors["padding_mask"].shape[1]
    for row, count in enumerate(vectors["n_selected"]):
        nodes = slice(1, count + 1)
        assert np.asarray(tree.valid[row]).sum() == count + 1
        np.testing.assert_array_equal(tree.tokens[row, nodes], vectors["packed_beams"][row, :count])
        np.testing.assert_array_equal(np.asarray(tree.depth[row, nodes]) - 1, vectors["position_offsets"][row, :count])
        expected = vectors["causal_mask"][row, :count, S : S + count]
        np.testing.assert_array_equal(tree.ancestors[row, nodes, nodes], expected.astype(bool))


def test_the_cases_of_the_tree_vectors_are_all_there():
    assert len(TREE_CASES) >= 5


@pytest.mark.parametrize("name", ["mha", "gqa", "tied"])
def test_a_tree_pass_scores_each_prefix_as_if_it_were_alone(name):
    target, (vectors, _) = support.load_target(name), golden(f"verify_{name}")
    mask = vectors["attention_mask"].astype(bool)
    prompts = [row[m].tolist() for row, m in zip(vectors["input_ids"], mask, strict=True)]
    beams = vectors["beams"]
    state = support.started(target, prompts, new=1, length=beams.shape[2])
    B, W, L = beams.shape
    scores = put(np.broadcast_to(-np.arange(1.0, L), (B, W, L - 1)), np.float32)
    tree = pack.pack_sequences(put(beams[:, 0, 0]), put(beams[:, :, 1:]), scores, 1 + W * (L - 1))
    hidden = jax.jit(verify.score)(target, tree, state.cache).hidden
    hidden, logits = np.asarray(hidden), np.asarray(target.unembed(hidden))
    for b in range(B):
        for w in range(W):
            node = 0
            for step in range(L):
                np.testing.assert_allclose(hidden[b, node], vectors["last_hidden"][b, w, step], atol=2e-4)
                np.testing.assert_allclose(logits[b, node], vectors["logits"][b, w, step], atol=2e-4)
                assert logits[b, node].argmax() == vectors["argmax"][b, w, step]
                node = child(tree, b, node, beams[b, w, step + 1]) if step + 1 < L else node


def child(tree: pack.Tree, row: int, node: int, token: int) -> int:
    is_child = (np.asarray(tree.parent[row]) == node) & (np.asarray(tree.tokens[row]) == token) & np.asarray(tree.valid[row])
    is_child[0] = False
    return int(np.flatnonzero(is_child)[0])


ACCEPTANCE = sorted({name.rsplit("/", 1)[0] for name in golden("acceptance")[0]})


@pytest.mark.parametrize("case", ACCEPTANCE)
def test_the_longest_agreeing_path_is_accepted_and_of_equal_ones_the_first(case):
    vectors = {key.rsplit("/", 1)[1]: value for key, value in golden("acceptance")[0].items() if key.startswith(f"{case}/")}
    beams, choice = vectors["beams"], vectors["target_argmax"]
    B, W, L = beams.shape
    tree, steps = separate_chains(B, W, L - 1), L - 1
    agrees = np.zeros((B, 1 + W * steps), bool)
    agrees[:, 1:] = (beams[:, :, 1:] == choice[:, :, :-1]).reshape(B, -1)
    last = np.asarray(verify.follow(tree, put(agrees)))
    accepted = np.asarray(tree.depth)[np.arange(B), last]
    np.testing.assert_array_equal(accepted, vectors["n_accepted"])
    row = np.where(accepted == 0, vectors["row"], (last - 1) // steps)
    np.testing.assert_array_equal(row, vectors["row"])
    np.testing.assert_array_equal(choice[np.arange(B), row, accepted], vectors["next_token"])


def separate_chains(B: int, W: int, steps: int) -> pack.Tree:
    """A tree of W chains that share nothing but the root: these vectors give equal prefixes unequal choices."""
    N = 1 + W * steps
    depth = np.concatenate([[0], np.tile(np.arange(1, steps + 1), W)])
    beam = np.concatenate([[-1], np.repeat(np.arange(W), steps)])
    parent = np.where(depth > 1, np.arange(N) - 1, 0)
    ancestors = (beam[:, None] == beam) & (depth[:, None] >= depth) | (beam == -1)
    each = (np.zeros(N, np.int32), parent, depth, np.ones(N, bool), ancestors, -depth.astype(np.float32))
    spread = [np.broadcast_to(x, (B, *x.shape)) for x in each]
    return pack.Tree(*map(put, spread))


@pytest.mark.parametrize("drafter", list(support.PAIRS))
def test_every_published_run_is_reproduced_round_by_round(drafter):
    target, head = support.load_pair(drafter)
    entries = [e for e in E2E["entries"] if e["drafter"].endswith(drafter)]
    assert entries
    for entry in entries:
        for name, reference in entry["reference"].items():
            width, length = map(int, name.split("x"))
            shape = Shape(width, length - 1, tree="beams", draft_top_k=50)
            stops = [-1 if entry["eos_token_id"] is None else entry["eos_token_id"]]
            state = begin(target, entry, stops, length, limit=entry["max_new_tokens"])
            state = loop.run(target, Recurrent(head, shape), state, 1000)
            assert support.texts(state)[0] == entry["hf_greedy"]
            if reference["min_beam_cut_gap"] > 1e-4:
                assert acceptance(target, head, entry, shape, len(reference["accepted_per_step"])) == reference["accepted_per_step"]


def begin(target, entry: dict, stops: list[int], length: int, limit: int):
    state = support.started(target, [entry["prompt"]], 128, length - 1, stops=stops, width=128)
    return dataclasses.replace(state, limit=support.rows(limit, 1, np.int32))


def acceptance(target, head, entry: dict, shape: Shape, rounds: int) -> list[int]:
    """Accepted drafts of each round where nothing ends the row: published figures count drafts that an end then cuts off, ours
    do not."""
    state = begin(target, entry, [-1], shape.length + 1, limit=entry["max_new_tokens"] + shape.length)
    accepted, before = [], np.asarray(state.histogram)[0]
    for _ in range(rounds):
        state = loop.run(target, Recurrent(head, shape), state, 1)
        now = np.asarray(state.histogram)[0]
        accepted.append(int(np.flatnonzero(now - before)[0]))
        before = now
    return accepted


def test_published_batches_are_prefixes_of_what_each_row_gives_alone():
    for entry in E2E["batched"]:
        drafter = entry["drafter"].split("drafter_")[1]
        target, head = support.load_pair(drafter)
        length = entry["length"] - 1
        shape = Shape(entry["width"], length, tree="beams", draft_top_k=50)
        state = support.started(target, entry["prompts"], 96, length)
        state = loop.run(target, Recurrent(head, shape), state, 1000)
        for prompt, text, published in zip(entry["prompts"], support.texts(state), entry["rows_as_yielded"], strict=True):
            new = published[len(prompt) :] if published[: len(prompt)] == prompt else published
            assert text[: len(new)] == new


def test_accepted_rows_are_what_the_cache_would_hold_anyway(mha):
    target, head = mha
    state = support.started(target, [[5, 9, 200, 3], [7, 7]], 20, 3)
    state = loop.run(target, Recurrent(head, Shape(4, 3)), state, 4)
    for row, (prompt, text) in enumerate(zip([[5, 9, 200, 3], [7, 7]], support.texts(state), strict=True)):
        alone = support.started(target, [prompt + text[:-1]], 1, 3)
        count = int(state.cache.length[row])
        assert count == len(prompt) + len(text) - 1
        for ours, theirs in zip(state.cache.keys + state.cache.values, alone.cache.keys + alone.cache.values, strict=True):
            np.testing.assert_allclose(ours[row, :, :count], theirs[0, :, :count], atol=2e-4)


def test_a_gather_of_rows_keeps_their_order():
    rows = cache.KVRows((put(np.arange(12.0).reshape(1, 1, 6, 2)),), (put(np.arange(12.0).reshape(1, 1, 6, 2)),))
    taken = cache.take(rows, put([[4, 0, 4]], np.int32))
    np.testing.assert_array_equal(taken.keys[0][0, 0, :, 0], [8, 0, 8])
