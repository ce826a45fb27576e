"""Medusa's heads on disk, in the layouts that others write and read.

layout   file                          tensors                                                    read  written
v0.1     medusa_lm_head.safetensors    {k}.{l}.linear.weight, .bias; {k}.{L}.weight: an LM head   yes   yes
v1.0     the target's own files        the same behind medusa_head.                               yes   no
vLLM     model.safetensors             medusa_heads.blocks.{k}.layers.{l}.weight, lm_heads.{k}    yes   yes

Sources: github.com/FasterDecoding/Medusa; vllm/model_executor/models/medusa.py. How many heads there are is counted in the
tensors: published configurations say 2 where the file has 5. Heads without LM heads of their own use the target's. Ours
are the config's `medusa_choices`, the paths of the tree.
"""

import pathlib
import re
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import safetensors

from redrafter_jax.devices import mesh, processes
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.files import config as configs
from redrafter_jax.files import tensors
from redrafter_jax.files.weight_files import files_of_tensors
from redrafter_jax.model.medusa import MedusaConfig, MedusaHeads
from redrafter_jax.model.target import Target

MODEL_TYPE, HEADS_KEY, TREE_KEY = "medusa", "medusa_num_heads", "medusa_choices"
HEAD_FILE = "medusa_lm_head.safetensors"
Layout = Literal["medusa", "vllm"]

_LAYOUTS = {
    "v0.1": ("{k}.{l}.linear.weight", "{k}.{l}.linear.bias", "{k}.{L}.weight"),
    "v1.0": ("medusa_head.{k}.{l}.linear.weight", "medusa_head.{k}.{l}.linear.bias", "medusa_head.{k}.{L}.weight"),
    "vllm": ("medusa_heads.blocks.{k}.layers.{l}.weight", "medusa_heads.blocks.{k}.layers.{l}.bias", "lm_heads.{k}.weight"),
    "vllm without its prefix": ("blocks.{k}.layers.{l}.weight", "blocks.{k}.layers.{l}.bias", "lm_heads.{k}.weight"),
}
_BLOCK, _BIAS, _LM_HEAD = range(3)
TOKEN_MAP = "token_map"  # vLLM's table of a draft vocabulary
_TABLE = re.compile(TOKEN_MAP)
_IGNORED = {"v1.0": re.compile(r"^(?!medusa_head\.)")}  # the target's tensors


def is_medusa(fields: dict[str, Any]) -> bool:
    """Whether a config.json is that of Medusa's heads, perhaps beside their target."""
    return fields.get("model_type") == MODEL_TYPE or HEADS_KEY in fields


def read_config(folder: pathlib.Path, what: str = "drafter") -> MedusaConfig:
    """The shapes of a folder's heads, by the tensors that there are.

    Raises:
      BadInput: there are no such tensors, or they are pickled, or they do not go together.
    """
    return _found(folder, what)[0]


def read_tree(folder: pathlib.Path, what: str = "drafter") -> tuple[tuple[int, ...], ...] | None:
    """The paths of the tree that the config names; None where it names none.

    Raises:
      BadInput: they are not lists of ranks.
    """
    paths = configs.read_json(folder, what).get(TREE_KEY)
    if paths is None:
        return None
    if not isinstance(paths, list) or not all(isinstance(path, list) and all(type(r) is int for r in path) for path in paths):
        raise BadInput(f"{what}: {TREE_KEY} in {folder / 'config.json'} should be a list of lists of ranks, not {shown(paths)}")
    return tuple(map(tuple, paths))


@mesh.current_or_single()
def load_medusa(folder: pathlib.Path | str, dtype: str = "float32", what: str = "drafter") -> MedusaHeads:
    """The heads of a folder, on the current mesh.

    Raises:
      BadInput: as for `read_config`; or a tensor is missing, misshapen, or holds NaN or Inf.
    """
    folder = pathlib.Path(folder)
    config, layout, files = _found(folder, what)
    abstract = jax.eval_shape(lambda: MedusaHeads(jax.random.key(0), config, jnp.dtype(dtype)))
    names = _names(layout, config)
    heads = tensors.fill(abstract, names.__getitem__, files, folder, what, _IGNORED.get(layout, _TABLE))
    if heads.ids is not None:
        configs.check_ids(processes.fetch(heads.ids[...]), config.vocab_size, TOKEN_MAP, folder, what)
    return heads


def save_medusa(
    heads: MedusaHeads,
    folder: pathlib.Path | str,
    layout: Layout = "medusa",
    base: str = "",
    target: Target | None = None,
    trained_for: dict | None = None,
) -> None:
    """Writes heads as Medusa's own code (v0.1) or vLLM reads them.

    Args:
      base: the target's name, which Medusa's own code loads by.
      target: gives its LM head to each head that has none, which the readers of vLLM's layout need.
      trained_for: as of `weights.save_drafter`.

    Raises:
      BadInput: there is no such layout, or it needs ``target`` and has none.
    """
    if layout not in get_args(Layout):
        raise BadInput(f"layout should be {' or '.join(get_args(Layout))}, not {shown(layout)}")
    config = heads.config
    if layout == "vllm" and config.tied and target is None:
        raise BadInput("vLLM's layout has an LM head for each head; give the target, whose LM head these use")
    names = _names("v0.1" if layout == "medusa" else "vllm", config)
    arrays = {names[path]: leaf for path, leaf in tensors.leaves(heads)}
    if layout == "vllm" and config.tied:
        columns = target.columns(heads.ids)
        arrays |= {(_LAYOUTS["vllm"][_LM_HEAD].format(k=k), True): columns for k in range(config.num_heads)}
    fields = _fields(config, layout, base, heads.blocks[0][0].weight[...].dtype)
    fields |= {} if trained_for is None else {configs.TRAINED_FOR_KEY: trained_for}
    tensors.write(folder, arrays, fields, HEAD_FILE if layout == "medusa" else "model.safetensors")


def _fields(config: MedusaConfig, layout: Layout, base: str, dtype) -> dict[str, object]:
    shared = {
        "model_type": MODEL_TYPE,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        HEADS_KEY: config.num_heads,
        "medusa_num_layers": config.num_blocks,
        "torch_dtype": str(dtype),
    }
    if config.tree is not None:
        shared[TREE_KEY] = [list(path) for path in config.tree]
    if layout == "medusa":
        return shared | {"base_model_name_or_path": base} | ({"version": "2"} if config.tied else {})
    return shared | {
        "architectures": ["MedusaModel"],
        "num_heads": config.num_heads,
        "num_hidden_layers": config.num_blocks,
        "medusa_fc_bias": config.bias,
        "truncated_vocab_size": config.draft_vocab or config.vocab_size,
    }


def _names(layout: str, config: MedusaConfig) -> dict[str, tuple[str, bool]]:
    """Leaf -> its name in the file, and whether the file holds it transposed."""
    block, bias, lm_head = _LAYOUTS[layout]
    names = {".ids": (TOKEN_MAP, False)}
    for k in range(config.num_heads):
        for l in range(config.num_blocks):  # noqa: E741
            names[f".blocks[{k}][{l}].weight"] = block.format(k=k, l=l), True
            names[f".blocks[{k}][{l}].bias"] = bias.format(k=k, l=l), False
        names[f".lm_heads[{k}]"] = lm_head.format(k=k, L=config.num_blocks), True
    return names


def _found(folder: pathlib.Path, what: str) -> tuple[MedusaConfig, str, dict[str, pathlib.Path]]:
    """The shapes, the layout, and the file of each tensor."""
    fields = configs.read_json(folder, what)
    alone = folder / HEAD_FILE
    if not alone.is_file() and alone.with_suffix(".pt").is_file():
        raise BadInput(
            f"{what}: {folder} has a {HEAD_FILE.replace('.safetensors', '.pt')}, which is not read, because unpickling runs code;"
            f' convert it with torch.load(PT, weights_only=True), then safetensors.torch.save_file(it, "{HEAD_FILE}")'
        )
    files = files_of_tensors(folder, what, HEAD_FILE if alone.is_file() else None)
    counted = {layout: _counted(names[_BLOCK], files) for layout, names in _LAYOUTS.items()}
    layout = next((layout for layout, (heads, _) in counted.items() if heads), None)
    if layout is None:
        raise BadInput(f"{what}: {folder} has no Medusa heads, such as the tensor {_LAYOUTS['v0.1'][_BLOCK].format(k=0, l=0)}")
    (heads, blocks), (block, bias, lm_head) = counted[layout], _LAYOUTS[layout]
    owned = [lm_head.format(k=k, L=blocks) in files for k in range(heads)]
    if any(owned) and not all(owned):
        raise BadInput(
            f"{what}: {folder} has an LM head for {sum(owned)} of {heads} Medusa heads; all of them or none should have one"
        )
    width = _shape(files, block.format(k=0, l=0))[0]
    rows = _shape(files, lm_head.format(k=0, L=blocks))[0] if all(owned) else None
    vocab = fields.get("vocab_size", rows)
    if type(vocab) is not int or vocab < 1:
        raise BadInput(
            f"{what}: {folder / 'config.json'} should have the target's vocab_size, for the heads have no LM heads of their own"
        )
    mapped = _shape(files, TOKEN_MAP)[0] if TOKEN_MAP in files else 0
    mapped = mapped if mapped < vocab and rows in (None, mapped) else 0  # vLLM passes over a table that cuts nothing
    config = MedusaConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_heads=heads,
        num_blocks=blocks,
        tied=not any(owned),
        draft_vocab=mapped,
        bias=bias.format(k=0, l=0) in files,
        tree=read_tree(folder, what),
    )
    return config, layout, files


def _counted(block: str, files: dict[str, pathlib.Path]) -> tuple[int, int]:
    """How many heads there are, and how many blocks each has."""
    pattern = re.compile(re.escape(block).replace(r"\{k\}", r"(\d+)").replace(r"\{l\}", r"(\d+)"))
    found = [tuple(map(int, match.groups())) for match in map(pattern.fullmatch, files) if match]
    return (1 + max(k for k, _ in found), 1 + max(l for _, l in found)) if found else (0, 0)  # noqa: E741


def _shape(files: dict[str, pathlib.Path], name: str) -> list[int]:
    with safetensors.safe_open(files[name], framework="numpy") as opened:
        return opened.get_slice(name).get_shape()
