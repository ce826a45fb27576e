"""How many bytes a model takes on each device of a mesh, and which meshes it fits.

Bytes are counted from the shapes that the models' own initialisers make (`jax.eval_shape` on a mesh of no devices), so
there is no second formula. Not here: which mesh suits it (`mesh_choice.py`), how much memory there is (`memory.py`), making the
mesh (`mesh.py`).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from redrafter_jax.devices.mesh import on_paper
from redrafter_jax.model import cache, vocabulary
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.lora import Adapter, LoraConfig
from redrafter_jax.model.medusa import MedusaConfig, MedusaHeads
from redrafter_jax.model.quantised import Quantised
from redrafter_jax.model.target import Target, TargetConfig

Drafts = DrafterConfig | MedusaConfig | TargetConfig
SHARDED = ("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size", "vocab_size", "num_experts")
USABLE_SHARE = 0.7  # share of a device's memory that weights and cache may take; the rest is for what is computed


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a mesh has to hold: a target, perhaps a head, and rows.

    option: the name of what decides the rows; size: bytes of weights and what goes with them (`bytes_of_target`,
    `bytes_of_head`), split over ``model``, or over both axes if ``spread``; cache: bytes of keys and values
    (`bytes_of_token`), split over ``data``, and over ``model`` as far as there are key-value heads; beside: bytes of keys and
    values of the row that each data shard reads a prompt into, before it moves into a running batch (`decode/insert.py`);
    repeats_heads: whether heads may be repeated, where there are fewer than shards (`repeat_kv_heads`), which is not so where their
    weights are trained.
    """

    target: TargetConfig
    head: Drafts | None = None
    rows: int = 1
    option: str = "rows"
    size: float = 0.0
    spread: bool = False
    cache: float = 0.0
    repeats_heads: bool = True
    beside: float = 0.0

    def bytes_per_device(self, data: int, model: int) -> float:
        """Bytes that a device of such a mesh holds."""
        weights = self.size / (data * model if self.spread else model)
        return weights + (self.cache / data + self.beside) / min(model, self.target.num_key_value_heads)

    def why_not(self, data: int, model: int) -> str | None:
        """Why a mesh does not fit, in words; None where it fits."""
        if self.rows % data:
            return f"{self.option} {self.rows} should be a multiple of the {data} data shards"
        whose = {"target": self.target} | ({"draft model": self.head} if isinstance(self.head, TargetConfig) else {})
        for owner, config in whose.items():
            for name in SHARDED:
                size = getattr(config, name)
                repeats = name == "num_key_value_heads" and model % size == 0 and self.repeats_heads
                if size % model and not repeats:
                    return f"{model} does not divide the {owner}'s {name} {size}"
        if self.head is None or isinstance(self.head, TargetConfig):
            return None
        if self.head.exit_size % model:
            return f"{model} does not divide the head's exit_size {self.head.exit_size}"
        if getattr(self.head, "bigram", 0) % model:
            return f"{model} does not divide the rank of the head's bigram term, {self.head.bigram}"
        if self.head.draft_vocab % model:
            return f"{model} does not divide the head's draft vocabulary of {self.head.draft_vocab} tokens"
        return None

    def meshes(self, devices: int, all_devices: bool = False) -> list[tuple[int, int]]:
        """The meshes that fit, most devices first, and of those most rows first; with ``all_devices`` only those that use
        every device. The number of devices of each divides ``devices``: five chips of eight are no slice."""
        splits = [(data, model) for data in range(1, devices + 1) for model in range(1, devices // data + 1)]
        splits = [
            (data, model) for data, model in splits if data * model == devices or not (all_devices or devices % (data * model))
        ]
        return sorted((mesh for mesh in splits if not self.why_not(*mesh)), key=lambda mesh: (-mesh[0] * mesh[1], -mesh[0]))

    def holding(self, meshes: list[tuple[int, int]], memory: int) -> list[tuple[int, int]]:
        """Those of the meshes whose devices, of ``memory`` bytes each, have room for their part."""
        return [mesh for mesh in meshes if self.bytes_per_device(*mesh) <= USABLE_SHARE * memory]


def parameters_of(model: Target | Drafter | MedusaHeads | None) -> int:
    """Weights of a model, of which an LM head that is its embedding is no other, nor are scales; 0 for None."""
    is_tied = isinstance(model, Target) and model.config.tie_word_embeddings
    weights = jax.tree.leaves(model, is_leaf=lambda part: isinstance(part, Quantised))
    return sum(leaf.size for leaf in weights) - (model.lm_head[...].size if is_tied else 0)


def bytes_of(tree) -> int:
    """Bytes of arrays, concrete or abstract, on one device of their mesh, without padding by layouts."""
    return sum(math.prod(_shard_shape(leaf)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _shard_shape(leaf) -> tuple[int, ...]:
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)


def _itemsize(dtype) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def abstract_layers(config: TargetConfig, dtype: str = "float32") -> list[tuple[int, nnx.List]]:
    """The shapes of a target's layers on one device, and how many there are of each kind."""
    return [(count, abstract_target(kind, dtype).blocks) for count, kind in kinds_of_layers(config)]


def kinds_of_layers(config: TargetConfig) -> list[tuple[int, TargetConfig]]:
    """How many layers there are of a kind, with experts or without, and a config whose only layer is of that kind."""
    mixed = sum(map(config.has_experts, range(config.num_hidden_layers)))
    one = dataclasses.replace(config, num_hidden_layers=1, decoder_sparse_step=1, mlp_only_layers=())
    kinds = [(mixed, one), (config.num_hidden_layers - mixed, dataclasses.replace(one, num_experts=0))]
    return [(count, kind) for count, kind in kinds if count]


def abstract_target(config: TargetConfig, dtype: str = "float32") -> Target:
    """The shapes of such a target on one device, with one of its layers: those of a kind are alike, and eighty would take seconds
    to trace."""
    return _abstract_target(dataclasses.replace(config, num_hidden_layers=1), dtype)


@functools.cache
def _abstract_target(config: TargetConfig, dtype: str) -> Target:
    with on_paper(1, 1):
        return jax.eval_shape(lambda: Target(jax.random.key(0), config, jnp.dtype(dtype)))


@functools.cache
def abstract_head(config: DrafterConfig | MedusaConfig, dtype: str = "float32") -> Drafter | MedusaHeads:
    """The shapes of a head, as it decodes, on one device."""
    with on_paper(1, 1):
        return jax.eval_shape(lambda: config.make(jax.random.key(0), jnp.dtype(dtype)).split())


@functools.cache
def bytes_of_target(config: TargetConfig, dtype: str) -> int:
    """Bytes of a target's weights."""
    return bytes_of(abstract_target(config, dtype).embedding) + bytes_read_by_step(config, dtype)


@functools.cache
def bytes_of_adapter(config: TargetConfig, rank: int) -> int:
    """Bytes of a target's low-rank adapter in float32."""

    def of_layer(kind: TargetConfig) -> int:
        with on_paper(1, 1):
            return bytes_of(jax.eval_shape(lambda: Adapter(jax.random.key(0), kind, LoraConfig(rank, 1.0))).blocks)

    return sum(count * of_layer(kind) for count, kind in kinds_of_layers(config))


def bytes_read_by_step(config: TargetConfig, dtype: str) -> int:
    """Bytes of the weights that a step of decoding reads: all but the embedding, of which it reads a few rows. Of experts these are
    all, too, which is what a step of many rows reads."""
    one, layers = abstract_target(config, dtype), abstract_layers(config, dtype)
    return bytes_of((one.norm, one.lm_head)) + sum(count * bytes_of(blocks) for count, blocks in layers)


@functools.cache
def bytes_of_head(config: Drafts, dtype: str) -> int:
    """Bytes of a head's weights, or of a small model's."""
    return bytes_of_target(config, dtype) if isinstance(config, TargetConfig) else bytes_of(abstract_head(config, dtype))


@functools.cache
def bytes_of_token(config: TargetConfig, dtype: str) -> int:
    """Bytes of one token's keys and values in all layers."""
    with on_paper(1, 1):
        one = jax.eval_shape(lambda: cache.empty(1, 1, config.num_key_value_heads, 1, config.head_dim, jnp.dtype(dtype)))
    return config.num_hidden_layers * bytes_of((one.keys, one.values))


def to_decode(
    target: TargetConfig,
    head: Drafts | None,
    dtype: str,
    rows: int = 1,
    slots: int = 0,
    option: str = "rows",
    refills: bool = False,
    few: int = 0,
) -> Footprint:
    """The load of decoding: the weights of a pair, and a cache of ``rows`` rows and ``slots`` slots; a small model has one too.
    ``refills``: rows are refilled as they end, from one that is read beside them; ``few``: the most rows of a device that are
    decoded without the others, of which that program holds a copy."""
    size = bytes_of_target(target, dtype)
    size += bytes_of_head(vocabulary.materialised_config(head, target), dtype) if head else 0
    by_token = bytes_of_token(target, dtype) + (bytes_of_token(head, dtype) if isinstance(head, TargetConfig) else 0)
    cache = slots * by_token
    return Footprint(target, head, rows, option, size, cache=rows * cache, beside=cache * (refills + few))


def repeat_kv_heads(config: TargetConfig, model: int) -> TargetConfig:
    """The config that ``model`` shards compute with: where there are fewer key-value heads than shards, each is repeated, so
    that every shard has the one that its query heads read. The repeats cost cache and weights ``model / K`` times as large
    in all, and no more per device than one head's."""
    K = config.num_key_value_heads
    return config if model <= K else dataclasses.replace(config, num_key_value_heads=model)
