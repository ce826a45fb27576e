"""Checks, before a run, that a device has memory for an update of training."""

from redrafter_jax.devices import memory
from redrafter_jax.devices.placement import Footprint
from train.run.recipe import Recipe


def check(load: Footprint, recipe: Recipe, mesh: tuple[int, int]) -> None:
    """Raises BadInput unless a device of the mesh has memory for the weights, the head's gradients and moments
    (``load``), and the head's exits ``[K, B, T, E + r]`` and the features that it reads ``[B, T, F*D]``, which are stored in
    float32 for the backward pass; where the target is trained too, for the input of each layer and one layer's attention besides,
    in bfloat16 at least."""
    of_place = recipe.positions * (load.head.exit_size + recipe.bigram) + len(load.head.depths) * load.target.hidden_size
    exits = 4 * of_place * load.rows * recipe.row_length / mesh[0]
    if recipe.trains_target:
        target, places = load.target, load.rows * recipe.row_length / mesh[0]
        exits += 2 * places * target.num_hidden_layers * target.hidden_size
        exits += 2 * places * recipe.row_length * target.num_attention_heads / mesh[1]
    what = f"--batch {recipe.batch} and --accumulate {recipe.accumulate} with --row-length {recipe.row_length} and this target"
    memory.check_bytes(load.bytes_per_device(*mesh) + exits, what, mesh[0] * mesh[1])
