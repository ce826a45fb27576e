"""Builders that several tests share: golden files, arrays on the mesh, policies, decode states."""

import contextlib
import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from redrafter_jax.decode import loop, prefill
from redrafter_jax.decode.policy import Policy, make_policy
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.request import Sampling
from redrafter_jax.files import weights
from redrafter_jax.model import vocabulary
from redrafter_jax.model.confidence import Confidence
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.medusa import MedusaConfig, MedusaHeads
from redrafter_jax.model.target import Target, TargetConfig
from train.run import beginning

PROMPTS = [[1, 5, 9], [4, 8, 100, 200, 7, 7], [3] * 20, [9, 8], [7] * 11]
FITTED = Confidence(((0.5, -1.0), (1.5, 0.7)), ((1.0, 0.3), (0.8, -0.2)))  # which changes what fills a budget
GOLDEN = pathlib.Path(__file__).parent / "golden"
MODELS = GOLDEN / "models"
PAIRS = {"mha_rnn": "mha", "mha_rand": "mha", "gqa_proj": "gqa", "tied_nornn": "tied"}  # drafter -> target


@functools.cache
def golden(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """A golden file's arrays and its sidecar's meta."""
    meta = json.loads((GOLDEN / f"{name}.json").read_text())
    return load_file(GOLDEN / f"{name}.safetensors"), meta["meta"]


@functools.cache
def load_pair(drafter: str):
    return load_target(PAIRS[drafter]), weights.load_drafter(MODELS / f"drafter_{drafter}")


@functools.cache
def load_target(name: str):
    return weights.load_target(MODELS / f"target_{name}")


def put(array, dtype=None) -> jax.Array:
    """An array on the mesh, rows over ``data``."""
    array = np.asarray(array, dtype)
    return jax.device_put(array, P("data", *[None] * (array.ndim - 1)))


def rows(value, count: int, dtype) -> jax.Array:
    return put(np.broadcast_to(np.asarray(value, dtype), (count,)))


def with_parts(head: Drafter) -> Drafter:
    """The head with a bigram term and features that do a little, gates and a fit of its scores."""
    config = dataclasses.replace(head.config, bigram=8, gated=True, confidence=FITTED)
    grown = beginning.grow(head, Drafter(jax.random.key(4), config))
    grown.bigram.columns[...] = 0.1 * jax.random.normal(jax.random.key(5), grown.bigram.columns.shape)
    return with_features(grown, (0, 1))


def with_features(head: Drafter, depths: tuple[int, ...] = (0,)) -> Drafter:
    """The head with features of these layers that do a little."""
    grown = beginning.grow(head, Drafter(jax.random.key(4), dataclasses.replace(head.config, depths=depths)))
    weight = grown.depths.mix.weight
    weight[...] = weight[...] + 0.1 * jax.random.normal(
        jax.random.key(6), weight.shape, out_sharding=jax.typeof(weight[...]).sharding.spec
    )
    return grown


def policy(count: int, temperature=0.0, top_k=0, top_p=1.0, rule="coupled", seeds=None) -> Policy:
    """Each argument is one value, or one for every row."""
    fields = (np.broadcast_to(np.asarray(field), (count,)).tolist() for field in (temperature, top_k, top_p, rule))
    return make_policy([Sampling(*row) for row in zip(*fields, strict=True)], np.arange(count) if seeds is None else seeds)


def started(target, prompts, new: int, length: int, how: Policy | None = None, stops=(-1,), width: int = 0, proposer=Plain()):
    """The state after the prefill of these prompts, with room for rounds of any proposer of so great a length."""
    count = len(prompts)
    width = width or max(map(len, prompts))
    tokens = np.zeros((count, width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    bucket = prefill.Bucket(width, new, length)
    lengths = put([len(prompt) for prompt in prompts], np.int32)
    limits = rows(new, count, np.int32)
    given = (put(tokens), lengths, limits, put([stops] * count, np.int32), how or policy(count))
    return loop.start(target, proposer, *given, bucket)


def texts(state) -> list[list[int]]:
    """The replies so far."""
    rows = zip(*map(np.asarray, (state.tokens, state.prompt, state.count)), strict=True)
    return [tokens[prompt : prompt + count].tolist() for tokens, prompt, count in rows]


def medusa_heads(target: TargetConfig, heads: int = 4, scale: float = 0.3, **other) -> MedusaHeads:
    """Medusa heads whose blocks do something."""
    config = MedusaConfig(vocab_size=target.vocab_size, hidden_size=target.hidden_size, num_heads=heads, **other)
    drawn = MedusaHeads(jax.random.key(3), config)
    leaves, structure = jax.tree.flatten(drawn)
    noisy = [
        leaf + scale * jax.random.normal(jax.random.key(i), leaf.shape, out_sharding=leaf.sharding.spec)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for i, leaf in enumerate(leaves)
    ]
    return structure.unflatten(noisy)


def with_candidates(head: Drafter, target: Target, count: int, rank: int) -> Drafter:
    """The head with a candidate head, whose factors are of NumPy's own singular values."""
    own = head.bigram.columns[...] if head.bigram is not None else jnp.zeros((0, target.config.vocab_size))
    matrix = np.concatenate([np.asarray(head.columns(target)), np.asarray(own)]).astype(np.float64)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return vocabulary.with_candidates(head, count, left[:, :rank], values[:rank, None] * right[:rank])


@functools.cache
def small_model() -> Target:
    """A draft model for the target `mha`: its first layer, so that it is sometimes right."""
    whole = load_target("mha")
    model = jax.eval_shape(lambda: Target(jax.random.key(0), dataclasses.replace(whole.config, num_hidden_layers=1)))
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(whole)}
    taken = [leaves[jax.tree_util.keystr(path)] for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    return jax.tree.unflatten(jax.tree.structure(model), taken)


@contextlib.contextmanager
def compilations():
    """Counts, in a list of their names, the programs that are compiled meanwhile."""
    found: list[str] = []

    def listen(event: str, _: float, **__) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
