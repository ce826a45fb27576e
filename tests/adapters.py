"""A low-rank adapter in PEFT's format, for the tests of several commands."""

import json
import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file


def write(folder: pathlib.Path, target: pathlib.Path, alpha: float = 8) -> pathlib.Path:
    """An adapter of every q and down of a target."""
    stored, rng, factors = load_file(target / "model.safetensors"), np.random.default_rng(1), {}
    for name, matrix in stored.items():
        if "q_proj" in name or "down_proj" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            height, width = matrix.shape
            factors[f"{module}.lora_A.weight"] = rng.normal(size=(2, width)).astype(np.float32)
            factors[f"{module}.lora_B.weight"] = 0.1 * rng.normal(size=(height, 2)).astype(np.float32)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": alpha}))
    return folder
