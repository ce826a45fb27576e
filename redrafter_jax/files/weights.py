"""Weights on disk: Hugging Face safetensors -> Target, Apple's drafter folder <-> Drafter (`tensors.py` moves the bytes)."""

import pathlib

import jax
import jax.numpy as jnp

from redrafter_jax import families
from redrafter_jax.devices import mesh, placement, processes
from redrafter_jax.families import names
from redrafter_jax.files import config as configs
from redrafter_jax.files import tensors
from redrafter_jax.files.weight_files import files_of_tensors
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target, TargetConfig

FORMAT_VERSION = "4.46.3"  # the transformers release whose layout Apple's drafter config.json follows

_DRAFTER_NAMES = [
    (r"\.(rnn_w|rnn_u|input_proj)\.weight", r"\1.weight", True),
    (r"\.(rnn_u|input_proj)\.bias", r"\1.bias", False),
    (r"\.blocks\[(\d+)\]\.weight", r"lm_head.\1.linear.weight", True),
    (r"\.blocks\[(\d+)\]\.bias", r"lm_head.\1.linear.bias", False),
    (r"\.ids", "draft_ids", False),
]


@mesh.current_or_single()
def load_target(folder: pathlib.Path | str, dtype: str = "float32", what: str = "target", spread: bool = False) -> Target:
    """A target from a Hugging Face folder (single or sharded safetensors), placed on the current mesh (one device, where
    no mesh is set). Where ``model`` has more shards than there are key-value heads, these are repeated, in the weights and in
    the config.

    Args:
      spread: split the weights over ``data`` too; they are gathered as they are used.

    Raises:
      BadInput: a file is missing or broken, the config is of no family, tensors are missing, extra or misshapen, or
        one holds NaN or Inf.
    """
    folder = pathlib.Path(folder)
    fields = configs.read_json(folder, what)
    config = configs.target_config(fields, what)
    family = families.of(config.model_type, what)
    fitted = placement.repeat_kv_heads(config, jax.sharding.get_abstract_mesh().shape["model"])
    copies = fitted.num_key_value_heads // config.num_key_value_heads
    abstract = jax.eval_shape(lambda: mesh.spread(Target(jax.random.key(0), fitted, jnp.dtype(dtype)), spread))
    files = files_of_tensors(folder, what)
    stored = families.stored_names(fields, files)
    stored_lm_head = "lm_head.weight" in stored or not config.tie_word_embeddings

    def name_of(path: str) -> names.Location:
        path = path if stored_lm_head or path != ".lm_head" else ".embedding_transposed"
        place = names.location(path, family.NAMES, config, stored)
        return place._replace(name=stored.get(place.name, place.name))

    ignored = families.ignored(fields, family)
    return tensors.fill(abstract, name_of, files, folder, what, ignored, (copies, config.head_dim))


@mesh.current_or_single()
def load_drafter(folder: pathlib.Path | str, dtype: str = "float32", what: str = "drafter") -> Drafter:
    """A draft head from a folder in Apple's format.

    Raises:
      BadInput: as for `load_target`.
    """
    folder = pathlib.Path(folder)
    config = configs.drafter_config(configs.read_json(folder, what), what)
    abstract = jax.eval_shape(lambda: Drafter(jax.random.key(0), config, jnp.dtype(dtype)))
    drafter = tensors.fill(abstract, lambda path: _drafter_name(path, config), files_of_tensors(folder, what), folder, what)
    if drafter.ids is not None:
        configs.check_ids(processes.fetch(drafter.ids[...]), config.vocab_size, "draft_ids", folder, what)
    return drafter


def save_drafter(drafter: Drafter, folder: pathlib.Path | str, target: Target | None = None) -> None:
    """Writes a head in Apple's format. With ``target`` it is written so that Apple's code can read it, a slim head with the
    target's LM head and a draft vocabulary as the whole one (`vocabulary.expand`); without, as it is (for this project)."""
    drafter = drafter if target is None else vocabulary.expand(drafter, target)
    config = drafter.config
    arrays = {_drafter_name(path, config): leaf for path, leaf in tensors.leaves(drafter)}
    dtype = next(leaf.dtype for leaf in arrays.values() if jnp.issubdtype(leaf.dtype, jnp.floating))
    fields = {
        "architectures": ["Drafter"],
        "exit_dim": config.exit_size,
        "hidden_size": config.hidden_size,
        "model_type": configs.DRAFTER_TYPE,
        "num_draft_layers": config.num_blocks,
        "num_lookback_tokens": -1,
        "rnn": config.rnn,
        "torch_dtype": str(dtype),
        "transformers_version": FORMAT_VERSION,
        "vocab_size": config.vocab_size,
    }
    if config.tied:
        fields[configs.TIED_KEY] = True
    if config.draft_vocab:
        fields[configs.DRAFT_VOCAB_KEY] = config.draft_vocab
    tensors.write(folder, arrays, fields)


def save_target(target: Target, folder: pathlib.Path | str, **extra: object) -> None:
    """Writes a target as a Hugging Face folder in the classic layout; ``extra`` goes into config.json (special tokens)."""
    config: TargetConfig = target.config
    family = families.of(config.model_type)
    kept = [(path, leaf) for path, leaf in tensors.leaves(target) if path != ".lm_head" or not config.tie_word_embeddings]
    arrays = {names.locations(path, family.NAMES, config)[0]: leaf for path, leaf in kept}
    tensors.write(folder, arrays, family.fields_of(config) | {"torch_dtype": str(target.norm[...].dtype)} | extra)


def _drafter_name(path: str, config: DrafterConfig) -> tuple[str, bool]:
    return (f"lm_head.{config.num_blocks}.weight", True) if path == ".lm_head" else tensors.rename(path, _DRAFTER_NAMES)
