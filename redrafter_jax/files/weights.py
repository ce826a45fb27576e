"""Weights on disk: Hugging Face safetensors -> Target, Apple's drafter folder <-> Drafter.

One device's part of one tensor at a time goes from the file to its place: a process reads the bytes that its own devices
need, and holds no tensor whole unless a device does. Files keep matrices ``[out, in]``; we keep ``[in, out]``.
"""

import json
import pathlib
import re
import stat
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from redrafter_jax import families
from redrafter_jax.devices import mesh, placement, processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config as configs
from redrafter_jax.files.atomic import replacing
from redrafter_jax.files.weight_files import Stored, files_of_tensors
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target, TargetConfig

KEY_VALUE = re.compile(r"\.blocks\[\d+\]\.[kv]\.")  # leaves whose rows are those of key-value heads
NOTHING = re.compile(r"(?!)")
FLOATS, INTEGERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16", "U16")
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
      BadInput: a file is missing or broken, the config is not Llama-like, tensors are missing, extra or misshapen, or
        one holds NaN or Inf.
    """
    folder = pathlib.Path(folder)
    fields = configs.read_json(folder, what)
    config, family = configs.target_config(fields, what), families.of(fields["model_type"], what)
    fitted = placement.repeat_kv_heads(config, jax.sharding.get_abstract_mesh().shape["model"])
    copies = fitted.num_key_value_heads // config.num_key_value_heads
    abstract = jax.eval_shape(lambda: mesh.spread(Target(jax.random.key(0), fitted, jnp.dtype(dtype)), spread))
    files = files_of_tensors(folder, what)
    stored_lm_head = "lm_head.weight" in files or not config.tie_word_embeddings

    def name_of(path: str) -> tuple[str, bool]:
        return _rename(path if stored_lm_head or path != ".lm_head" else ".embedding_transposed", family.NAMES)

    return _fill(abstract, name_of, files, folder, what, family.IGNORED, (copies, config.head_dim))


@mesh.current_or_single()
def load_drafter(folder: pathlib.Path | str, dtype: str = "float32", what: str = "drafter") -> Drafter:
    """A draft head from a folder in Apple's format.

    Raises:
      BadInput: as for `load_target`.
    """
    folder = pathlib.Path(folder)
    config = configs.drafter_config(configs.read_json(folder, what), what)
    abstract = jax.eval_shape(lambda: Drafter(jax.random.key(0), config, jnp.dtype(dtype)))
    drafter = _fill(abstract, lambda path: _drafter_name(path, config), files_of_tensors(folder, what), folder, what)
    if drafter.ids is not None:
        _check_ids(processes.fetch(drafter.ids[...]), config.vocab_size, folder, what)
    return drafter


def _check_ids(ids: np.ndarray, vocab_size: int, folder: pathlib.Path, what: str) -> None:
    if ids[0] < 0 or ids[-1] >= vocab_size or np.any(np.diff(ids) <= 0):
        raise BadInput(f"{what}: draft_ids in {folder} should be ascending ids from 0 to {vocab_size - 1}, each once")


def save_drafter(drafter: Drafter, folder: pathlib.Path | str, target: Target | None = None) -> None:
    """Writes a head in Apple's format. With ``target`` it is written so that Apple's code can read it, a slim head with the
    target's LM head and a draft vocabulary as the whole one (`vocabulary.expand`); without, as it is (for this project)."""
    drafter = drafter if target is None else vocabulary.expand(drafter, target)
    config = drafter.config
    arrays = {_drafter_name(path, config): leaf for path, leaf in _leaves(drafter)}
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
    _write(folder, arrays, fields)


def save_target(target: Target, folder: pathlib.Path | str, **extra: object) -> None:
    """Writes a target as a Hugging Face folder in the classic layout; ``extra`` goes into config.json (special tokens)."""
    config: TargetConfig = target.config
    family = families.llama  # of the targets that are made here
    arrays = {_rename(path, family.NAMES): leaf for path, leaf in _leaves(target)}
    if config.tie_word_embeddings:
        del arrays["lm_head.weight", True]
    _write(folder, arrays, family.fields_of(config) | {"torch_dtype": str(target.norm[...].dtype)} | extra)


def _write(folder: pathlib.Path | str, arrays: dict[tuple[str, bool], jax.Array], fields: dict[str, object]) -> None:
    """All processes call it; the first writes."""
    host = {name: processes.fetch(leaf) for (name, _), leaf in arrays.items()}
    if not processes.is_first():
        return
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    host = {name: np.ascontiguousarray(host[name].T if flip else host[name]) for name, flip in arrays}
    with replacing(folder / "config.json") as config, replacing(folder / "model.safetensors") as tensors:
        safetensors.numpy.save_file(host, tensors, metadata={"format": "pt"})
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        tensors.chmod(stat.S_IMODE(config.stat().st_mode))  # safetensors makes a file that only its owner may read


def _drafter_name(path: str, config: DrafterConfig) -> tuple[str, bool]:
    return (f"lm_head.{config.num_blocks}.weight", True) if path == ".lm_head" else _rename(path, _DRAFTER_NAMES)


def _rename(path: str, table: list[tuple[str, str, bool]]) -> tuple[str, bool]:
    """The name in the file of a leaf of ours, and whether the file holds it transposed."""
    for ours, theirs, transposed in table:
        match = re.fullmatch(ours, path)
        if match:
            return match.expand(theirs), transposed
    raise KeyError(path)


def _leaves(module) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(module):
        yield re.sub(r"\.value$|\.raw_value$|\.get_value\(\)$", "", jax.tree_util.keystr(path)), leaf


def _fill(
    abstract, name_of: Callable[[str], tuple[str, bool]], files, folder: pathlib.Path, what: str, ignored=NOTHING, repeated=(1, 1)
):
    """A model with these leaves from the tensors of a folder.

    Args:
      ignored: names of tensors that need no place.
      repeated: how often each key-value head is wanted, and its width.
    """
    wanted = {path: name_of(path) for path, _ in _leaves(abstract)}
    names = {name for name, _ in wanted.values()}
    missing = sorted(name for name in names if name not in files)
    extra = sorted(name for name in files if name not in names and not ignored.search(name))
    if missing:
        raise BadInput(f"{what}: {folder} lacks the tensor {missing[0]} ({len(missing)} missing in all)")
    if extra:
        raise BadInput(f"{what}: {folder} has the tensor {extra[0]}, which its config.json has no place for ({len(extra)} in all)")
    stored = []
    for path, leaf in _leaves(abstract):
        name, transposed = wanted[path]
        copies, width = repeated if KEY_VALUE.match(path) else (1, 1)
        with safetensors.safe_open(files[name], framework="numpy") as opened:
            _check(opened.get_slice(name), name, leaf, transposed, copies, folder, what)
        stored.append(Stored(files[name], name, transposed, copies, width, what))
    leaves = [_place(leaf, each) for (_, leaf), each in zip(_leaves(abstract), stored, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _check(tensor, name: str, like, transposed: bool, copies: int, folder: pathlib.Path, what: str) -> None:
    first, *rest = like.shape[::-1] if transposed else like.shape
    shape = (first // copies, *rest)
    if tuple(tensor.get_shape()) != shape:
        found = list(tensor.get_shape())
        raise BadInput(f"{what}: {name} in {folder} has shape {found}; its config.json asks for {list(shape)}")
    if jnp.issubdtype(like.dtype, jnp.integer):
        if tensor.get_dtype() not in INTEGERS:
            raise BadInput(f"{what}: {name} in {folder} is {tensor.get_dtype()}; it should hold whole numbers")
    elif tensor.get_dtype() not in FLOATS:
        raise BadInput(f"{what}: {name} in {folder} is {tensor.get_dtype()}; only floating-point weights are supported")


def _place(like, stored: Stored) -> jax.Array:
    """A leaf on the current mesh, from the parts of it that this process's devices hold, each read once."""
    sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), like.sharding.spec)
    by_device = sharding.addressable_devices_indices_map(like.shape)
    places: dict[tuple, list] = {}
    for device, index in by_device.items():
        places.setdefault(tuple((each.start, each.stop) for each in index), []).append(device)
    placed = {}
    for devices in places.values():
        part = stored.part(by_device[devices[0]], like.shape, like.dtype)
        placed |= {device: jax.device_put(part, device) for device in devices}
        jax.block_until_ready([placed[device] for device in devices])  # else several parts wait on the host
    return jax.make_array_from_single_device_arrays(like.shape, sharding, [placed[device] for device in by_device])
