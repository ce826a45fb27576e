"""A target's adapter on disk: in PEFT's format, and merged into the target's own files.

The merged target is the original's folder with other numbers in the adapted matrices: W + (alpha / R) A B is added in float32 and
rounded to the number format that the file has. Everything else is copied. Not here: what the folders may replace (`claims.py`).
"""

import json
import pathlib
import shutil
import stat

import numpy as np
import safetensors
import safetensors.numpy

from redrafter_jax import families
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config as configs
from redrafter_jax.files import fingerprint, json_files, tensors
from redrafter_jax.files.atomic import replacing
from redrafter_jax.files.weight_files import files_of_tensors, is_finite
from redrafter_jax.model.lora import ADAPTED, Adapter

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGED_KEY = "redrafter_jax_merged"  # of a merged target's config.json, which other programs pass over


def save_peft(adapter: Adapter, folder: pathlib.Path, source: pathlib.Path, base: str, what: str = "target") -> None:
    """Writes an adapter as PEFT reads it, for the target in ``source``, which it calls ``base``. All processes call it."""
    names = tensor_names(source, what, len(adapter.blocks))
    arrays = {}
    for path, leaf in tensors.leaves(adapter):
        matrix, _, factor = path.rpartition(".")
        arrays[f"base_model.model.{names[matrix].removesuffix('.weight')}.lora_{factor.upper()}.weight", True] = leaf
    alpha = adapter.config.alpha
    modules = sorted({name.split(".")[-2] for name in names.values()})
    fields = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": adapter.config.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
    }
    tensors.write(folder, arrays, fields, PEFT_WEIGHTS, PEFT_CONFIG)


def save_merged(adapter: Adapter, folder: pathlib.Path, source: pathlib.Path, base: str, what: str = "target") -> None:
    """Writes the target in ``source`` with its adapter merged, file by file. All processes call it; the first writes.

    Raises:
      BadInput: a merged weight is too large for its number format.
    """
    host = {path: processes.fetch(leaf) for path, leaf in tensors.leaves(adapter)}
    if not processes.is_first():
        return
    names = tensor_names(source, what, len(adapter.blocks))
    factors = {name: (host[f"{path}.a"], host[f"{path}.b"]) for path, name in names.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(set(files_of_tensors(source, what).values())):
        with safetensors.safe_open(file, framework="numpy") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
            note = opened.metadata() or {"format": "pt"}
        for name in found.keys() & factors.keys():
            found[name] = _merged(found[name], *factors[name], adapter.config.scale, f"{what}: {name} in {file}")
        with replacing(folder / file.name) as new:
            safetensors.numpy.save_file(found, new, metadata=note)
            new.chmod(stat.S_IMODE(file.stat().st_mode) | stat.S_IWUSR)
    for file in fingerprint.list_small_files(source):
        if file.name != "config.json":
            (folder / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.relative_to(source))
    with replacing(folder / "config.json") as new:  # the last: without it the folder is no model
        how = {"from": base, "rank": adapter.config.rank, "alpha": adapter.config.alpha}
        new.write_text(json.dumps(configs.read_json(source, what) | {MERGED_KEY: how}, indent=2) + "\n")


def original_of(folder: pathlib.Path) -> str | None:
    """What the original of a merged target was called; None: the target in the folder is not merged."""
    found = (json_files.find_object(folder / "config.json") or {}).get(MERGED_KEY)
    base = found.get("from") if isinstance(found, dict) else None
    return base if isinstance(base, str) else None


def tensor_names(source: pathlib.Path, what: str, layers: int) -> dict[str, str]:
    """The names that a target's files give to the matrices which an adapter changes, by their paths in both."""
    fields = configs.read_json(source, what)
    family, stored = families.read(fields, what)[0], families.stored_names(fields, files_of_tensors(source, what))
    paths = [f".blocks[{layer}].{name}" for layer in range(layers) for name in ADAPTED]
    names = {path: tensors.rename(f"{path}.weight", family.NAMES)[0] for path in paths}
    return {path: stored.get(name, name) for path, name in names.items()}


def _merged(stored: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float, where: str) -> np.ndarray:
    """A matrix ``[out, in]`` as its file has it, plus its adapter's product."""
    with np.errstate(over="ignore", invalid="ignore"):
        changed = (stored.astype(np.float32) + scale * (a @ b).T).astype(stored.dtype)
    if not is_finite(changed):
        raise BadInput(f"{where} becomes too large for {stored.dtype} where the adapter is merged")
    return np.ascontiguousarray(changed)
