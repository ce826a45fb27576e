"""What devices send each other, read from the compiled round and the compiled step: what tensor parallelism needs, no more.

Of one layer of a target: two all-reduces of its activations. Of the vocabulary, which is split: per row a few numbers.
"""

import dataclasses
import functools
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax.decode import loop, sample
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.devices import mesh
from redrafter_jax.loss import LossConfig
from redrafter_jax.model.drafter import Drafter, DrafterConfig, full
from redrafter_jax.model.target import Target, TargetConfig
from train.data import rows as data
from train.run import step

LAYERS, D, V = 2, 64, 4096
CONFIG = TargetConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=128,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=8,
)
DATA, MODEL = 2, 4
KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def collectives(compiled) -> Counter:
    """How often each (kind, numbers in its result, operation) occurs in a program; ``operation`` as JAX named it."""
    found = Counter()
    for line in compiled.as_text().splitlines():
        match = re.search(rf"= (.*?) ({KINDS})(?:-start)?\(", line)
        if match:
            name = re.search(r'op_name="([^"]*)"', line)
            sizes = [math.prod(map(int, filter(None, dims.split(",")))) for dims in re.findall(r"\w+\[([\d,]*)\]", match[1])]
            found[match[2], sum(sizes), name[1] if name else ""] += 1
    return found


def by_size(found: Counter, scope: str) -> Counter:
    """The collectives of a scope by kind and size."""
    total = Counter()
    for (kind, size, name), count in found.items():
        if scope in name:
            total[kind, size] += count
    return total


def whole(tree):
    """A tree of `jax.eval_shape` as arguments for lowering on the current mesh."""

    def place(leaf):
        sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.typeof(leaf).sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def of_round(batch: int, shape: Shape, head: DrafterConfig, sampling: Sampling) -> Counter:
    jax.set_mesh(mesh.make_mesh(DATA, MODEL))
    target = whole(jax.eval_shape(lambda: Target(jax.random.key(0), CONFIG, jnp.float32)))
    drafter = whole(jax.eval_shape(lambda: Drafter(jax.random.key(1), head).split()))
    engine = Engine(target, Recurrent(drafter, shape))
    inputs, bucket = engine.prepare([[1, 2, 3]] * batch, sampling, Limits(24), list(range(batch)), batch)
    state = whole(jax.eval_shape(functools.partial(loop.start, bucket=bucket), target, engine.proposer, *inputs))
    return collectives(jax.jit(loop.one_round).lower(target, engine.proposer, state).compile())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 20, 0.9)], ids=["greedy", "sampled, filtered"])
def test_a_round_sends_two_activations_per_layer_and_nothing_as_long_as_the_vocabulary(sampling, monkeypatch):
    monkeypatch.setattr(sample, "WORTH_SELECTING", V)  # as with a real vocabulary
    B, W, L = 8, 4, 3
    found = of_round(B, Shape(W, L), full(V, D), sampling)
    rows, N, cut = B // DATA, Shape(W, L).nodes, Shape(W, L).draft_top_k
    draft, verify = by_size(found, "/draft/"), by_size(found, "/verify/")
    shared = {(kind, size) for kind, size, place in found if "/draft/" not in place and "/verify/" not in place}
    # noise, packing and committing send nothing, but for whether any row wants what is not computed for others
    assert shared <= ({("all-reduce", 1), ("all-reduce", 2)} if sampling.temperature else set())
    assert verify["all-reduce", rows * N * D] == 2 * LAYERS
    assert verify["all-gather", rows * N * D] == 1  # embeddings, whose features are split
    assert max(size for _, size in verify) == rows * N * D
    branches = 2 if sampling.temperature else 1  # for rows that choose by their logits alone, and for others; one of them runs
    assert verify["all-gather", rows * N * MODEL] == 2 * branches  # each shard's best score and its index
    rest = verify - Counter(
        {("all-reduce", rows * N * D): 2 * LAYERS, ("all-gather", rows * N * D): 1, ("all-gather", rows * N * MODEL): 2 * branches}
    )
    if sampling.temperature:  # the filters: what lies above each row's threshold is counted and summed, a few numbers per row
        assert {kind for kind, _ in rest} == {"all-reduce"} and max(size for _, size in rest) <= 6 * rows * N
    else:
        assert not rest
    assert draft == Counter(
        {
            ("all-gather", rows * W * D): 2 * L,  # the embedding; the recurrent state
            ("all-gather", rows * W * 2 * D): 2 * L,  # what each of two residual blocks adds
            ("all-gather", rows * W * cut * MODEL): 2 * L,  # each shard's best scores, and their tokens
        }
    )


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "sampled"])
def test_a_draft_vocabulary_adds_the_noise_of_its_tokens_to_a_sampled_round(sampling):
    B, W, L, U = 8, 4, 3, 1024
    head = dataclasses.replace(full(V, D), draft_vocab=U)
    rows, draft = B // DATA, by_size(of_round(B, Shape(W, L), head, sampling), "/draft/")
    noise, activation = rows * L * U, rows * W * 2 * D
    assert draft["all-reduce", noise] == (1 if sampling.temperature else 0)
    assert max(size for _, size in draft) == (noise if sampling.temperature else activation)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "sampled"])
def test_candidates_are_looked_up_without_a_copy_of_the_lm_head(sampling):
    """Each device has its features of every row, so logits travel, and no row does."""
    B, W, L, C, R = 8, 4, 3, 64, 24
    head = dataclasses.replace(full(V, D), candidates=C, candidate_rank=R)
    rows, draft = B // DATA, by_size(of_round(B, Shape(W, L), head, sampling), "/draft/")
    assert draft == Counter(
        {
            ("all-gather", rows * W * D): 2 * L,
            ("all-gather", rows * W * 2 * D): 2 * L,
            ("all-reduce", rows * W * R): L,  # the state in the copy's rank
            ("all-gather", rows * W * C * MODEL): 2 * L,  # each shard's best tokens by the copy
            ("all-reduce", rows * W * C * (2 if sampling.temperature else 1)): L,  # exact logits, and the noise of their tokens
        }
    )


def test_a_draft_vocabulary_adds_its_columns_of_the_targets_lm_head_to_a_step():
    B, T, U = 8, 32, 1024
    jax.set_mesh(mesh.make_mesh(DATA, MODEL))
    schedule, loss, batch = step.Schedule(10), LossConfig(3, 0.5, chunk=8), data.put_unpacked(np.zeros((B, T)))
    update = jax.jit(functools.partial(step.step, schedule=schedule, config=loss), donate_argnums=0)

    def sent(vocab: int, draft_vocab: int) -> int:
        shapes = dataclasses.replace(CONFIG, vocab_size=vocab)
        target = whole(jax.eval_shape(lambda: Target(jax.random.key(0), shapes, jnp.float32)))
        head = dataclasses.replace(full(vocab, D), draft_vocab=draft_vocab)
        state = whole(jax.eval_shape(lambda: step.start(jax.random.key(1), head, schedule)))
        found = collectives(update.lower(state, target, batch).compile())
        return sum(size * count for (_, size, _), count in found.items())

    more = sent(V, U) - sent(U, 0)  # than with a target of that very vocabulary, whose shards have their columns
    assert D * U // MODEL <= more < D * U  # never the whole LM head, D * V


@pytest.mark.parametrize("spread", [False, True], ids=["model", "data,model"])
def test_a_step_sends_activations_once_per_use_and_each_gradient_once(spread):
    B, T, K, N, E = 8, 32, 3, 8, 2 * D  # chunks of N positions
    jax.set_mesh(mesh.make_mesh(DATA, MODEL))
    target = whole(jax.eval_shape(lambda: mesh.spread(Target(jax.random.key(0), CONFIG, jnp.float32), spread)))
    schedule, config = step.Schedule(10), LossConfig(K, 0.5, chunk=N)
    state = whole(jax.eval_shape(lambda: step.start(jax.random.key(1), full(V, D), schedule, spread=spread)))
    batch = data.put_unpacked(np.zeros((B, T)))
    update = jax.jit(functools.partial(step.step, schedule=schedule, config=config), donate_argnums=0)
    found = collectives(update.lower(state, target, batch).compile())
    assert {kind for kind, _, _ in found} == {"all-gather", "all-reduce"}
    activation, shards = B // DATA * T * D, lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)) // MODEL
    of_layers = by_size(found, "_traced_once)/linear")  # as in jvp(layers)/jit(_traced_once)/linear
    assert of_layers == Counter({("all-reduce", activation): 2 * LAYERS})
    in_loop = by_size(found, "while/body")
    of_chunk = B // DATA * K * N
    assert in_loop["all-reduce", of_chunk * E] == 1  # the gradient of what the LM head reads, added over its shards
    assert sum(size * count for (_, size), count in in_loop.items()) < of_chunk * (E + 20)  # and a few numbers per row
    gathered = sum(size * count for (kind, size, _), count in found.items() if kind == "all-gather")
    embedded, head = (1 + K) * activation, K * (activation + 2 * 2 * activation)  # the state; what two residual blocks add
    matrices = [leaf for leaf in jax.tree.leaves((target, state.drafter)) if leaf.ndim == 2]
    assert gathered == embedded + head + (shards(matrices) if spread else 0)  # a spread matrix is gathered once
    reduced = sum(size * count for (kind, size, _), count in found.items() if kind == "all-reduce")
    backward = K * (activation + activation + 2 * activation)  # into the state, and into what each block reads
    assert reduced < 2 * LAYERS * activation + backward + shards(state.drafter) + of_chunk * (E + 20) + 500
