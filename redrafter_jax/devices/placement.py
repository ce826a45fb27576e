"""How many bytes a model takes on each device of a mesh, which meshes it fits, and which one suits it.

Bytes are counted from the shapes that the models' own initialisers make (`jax.eval_shape` on a mesh of no devices), so
there is no second formula. Not here: how much memory there is (`memory.py`), making the mesh (`mesh.py`).
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from redrafter_jax.devices import processes
from redrafter_jax.devices.mesh import on_paper
from redrafter_jax.errors import BadInput
from redrafter_jax.model import cache, vocabulary
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target, TargetConfig

SHARDED = ("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size", "vocab_size")
USABLE_SHARE = 0.7  # share of a device's memory that weights and cache may take; the rest is for what is computed
MIN_SHARD_BYTES = 1 << 30  # bytes; an estimate: a shard of fewer is read in less time than one more split's collectives take


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a mesh has to hold: a target, perhaps a head, and rows.

    option: the name of what decides the rows; size: bytes of weights and what goes with them (`bytes_of_target`,
    `bytes_of_head`), split over ``model``, or over both axes if ``spread``; cache: bytes of keys and values
    (`bytes_of_token`), split over ``data``, and over ``model`` as far as there are key-value heads.
    """

    target: TargetConfig
    head: DrafterConfig | None = None
    rows: int = 1
    option: str = "rows"
    size: float = 0.0
    spread: bool = False
    cache: float = 0.0

    def bytes_per_device(self, data: int, model: int) -> float:
        """Bytes that a device of such a mesh holds."""
        weights = self.size / (data * model if self.spread else model)
        return weights + self.cache / (data * min(model, self.target.num_key_value_heads))

    def why_not(self, data: int, model: int) -> str | None:
        """Why a mesh does not fit, in words; None where it fits."""
        if self.rows % data:
            return f"{self.option} {self.rows} should be a multiple of the {data} data shards"
        for name in SHARDED:
            size = getattr(self.target, name)
            repeats = name == "num_key_value_heads" and model % size == 0
            if size % model and not repeats:
                return f"{model} does not divide the target's {name} {size}"
        if self.head is not None and self.head.exit_size % model:
            return f"{model} does not divide the head's exit_size {self.head.exit_size}"
        if self.head is not None and self.head.draft_vocab % model:
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


def check(load: Footprint, mesh: tuple[int, int], devices: int, all_devices: bool = False, what: str = "mesh") -> None:
    """Raises BadInput for a mesh of too many devices, or one that does not divide its load; the message names meshes that
    would do, with ``all_devices`` only those that use every device. ``what`` names the mesh."""
    data, model = mesh
    if min(mesh) < 1:
        raise BadInput(f"{what} should be two whole numbers from 1 up, not {data} {model}")
    wrong = load.why_not(data, model)
    if data * model > devices:
        wrong = f"it needs {data * model} devices, and {devices} {'is' if devices == 1 else 'are'} visible"
    if wrong:
        raise BadInput(f"{what} {data} {model}: {wrong}; {named(load.meshes(devices, all_devices))} would do")


def named(meshes: list[tuple[int, int]], most: int = 6) -> str:
    """The first of these meshes, in a sentence."""
    shown = [f"{data} {model}" for data, model in meshes[:most]] or ["fewer devices"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else f"only {shown[0]}"


def recommend(
    load: Footprint, devices: int, memory: int | None, all_devices: bool = False, prefer: Literal["data", "model"] = "data"
) -> tuple[tuple[int, int], str]:
    """A mesh for these devices of ``memory`` bytes each (None: unknown, as of CPUs), and why.

    Training prefers ``data``: it takes the fewest shards of ``model`` that hold the load, and the other devices take rows.
    Devices that no row needs join ``model`` while each still has `MIN_SHARD_BYTES` to read, or, with ``all_devices``, in
    any case. Decoding prefers ``model``, because every step waits for the weights to be read: it takes as many shards as
    leave each device `MIN_SHARD_BYTES` to read, and the other devices take rows.

    Raises:
      BadInput: no mesh of all devices fits, and ``all_devices`` asks for one.
    """
    fitting, need = load.meshes(devices, all_devices), f"{(load.size + load.cache) / 1e9:.3g} GB to hold"
    if not fitting:
        reasons = f"{load.why_not(devices, 1)}, and {load.why_not(1, devices)}"
        raise BadInput(f"no mesh uses all {devices} devices of the processes: {reasons}")
    if memory is None and all_devices:
        return min(fitting, key=lambda mesh: mesh[1]), f"the processes work on all their {devices} devices together"
    if memory is None:
        return (1, 1), f"the {devices} devices share one host's cores and memory" if devices > 1 else "there is one device"
    holding, each = load.holding(fitting, memory), f"{memory / 1e9:.3g} GB"
    if not holding:
        mesh = min(fitting, key=lambda mesh: load.bytes_per_device(*mesh))
        least = f"{load.bytes_per_device(*mesh) / 1e9:.3g} GB"
        return mesh, f"{need} are {least} for each device, too much for {each}; no split leaves less"
    fewest = min(model for _, model in holding)
    if prefer == "model":
        mesh = _most_of_model(load, holding, fewest)
        reason = (
            f"{need}: each step reads it, and with the model {f'split into {mesh[1]}' if mesh[1] > 1 else 'whole'} a device reads"
        )
        reason += f" {load.bytes_per_device(*mesh) / 1e9:.3g} GB of its {each}"
        return mesh, reason + (f"; {load.option} {load.rows} splits into {mesh[0]}" if mesh[0] > 1 else "")
    mesh = _most_of_data(load, holding, fewest)
    parts = mesh[0] * fewest if load.spread else fewest
    split = f"split into {parts}" if parts > 1 else "whole"
    reason = f"{need}: the model {split} takes {load.bytes_per_device(mesh[0], fewest) / 1e9:.3g} GB of each device's {each}"
    reason += f", and {load.option} {load.rows} splits into {mesh[0]}"
    return mesh, reason + (f"; model takes more of the {devices} devices, to be faster" if mesh[1] > fewest else "")


def _most_of_model(load: Footprint, meshes: list[tuple[int, int]], fewest: int) -> tuple[int, int]:
    """The mesh with the most shards of the model, of those that leave each device enough to read or split it least."""
    worth = [mesh for mesh in meshes if mesh[1] == fewest or load.bytes_per_device(*mesh) >= MIN_SHARD_BYTES]
    return max(worth, key=lambda mesh: (mesh[1], mesh[0]))


def _most_of_data(load: Footprint, meshes: list[tuple[int, int]], fewest: int) -> tuple[int, int]:
    """The mesh with the most shards of rows; devices that no row needs join ``model``, while they have enough to read."""
    rows = max(data for data, model in meshes if model == fewest)
    models = [model for data, model in meshes if data == rows]
    return rows, max(model for model in models if model == fewest or load.bytes_per_device(rows, model) >= MIN_SHARD_BYTES)


def resolve(
    load: Footprint, mesh: tuple[int, int] | None, together: bool, what: str = "mesh", joins: str = "jax.distributed.initialize"
) -> tuple[tuple[int, int], str | None]:
    """The given mesh, checked; or a recommended one and, where there is more than one device, a line that gives the reason.

    Args:
      together: all processes work on one mesh, as in training. Otherwise each process works on a mesh of its own devices,
        unless these are too few to hold the load. what: the name of the mesh; joins: the call by which a host joins the
        others.

    Raises:
      BadInput: see `check` and `recommend`; or the mesh leaves some of the processes out, or this host has not joined the others.
    """
    processes.check_joined(joins)
    own, every, group = jax.local_devices(), len(jax.devices()), jax.process_count() > 1
    if mesh is not None:
        all_devices = group and (together or mesh[0] * mesh[1] > len(own))
        if all_devices and mesh[0] * mesh[1] != every:
            wrong = f"{what} {mesh[0]} {mesh[1]} should use all {every} devices of the {jax.process_count()} processes"
            wrong += "" if together else f", or at most the {len(own)} of one"
            raise BadInput(f"{wrong}; {named(load.meshes(every, all_devices))} would do")
        check(load, mesh, every if all_devices else len(own), all_devices, what)
        return mesh, None
    memory = (own[0].memory_stats() or {}).get("bytes_limit")
    all_devices = group and (together or (memory is not None and not load.holding(load.meshes(len(own)), memory)))
    chosen, reason = recommend(load, every if all_devices else len(own), memory, all_devices, "data" if together else "model")
    return chosen, f"mesh {chosen[0]} {chosen[1]}: {reason}" if every > 1 else None


def bytes_of(tree) -> int:
    """Bytes of arrays, concrete or abstract, on one device of their mesh, without padding by layouts."""
    return sum(math.prod(_shard_shape(leaf)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _shard_shape(leaf) -> tuple[int, ...]:
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)


def _itemsize(dtype) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def abstract_target(config: TargetConfig, dtype: str = "float32") -> Target:
    """The shapes of such a target on one device, with one of its layers: they are alike, and eighty would take seconds to trace."""
    return _abstract_target(dataclasses.replace(config, num_hidden_layers=1), dtype)


@functools.cache
def _abstract_target(config: TargetConfig, dtype: str) -> Target:
    with on_paper(1, 1):
        return jax.eval_shape(lambda: Target(jax.random.key(0), config, jnp.dtype(dtype)))


@functools.cache
def abstract_head(config: DrafterConfig, dtype: str = "float32") -> Drafter:
    """The shapes of a head, as it decodes, on one device."""
    with on_paper(1, 1):
        return jax.eval_shape(lambda: Drafter(jax.random.key(0), config, jnp.dtype(dtype)).split())


@functools.cache
def bytes_of_target(config: TargetConfig, dtype: str) -> int:
    """Bytes of a target's weights."""
    return bytes_of(abstract_target(config, dtype).embedding) + bytes_read_by_step(config, dtype)


def bytes_read_by_step(config: TargetConfig, dtype: str) -> int:
    """Bytes of the weights that a step of decoding reads: all but the embedding, of which it reads a few rows."""
    one = abstract_target(config, dtype)
    return bytes_of((one.norm, one.lm_head)) + config.num_hidden_layers * bytes_of(one.blocks)


@functools.cache
def bytes_of_head(config: DrafterConfig, dtype: str) -> int:
    """Bytes of a head's weights."""
    return bytes_of(abstract_head(config, dtype))


@functools.cache
def bytes_of_token(config: TargetConfig, dtype: str) -> int:
    """Bytes of one token's keys and values in all layers."""
    with on_paper(1, 1):
        one = jax.eval_shape(lambda: cache.empty(1, 1, config.num_key_value_heads, 1, config.head_dim, jnp.dtype(dtype)))
    return config.num_hidden_layers * bytes_of((one.keys, one.values))


def to_decode(
    target: TargetConfig, head: DrafterConfig | None, dtype: str, rows: int = 1, slots: int = 0, option: str = "rows"
) -> Footprint:
    """The load of decoding: the weights of a pair, and a cache of ``rows`` rows and ``slots`` slots."""
    size = bytes_of_target(target, dtype)
    size += bytes_of_head(vocabulary.materialised_config(head), dtype) if head else 0
    return Footprint(target, head, rows, option, size, cache=rows * slots * bytes_of_token(target, dtype))


def repeat_kv_heads(config: TargetConfig, model: int) -> TargetConfig:
    """The config that ``model`` shards compute with: where there are fewer key-value heads than shards, each is repeated, so
    that every shard has the one that its query heads read. The repeats cost cache and weights ``model / K`` times as large
    in all, and no more per device than one head's."""
    K = config.num_key_value_heads
    return config if model <= K else dataclasses.replace(config, num_key_value_heads=model)
