"""Which checkpoints on disk can be read, before anything depends on them.

Files are read array by array, by one process alone, so that all processes can follow its verdict: Orbax restores with
all processes together, and one that fails there leaves the others waiting. TensorStore notices a file that is missing or
cut. It does not notice a flipped bit, because Orbax writes chunks without a checksum; so a checkpoint also holds the sum of
the bits of every array (`sum_bits`), and it is compared here.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

from redrafter_jax.errors import BadInput

SUMS = "sums"  # the artefact that holds them: for every other artefact one uint32 per leaf, in the order of the names
MAX_REASON_CHARACTERS = 160  # characters; TensorStore's run to thousands


class ShapeMismatch(BadInput):
    """A checkpoint can be read, and its arrays are not of the shapes that were asked for."""


@jax.jit
def sum_bits(artefacts: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Of every artefact ``[leaves]`` uint32, in the order of the names: the sum of each leaf's words, modulo 2**32. Any one
    changed word changes it, and the shards of a leaf may be added in any order."""
    return {name: jnp.stack([_sum_leaf(leaves[key]) for key in sorted(leaves)]) for name, leaves in artefacts.items()}


def _sum_leaf(leaf: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)


def list_steps(folder: epath.Path) -> list[int]:
    """The steps whose checkpoints lie in a folder, damaged or not, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def find_damage(checkpoint: epath.Path, like: dict[str, dict[str, jax.ShapeDtypeStruct]]) -> str | None:
    """Why a checkpoint cannot be used, in words; None where it can.

    Args:
      like: the artefacts that are wanted of it, as flat dictionaries of shapes.

    Raises:
      Misfit: an array has another shape than ``like`` says.
    """
    try:
        read_scores(checkpoint)
        has_sums = (checkpoint / SUMS).is_dir()  # those of earlier versions have none
        for artefact, leaves in like.items():
            folder = checkpoint / artefact
            json.loads((folder / "_METADATA").read_text())
            expected = _read_array(checkpoint / SUMS, artefact) if has_sums else [None] * len(leaves)
            for name, bits in zip(sorted(leaves), expected, strict=True):
                array, like_ = _read_array(folder, name), leaves[name]
                if (array.shape, array.dtype) != (like_.shape, like_.dtype):
                    shapes = f"{array.dtype} {list(array.shape)}, not {like_.dtype} {list(like_.shape)}"
                    raise ShapeMismatch(f"{checkpoint} is of another configuration: {artefact}{name} is {shapes}")
                found = _find_wrong_bits(array, bits)
                if found is not None:
                    return f"{artefact}{name} {found}"
    except (ShapeMismatch, MemoryError):
        raise
    except Exception as error:  # files may hold anything, and so may the errors of the libraries that read them
        return " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
    return None


def read_scores(checkpoint: epath.Path) -> dict[str, float]:
    """What a checkpoint was saved with, such as its loss; empty where that was nothing.

    Raises:
      ValueError: the file does not hold a JSON object.
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
    """An array as Orbax stores it: Zarr 3 in an OCDBT database."""
    base = f"{artefact}/" if "://" in str(artefact) else {"driver": "file", "path": f"{artefact}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
    return np.asarray(opened.read().result())
