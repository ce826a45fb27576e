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
from redrafter_jax.families import names
from redrafter_jax.files import config as configs
from redrafter_jax.files import fingerprint, json_files, tensors
from redrafter_jax.files.atomic import replacing
from redrafter_jax.files.weight_files import files_of_tensors, is_finite
from redrafter_jax.model.lora import Adapter

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGED_KEY = "redrafter_jax_merged"  # of a merged target's config.json, which other programs pass over


def save_peft(adapter: Adapter, folder: pathlib.Path, source: pathlib.Path, base: str, what: str = "target") -> None:
    """Writes an adapter as PEFT reads it, for the target in ``source``, which it calls ``base``. All processes call it."""
    host = {path: processes.fetch(leaf) for path, leaf in tensors.leaves(adapter)}
    modules = _by_tensor(adapter, source, what)
    config, arrays, wider = adapter.config, {}, {}
    for name, parts in modules.items():
        name = name.removesuffix(".weight")
        of_a, of_b = ([host[f"{path}.{factor}"] for path, _ in parts] for factor in ("a", "b"))
        arrays[f"base_model.model.{name}.lora_A.weight", True] = np.concatenate(of_a, axis=1)
        arrays[f"base_model.model.{name}.lora_B.weight", True] = _block_diagonal(of_b)
        wider |= {name: len(parts)} if len(parts) > 1 else {}
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    fields = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": sorted({name.split(".")[-2] for name in modules}),
        "task_type": "CAUSAL_LM",
    }
    if wider:  # a tensor of several matrices has all of their factors side by side, at the same alpha / R
        fields["rank_pattern"] = {name: count * config.rank for name, count in wider.items()}
        fields["alpha_pattern"] = {name: count * alpha for name, count in wider.items()}
    tensors.write(folder, arrays, fields, PEFT_WEIGHTS, PEFT_CONFIG)


def save_merged(adapter: Adapter, folder: pathlib.Path, source: pathlib.Path, base: str, what: str = "target") -> None:
    """Writes the target in ``source`` with its adapter merged, file by file. All processes call it; the first writes.

    Raises:
      BadInput: a merged weight is too large for its number format.
    """
    host = {path: processes.fetch(leaf) for path, leaf in tensors.leaves(adapter)}
    if not processes.is_first():
        return
    factors = {
        name: [(first, host[f"{path}.a"], host[f"{path}.b"]) for path, first in parts]
        for name, parts in _by_tensor(adapter, source, what).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(set(files_of_tensors(source, what).values())):
        with safetensors.safe_open(file, framework="numpy") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
            note = opened.metadata() or {"format": "pt"}
        for name in found.keys() & factors.keys():
            found[name] = _merged(found[name], factors[name], adapter.config.scale, f"{what}: {name} in {file}")
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


def _by_tensor(adapter: Adapter, source: pathlib.Path, what: str) -> dict[str, list[tuple[str, int]]]:
    """The matrices which an adapter changes, by the tensors in which a target's files have them: their paths in both, and the rows
    at which they begin, ascending."""
    fields = configs.read_json(source, what)
    (family, config), stored = families.read(fields, what), families.stored_names(fields, files_of_tensors(source, what))
    found: dict[str, list[tuple[str, int]]] = {}
    for path in dict.fromkeys(path.rpartition(".")[0] for path, _ in tensors.leaves(adapter)):
        place = names.location(f"{path}.weight", family.NAMES, config, stored)
        found.setdefault(stored.get(place.name, place.name), []).append((path, place.first))
    return {name: sorted(parts, key=lambda part: part[1]) for name, parts in found.items()}


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    rows, columns = (np.cumsum([0, *sizes]) for sizes in zip(*(block.shape for block in blocks), strict=True))
    joined = np.zeros((rows[-1], columns[-1]), blocks[0].dtype)
    for number, block in enumerate(blocks):
        joined[rows[number] : rows[number + 1], columns[number] : columns[number + 1]] = block
    return joined


def _merged(stored: np.ndarray, factors: list[tuple[int, np.ndarray, np.ndarray]], scale: float, where: str) -> np.ndarray:
    """A matrix ``[out, in]`` as its file has it, plus its adapter's product; of several below each other, each at its rows."""
    with np.errstate(over="ignore", invalid="ignore"):
        changed = stored.astype(np.float32)
        for first, a, b in factors:
            changed[first : first + b.shape[1]] += scale * (a @ b).T
        changed = changed.astype(stored.dtype)
    if not is_finite(changed):
        raise BadInput(f"{where} becomes too large for {stored.dtype} where the adapter is merged")
    return np.ascontiguousarray(changed)
