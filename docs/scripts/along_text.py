"""Tokens per step of several heads along the same places of texts, with the paired differences from the first head.

    python -m docs.scripts.along_text --text corpus/held_out corpus/held_out_packages --drafters HEAD HEAD ... --beams 1x3 4x4 8x5

One round from each place, search trees, at T = 0 and at T = 1 coupled. `--nodes N` fills a budget of N nodes. More places than
`infer.evaluate` reads, so that differences of one percent show.
"""

import argparse
import pathlib

import jax
import numpy as np

from infer import text_files
from infer.evaluate.metrics import BATCH, Prompts
from infer.options import read_beams
from infer.pair import EMBEDDED
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import heads, weights
from train.calibrate import rounds


def main() -> None:
    """Prints a row for each text, temperature, shape and head."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=pathlib.Path, default=EMBEDDED / "target")
    parser.add_argument("--drafters", type=pathlib.Path, nargs="+", default=[EMBEDDED / "drafter_slim"])
    parser.add_argument("--text", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--beams", nargs="+", default=["1x3", "4x4", "8x5"])
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--places", type=int, default=2048)
    options = parser.parse_args()
    jax.set_mesh(make_mesh())
    target = weights.load_target(options.target)
    drafters = {folder: heads.load_head(folder) for folder in options.drafters}
    print("| text | T | W x L | head | tokens per step | change from the first head, ± standard error |\n|---|---|---|---|---|---|")
    for text in options.text:
        stream = text_files.read_stream(text_files.texts([text], ()).files, options.target, target.config.vocab_size)
        contexts = Prompts(stream, options.places, rounds.CONTEXT_TOKENS).cut()
        for temperature in options.temperatures:
            shapes = [Shape(*beam, options.nodes) for beam in read_beams(options.beams)]
            engines = {(shape, name): Engine(target, Recurrent(head, shape)) for shape in shapes for name, head in drafters.items()}
            found = rounds.read_each(engines, contexts, temperature, BATCH)
            for shape in shapes:
                tokens = {name: found[shape, name]["accepted"].sum(axis=1) for name in drafters}
                first = next(iter(tokens.values()))
                for name, each in tokens.items():
                    error = (each - first).std() / np.sqrt(len(first)) / first.mean()
                    change = f"{each.mean() / first.mean() - 1:+.1%} ± {error:.1%}"
                    row = (
                        text.name,
                        f"{temperature:g}",
                        f"{shape.width} x {shape.length}",
                        str(name),
                        f"{each.mean():.3f}",
                        change,
                    )
                    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
