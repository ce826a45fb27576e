"""How fast a checkpoint is loaded: ours beside safetensors' own reader, and the memory that each needs beyond the weights.

python docs/scripts/loading.py

Makes a checkpoint of 2 GB with random weights on the spot, a file per layer, and loads it in turn by both, each time in a process
of its own: `weights.load_target`, which checks every number and turns every matrix over; and `safetensors.numpy.load_file` with
`jax.device_put` of each tensor as it is stored, which does neither. The first load of each is not counted, so the file is read from
the operating system's memory.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).parents[2]
D, F, V, H, K, C = 1024, 2816, 32000, 16, 8, 64
LAYERS = {"float32": 36, "bfloat16": 74}  # that make 2 GB
CHILD = """
import pathlib, sys, time
import jax

def kilobytes(name):
    return next(int(line.split()[1]) for line in pathlib.Path("/proc/self/status").read_text().splitlines() if name in line)

way, folder, dtype = sys.argv[1:]
if way == "ours":
    from redrafter_jax.files import weights
    load = lambda: weights.load_target(folder, dtype)
else:
    import safetensors.numpy
    files = sorted(pathlib.Path(folder).glob("*.safetensors"))
    load = lambda: [jax.device_put(array) for file in files for array in safetensors.numpy.load_file(file).values()]
jax.block_until_ready(jax.device_put(1.0))
before, began, busy = kilobytes("VmRSS"), time.perf_counter(), time.process_time()
loaded = jax.block_until_ready(load())
seconds, busy = time.perf_counter() - began, time.process_time() - busy
size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
print(seconds, busy, size, (kilobytes("VmHWM") - before) * 1024)
"""


def write(folder: pathlib.Path, dtype: str = "float32", layers: int | None = None) -> None:
    """A Llama-like checkpoint, one file per layer."""
    rng, number_format = np.random.default_rng(0), np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
    layers = LAYERS[dtype] if layers is None else layers

    def part(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        return {f"{name}.weight": rng.random(shape, np.float32).astype(number_format) for name, shape in shapes.items()}

    parts = [part({"model.embed_tokens": (V, D)}), part({"lm_head": (V, D), "model.norm": (D,)})]
    for layer in range(layers):
        shapes = {"input_layernorm": (D,), "post_attention_layernorm": (D,)}
        heads = {"q": (H * C, D), "k": (K * C, D), "v": (K * C, D), "o": (D, H * C)}
        shapes |= {f"self_attn.{name}_proj": shape for name, shape in heads.items()}
        shapes |= {f"mlp.{name}_proj": shape for name, shape in {"gate": (F, D), "up": (F, D), "down": (D, F)}.items()}
        parts.append(part({f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}))
    index = {}
    for number, tensors in enumerate(parts):
        save_file(tensors, folder / f"model-{number:05}.safetensors")
        index |= dict.fromkeys(tensors, f"model-{number:05}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": layers,
        "num_attention_heads": H, "num_key_value_heads": K, "head_dim": C,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def measure(way: str, folder: pathlib.Path, dtype: str) -> tuple[float, float, int, int]:
    """Seconds, CPU seconds, the bytes of the weights, and the bytes of memory at the peak beyond those before."""
    command = [sys.executable, "-c", CHILD, way, str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, busy, size, peak = done.stdout.split()
    return float(seconds), float(busy), int(size), int(peak)


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=LAYERS, default="bfloat16", help="number format of the files, and of the weights")
    parser.add_argument("--repeats", type=int, default=5, help="loads of each that are timed; medians are printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, ways = pathlib.Path(name), ("ours", "load_file + device_put")
        write(folder, options.dtype)
        for way in ways:
            measure(way, folder, options.dtype)
        load, found = os.getloadavg()[0], {way: [] for way in ways}
        for _ in range(options.repeats):
            for way in ways:
                found[way].append(measure(way, folder, options.dtype))
    print(f"{options.dtype}, {os.cpu_count()} cores, load average {load:.2f} before, medians of {options.repeats}")
    for way, outcomes in found.items():
        seconds, busy, size, peak = (statistics.median(each) for each in zip(*outcomes, strict=True))
        rate = f"{size / seconds / 1e9:5.2f} GB/s  {busy:6.2f} CPU s"
        print(f"{way:<24} {seconds:6.2f} s  {rate}  peak {peak / size:.3f} x the weights")


if __name__ == "__main__":
    main()
