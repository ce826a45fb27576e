"""A checkpoint of 2 GB in many files is loaded without a second copy of it in the host's memory."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

D, F, V, H, K, C, LAYERS = 1024, 2816, 32000, 16, 8, 64, 36

MEASURE = """
import pathlib, sys
import jax
from redrafter_jax.files import weights
from redrafter_jax.devices.mesh import make_mesh

def kilobytes(name):
    return next(int(line.split()[1]) for line in pathlib.Path("/proc/self/status").read_text().splitlines() if name in line)

jax.set_mesh(make_mesh(int(sys.argv[2]), int(sys.argv[3])))
before = kilobytes("VmRSS")
target = jax.block_until_ready(weights.load_target(sys.argv[1]))
held = sum(shard.data.nbytes for leaf in jax.tree.leaves(target) for shard in leaf.addressable_shards)
print(held, (kilobytes("VmHWM") - before) * 1024)
"""


def write(folder: pathlib.Path) -> None:
    """A Llama-like checkpoint, one file per layer."""
    rng = np.random.default_rng(0)
    part = lambda **shapes: {name.replace("__", "."): rng.random(shape, np.float32) for name, shape in shapes.items()}  # noqa: E731
    parts = [part(model__embed_tokens__weight=(V, D)), part(lm_head__weight=(V, D), model__norm__weight=(D,))]
    for layer in range(LAYERS):
        names = {"input_layernorm": (D,), "post_attention_layernorm": (D,)}
        names |= {f"self_attn.{n}_proj": s for n, s in {"q": (H * C, D), "k": (K * C, D), "v": (K * C, D), "o": (D, H * C)}.items()}
        names |= {f"mlp.{name}_proj": shape for name, shape in {"gate": (F, D), "up": (F, D), "down": (D, F)}.items()}
        parts.append(part(**{f"model.layers.{layer}.{name}.weight": shape for name, shape in names.items()}))
    index = {}
    for number, tensors in enumerate(parts):
        save_file(tensors, folder / f"model-{number:05}.safetensors")
        index |= dict.fromkeys(tensors, f"model-{number:05}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS,
        "num_attention_heads": H, "num_key_value_heads": K, "head_dim": C,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_the_peak_is_at_most_15_percent_above_the_models_own_bytes(tmp_path, record_property):
    write(tmp_path)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    for mesh in (("1", "1"), ("1", "8"), ("2", "4")):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path), *mesh],
            capture_output=True, text=True, check=True, env=environment, cwd=pathlib.Path(__file__).parents[2],
        )  # fmt: skip
        held, peak = map(int, done.stdout.split())
        record_property(f"peak over the model's bytes, mesh {' x '.join(mesh)}", peak / held)
        assert held >= 1.9e9
        assert peak <= 1.15 * held
