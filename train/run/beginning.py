"""A run that begins with the weights of a head that is there already, in place of random ones.

Parts that the new head has beyond that one begin as they do in an untrained head, where they change nothing or little.
"""

import dataclasses
import pathlib

import jax

from redrafter_jax.errors import BadInput
from redrafter_jax.files import heads
from redrafter_jax.files.heads import Head, HeadConfig
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import PARTS, Drafter

OPTION = "--begin-with"
FITTED = ("tree", "confidence", "candidates", "candidate_rank")  # fields of a config that are fitted after training


def load(folder: pathlib.Path, config: HeadConfig) -> Head:
    """The head to begin with, on the current mesh.

    Args:
      config: the shapes of the head that is trained.

    Raises:
      BadInput: there is no head, or it differs in more than the parts that the trained one adds.
    """
    begun = heads.read_head_config(folder, OPTION)
    if type(begun) is not type(config):
        raise BadInput(f"{OPTION}: {folder} holds a head of another --method")
    for field in dataclasses.fields(config):
        theirs, ours = getattr(begun, field.name), getattr(config, field.name)
        is_added = field.name in PARTS and theirs == field.default
        if theirs != ours and not is_added and field.name not in FITTED:
            theirs, ours = (_shown(field.name, value) for value in (theirs, ours))
            raise BadInput(f"{OPTION}: the head in {folder} has {theirs}, and the one that is trained {ours}")
    found = heads.load_head(folder, what=OPTION)
    return vocabulary.without_candidates(found) if isinstance(found, Drafter) else found


def _shown(name: str, value: object) -> str:
    """A field of a head's config, in words; features as the option has them."""
    return f"{name} {len(value)} (layers {list(value)})" if isinstance(value, tuple) else f"{name} {value}"


def grow(begun: Head, untrained: Head) -> Head:
    """The untrained head with copies of the weights of ``begun`` in place of its own, each where its sharding puts it."""
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(begun)}

    def place(path, leaf: jax.Array) -> jax.Array:
        found = known.get(jax.tree_util.keystr(path))
        return leaf if found is None else jax.device_put(found.astype(leaf.dtype), leaf.sharding, may_alias=False)

    return jax.tree_util.tree_map_with_path(place, untrained)
