"""Low-rank adapters (LoRA, arXiv 2106.09685) of a target's matrices: q, k, v, o and the feed-forward of every layer; experts and
their router stay as they are.

    y = x W + (alpha / R) x A B        W [in, out] is frozen; A [in, R] is random, B [R, out] begins at zero

so an untrained adapter leaves the target as it is, bit for bit. An adapter can be merged: W + (alpha / R) A B is a matrix like any
other. Not here: training one (`train/run/joint.py`), its files (`files/adapters.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import layers
from redrafter_jax.model.target import Block, Target, TargetConfig

ADAPTED = ("q", "k", "v", "o", "gate", "up", "down")  # the matrices of a block that it may have, in order


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """rank: R; alpha: the product A B is multiplied by alpha / R."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LowRank(nnx.Module):
    """A and B of one matrix. Each is split over ``model`` where the matrix is: A along ``in``, B along ``out``."""

    def __init__(self, key, shape: tuple[int, int], split: P, rank: int):
        self.a = layers.param(key, (shape[0], rank), P(split[0], None), jnp.float32)
        self.b = layers.zeros((rank, shape[1]), P(None, split[1]), jnp.float32)


class BlockAdapter(nnx.Module):
    """What is added to the matrices of one layer, under their names."""

    def __init__(self, key, block: Block, rank: int):
        for name, each in zip(ADAPTED, jax.random.split(key, len(ADAPTED)), strict=True):
            if hasattr(block, name):
                linear: layers.Linear = getattr(block, name)
                setattr(self, name, LowRank(each, linear.weight.shape, linear.split, rank))


class Adapter(nnx.Module):
    """What is added to the matrices of a target, in float32 so that small updates add up."""

    def __init__(self, key, target: TargetConfig, config: LoraConfig):
        self.config = config
        kinds = [target.has_experts(layer) for layer in range(target.num_hidden_layers)]
        like = {kind: jax.eval_shape(lambda kind=kind: Block(jax.random.key(0), target, jnp.float32, kind)) for kind in set(kinds)}
        keys = jax.random.split(key, target.num_hidden_layers)
        self.blocks = nnx.List([BlockAdapter(each, like[kind], config.rank) for each, kind in zip(keys, kinds, strict=True)])


class AdaptedLinear(nnx.Module):
    """A linear layer with its adapter beside it; it is called as `layers.Linear` is. Both factors are multiplied in the number
    format of the weight."""

    def __init__(self, linear: layers.Linear, low: LowRank, scale: float):
        self.linear, self.low, self.scale = linear, low, scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, ..., in]`` -> ``[B, ..., out]``."""
        split, dtype = self.linear.split, self.linear.weight.dtype
        narrow_BR = layers.times(x, self.low.a[...].astype(dtype), P(split[0], None))
        return self.linear(x) + self.scale * layers.times(narrow_BR, self.low.b[...].astype(dtype), P(None, split[1]))


class RecomputedBlock(nnx.Module):
    """A block whose backward pass computes it again: of each layer the input alone is kept, and not the attention's ``[T, T]``."""

    def __init__(self, block: Block):
        self.block = block

    def __call__(self, x_BND, table, visible_BNN, cached, seen_BNS=None, prefixes=()):
        again = jax.checkpoint(lambda block, *given: block(*given, prefixes))
        return again(self.block, x_BND, table, visible_BNN, cached, seen_BNS)


def _names(low: BlockAdapter) -> list[str]:
    return [name for name in ADAPTED if hasattr(low, name)]


def adapt(target: Target, adapter: Adapter, recompute: bool = False) -> Target:
    """The target with the adapter beside its matrices, which stay the same arrays. Gradients flow into both.

    Args:
      recompute: the backward pass computes each layer again (`RecomputedBlock`).
    """
    adapted = jax.tree.map(lambda leaf: leaf, target)  # new modules, the same arrays
    for layer, (block, low) in enumerate(zip(adapted.blocks, adapter.blocks, strict=True)):
        for name in _names(low):
            setattr(block, name, AdaptedLinear(getattr(block, name), getattr(low, name), adapter.config.scale))
        if recompute:
            adapted.blocks[layer] = RecomputedBlock(block)
    return adapted


def merge(target: Target, adapter: Adapter) -> Target:
    """The target whose matrices are W + (alpha / R) A B, added in float32 and rounded to W's number format."""
    merged = jax.tree.map(lambda leaf: leaf, target)
    for block, low in zip(merged.blocks, adapter.blocks, strict=True):
        for name in _names(low):
            linear, factors = getattr(block, name), getattr(low, name)
            spec = jax.typeof(linear.weight[...]).sharding.spec
            delta = layers.einsum("ir,ro->io", factors.a[...], factors.b[...], out_sharding=spec)
            weight = linear.weight[...].astype(jnp.float32) + adapter.config.scale * delta
            linear.weight = nnx.Param(weight.astype(linear.weight.dtype))
    return merged
