"""Weights on disk: Hugging Face safetensors -> Target, Apple's drafter folder <-> Drafter (`tensors.py` moves the bytes)."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from redrafter_jax import families
from redrafter_jax.devices import mesh, placement, processes
from redrafter_jax.errors import BadInput
from redrafter_jax.families import names
from redrafter_jax.files import config as configs
from redrafter_jax.files import quantisation, tensors
from redrafter_jax.files.peft import StoredAdapter
from redrafter_jax.files.weight_files import files_of_tensors
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.quantised import Quantised, quantise
from redrafter_jax.model.target import Target, TargetConfig

FORMAT_VERSION = "4.46.3"  # the transformers release whose layout Apple's drafter config.json follows

_DRAFTER_NAMES = [
    (r"\.(rnn_w|rnn_u|input_proj)\.weight", r"\1.weight", True),
    (r"\.(rnn_u|input_proj)\.bias", r"\1.bias", False),
    (r"\.blocks\[(\d+)\]\.weight", r"lm_head.\1.linear.weight", True),
    (r"\.blocks\[(\d+)\]\.bias", r"lm_head.\1.linear.bias", False),
    (r"\.bigram\.rows", "bigram.rows.weight", False),
    (r"\.bigram\.columns", "bigram.columns.weight", True),
    (r"\.candidates\.(down|up)", r"candidates.\1.weight", True),
    (r"\.candidates\.bigram_rows", "bigram.columns.weight", False),
    (r"\.gates\.(\w+)\.weight", r"gates.\1.weight", True),
    (r"\.gates\.(\w+)\.bias", r"gates.\1.bias", False),
    (r"\.depths\.mix\.weight", "depths.weight", True),
    (r"\.ids", "draft_ids", False),
]


@mesh.current_or_single()
def load_target(
    folder: pathlib.Path | str,
    dtype: str = "float32",
    what: str = "target",
    spread: bool = False,
    adapter: StoredAdapter | None = None,
    weights: str | None = None,
) -> Target:
    """A target from a Hugging Face folder (single or sharded safetensors), placed on the current mesh (one device, where
    no mesh is set). Where ``model`` has more shards than there are key-value heads, these are repeated, in the weights and in
    the config.

    Args:
      spread: split the weights over ``data`` too; they are gathered as they are used.
      adapter: low-rank matrices that are added (`peft.read`), in float32, before the sum is rounded to ``dtype`` or quantised.
      weights: a format of `quantised.FORMATS`, which the matrices of the layers are quantised to as they are read, one after the
        other; embedding, norms, routers and LM head stay in ``dtype``. None: as the folder has them.

    Raises:
      BadInput: a file is missing or broken, the config is of no family, tensors are missing, extra or misshapen, one holds NaN or
        Inf, or the adapter is for another target.
    """
    folder = pathlib.Path(folder)
    fields = configs.read_json(folder, what)
    config = configs.target_config(fields, what, weights)
    family = families.of(config.model_type, what)
    compression = quantisation.read(families.text_fields(fields, what), what)
    if compression is not None and adapter is not None:
        is_quantised = f"the target in {folder} is stored in {compression.weight_format}"
        raise BadInput(f"{adapter.what}: {is_quantised}; an adapter is merged into float weights alone")
    fitted = placement.repeat_kv_heads(config, jax.sharding.get_abstract_mesh().shape["model"])
    repeated = fitted.num_key_value_heads // config.num_key_value_heads, config.head_dim
    abstract = _abstract(fitted, dtype, spread)
    files = files_of_tensors(folder, what)
    stored = families.stored_names(fields, files)
    stored_lm_head = "lm_head.weight" in stored or not config.tie_word_embeddings

    def name_of(path: str) -> names.Location:
        path = path if stored_lm_head or path != ".lm_head" else ".embedding_transposed"
        return names.location(path, family.NAMES, config, stored)

    def in_files(path: str) -> names.Location:
        place = name_of(path) if compression is None else compression.name_of(path, name_of)
        return place._replace(name=stored.get(place.name, place.name))

    ignored, floats, made = families.ignored(fields, family), abstract, {}
    if compression is not None:
        ignored = re.compile(f"{ignored.pattern}|{quantisation.IGNORED.pattern}")
        compression.check_complete((path for path, _ in tensors.leaves(abstract)), in_files, files, f"{what}: {folder}")
    elif config.weight_format is not None:
        floats = _abstract(dataclasses.replace(fitted, weight_format=None), dtype, spread)
        made = _quantisers(abstract, config.weight_format)
    return tensors.fill(floats, in_files, files, folder, what, ignored, repeated, adapter, made, abstract)


def _abstract(config: TargetConfig, dtype: str, spread: bool) -> Target:
    return jax.eval_shape(lambda: mesh.spread(Target(jax.random.key(0), config, jnp.dtype(dtype)), spread))


def _quantisers(abstract: Target, weight_format: str) -> dict[str, Callable[[jax.Array], Quantised]]:
    """What makes each quantised matrix of a target from the float one, by the path of that one."""

    def quantise_as(scale, weight: jax.Array) -> Quantised:
        found = quantise(weight, weight_format)
        return Quantised(found.values[...], jax.sharding.reshard(found.scale[...], scale.sharding.spec))

    scales = {path.removesuffix(".scale"): leaf for path, leaf in tensors.leaves(abstract) if path.endswith(".scale")}
    return {path: functools.partial(quantise_as, leaf) for path, leaf in scales.items()}


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


def save_drafter(
    drafter: Drafter, folder: pathlib.Path | str, target: Target | None = None, trained_for: dict | None = None
) -> None:
    """Writes a head in Apple's format. With ``target`` it is written so that Apple's code can read it, a slim head with the
    target's LM head and a draft vocabulary as the whole one (`vocabulary.expand`); without, as it is (for this project).

    Raises:
      BadInput: there is a target, and the head has parts that Apple's architecture has no place for.

    Args:
      trained_for: the target that it was trained for (`provenance.describe`), where that is known.
    """
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
    fields |= {key: value for key, value in configs.fields_of_parts(config).items() if value}
    if trained_for is not None:
        fields[configs.TRAINED_FOR_KEY] = trained_for
    tensors.write(folder, arrays, fields)


def save_target(target: Target, folder: pathlib.Path | str, **extra: object) -> None:
    """Writes a target as a Hugging Face folder in the classic layout; ``extra`` goes into config.json (special tokens).

    Raises:
      BadInput: it is quantised; the float one can be written, and quantised as it is read.
    """
    config: TargetConfig = target.config
    if config.weight_format is not None:
        raise BadInput(f"a target with {config.weight_format} weights is not written; write the float one, and load it so")
    family = families.of(config.model_type)
    kept = [(path, leaf) for path, leaf in tensors.leaves(target) if path != ".lm_head" or not config.tie_word_embeddings]
    arrays = {names.locations(path, family.NAMES, config)[0]: leaf for path, leaf in kept}
    tensors.write(folder, arrays, family.fields_of(config) | {"torch_dtype": str(target.norm[...].dtype)} | extra)


def _drafter_name(path: str, config: DrafterConfig) -> tuple[str, bool]:
    if path in (".lm_head", ".candidates.rows"):  # files keep it by token, as a candidate head does
        return f"lm_head.{config.num_blocks}.weight", path == ".lm_head"
    return tensors.rename(path, _DRAFTER_NAMES)
