"""Which checkpoints on disk can be read, before anything depends on them.

One process reads the files, array by array, and all processes follow its verdict. (Orbax restores in all processes
together, and one that fails there leaves the others waiting.) TensorStore notices a file that is missing or truncated.
It does not notice a flipped bit, because Orbax writes chunks without a checksum; so a checkpoint also stores the sum of
the bits of every array (`sum_bits`), which is compared here.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

from redrafter_jax.errors import BadInput

SUMS = "sums"  # an artefact: for every other artefact one uint32 per leaf, in the order of their names
MAX_REASON_CHARACTERS = 160  # TensorStore's reasons run to thousands


class ShapeMismatch(BadInput):
    """A checkpoint can be read, and its arrays do not have the expected shapes."""


@jax.jit
def sum_bits(artefacts: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """For every artefact ``[leaves]`` uint32, in the order of their names: the sum of the leaf's words, modulo 2**32. A
    change of any one word changes the sum, and the shards of a leaf may be added in any order."""
    return {name: jnp.stack([_sum_leaf(leaves[key]) for key in sorted(leaves)]) for name, leaves in artefacts.items()}


def _sum_leaf(leaf: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)


def list_steps(folder: epath.Path) -> list[int]:
    """The steps of the checkpoints in a folder, damaged or not, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def find_damage(checkpoint: epath.Path, like: dict[str, dict[str, jax.ShapeDtypeStruct]]) -> str | None:
    """Why a checkpoint cannot be used, in words; None: it can.

    Args:
      like: the artefacts that are needed, as flat dictionaries of shapes.

    Raises:
      ShapeMismatch: an array has another shape than ``like`` says.
    """
    try:
        read_scores(checkpoint)
        has_sums = (checkpoint / SUMS).is_dir()  # checkpoints of earlier versions have none
        for artefact, leaves in like.items():
            folder = checkpoint / artefact
            json.loads((folder / "_METADATA").read_text())
            expected = _read_array(checkpoint / SUMS, artefact) if has_sums else [None] * len(leaves)
            for name, bits in zip(sorted(leaves), expected, strict=True):
                array, leaf = _read_array(folder, name), leaves[name]
                if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                    shapes = f"{array.dtype} {list(array.shape)}, not {leaf.dtype} {list(leaf.shape)}"
                    raise ShapeMismatch(f"{checkpoint} is of another configuration: {artefact}{name} is {shapes}")
                found = _find_wrong_bits(array, bits)
                if found is not None:
                    return f"{artefact}{name} {found}"
    except (ShapeMismatch, MemoryError):
        raise
    except Exception as error:  # a file may contain anything, and so may the error of the library that reads it
        return " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
    return None


def read_scores(checkpoint: epath.Path) -> dict[str, float]:
    """The scores that a checkpoint was saved with, such as its loss; may be empty.

    Raises:
      ValueError: the file is not a JSON object.
    """
    file = checkpoint / "metrics" / "metrics"
    found = json.loads(file.read_text()) if file.exists() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file} does not hold a JSON object")
    return found


def _find_wrong_bits(array: np.ndarray, bits: np.uint32 | None) -> str | None:
    words = array.view(f"uint{8 * array.dtype.itemsize}")
    if bits is not None and words.sum(dtype=np.uint32) != bits:
        return "does not hold the numbers that were saved"
    if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
        return "holds numbers that are not finite"
    return None


def _read_array(artefact: epath.Path, name: str) -> np.ndarray:
    """Reads an array as Orbax stores it: Zarr 3 in an OCDBT database."""
    base = f"{artefact}/" if "://" in str(artefact) else {"driver": "file", "path": f"{artefact}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
    return np.asarray(opened.read().result())
