"""docs/data/frontier.csv and docs/images/frontier.svg: tokens per step of several heads against what their drafts cost.

    python -m docs.scripts.frontier --text corpus/held_out corpus/held_out_packages --heads embedded/slim=HEAD embedded/full=HEAD
    python -m docs.scripts.frontier            # only draws the picture, from the file (needs matplotlib)

Groups that are not measured stay in the file as they are.

Tokens per step are those of one round from each of many places, greedy, search trees. Bytes are what a round's drafts read at
least (`slices/roofline.py`), as float32. Milliseconds are of one row's drafts without the target's pass: all cases in turn,
medians.
"""

import argparse
import csv
import functools
import pathlib
import statistics
import time

import jax
import numpy as np

from infer import text_files
from infer.evaluate.metrics import BATCH, Prompts
from infer.options import read_beams
from infer.pair import EMBEDDED
from infer.proposers import proposer_of
from redrafter_jax.decode import loop, prefill
from redrafter_jax.decode.engine import Engine, Sampling
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import processes
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import heads, weights
from redrafter_jax.slices.roofline import Setting
from redrafter_jax.slices.roofline import draft as count_draft
from train.calibrate import rounds

DOCS = pathlib.Path(__file__).parents[1]
DATA, PICTURE = DOCS / "data" / "frontier.csv", DOCS / "images" / "frontier.svg"
WIDTH = 4  # bytes of a float32
MARKS = "osD^v<>P*X"
COSTS = {"megabytes": "MB that a round's drafts read", "draft_ms": "ms of a round's drafts, one row"}


def main() -> None:
    """Measures where heads are named, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=pathlib.Path, default=EMBEDDED / "target")
    parser.add_argument("--heads", nargs="+", default=[], metavar="GROUP/NAME=FOLDER")
    parser.add_argument("--text", type=pathlib.Path, nargs="+", default=[])
    parser.add_argument("--beams", nargs="+", default=["4x2", "4x3", "4x4", "4x5"])
    parser.add_argument("--places", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    if options.heads:
        kept, measured = read(), {each.split("/", 1)[0] for each in options.heads}
        if list(kept[0])[-len(options.text) :] != [text.name for text in options.text]:
            parser.error(f"--text should be the columns of {DATA.name}: {', '.join(list(kept[0])[5:])}")
        rows = [row for row in kept if row["group"] not in measured] + measure(options)
        with DATA.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    draw()


def read() -> list[dict]:
    """The rows of the file."""
    with DATA.open(newline="") as file:
        return list(csv.DictReader(file))


def measure(options: argparse.Namespace) -> list[dict]:
    """A row for each head and shape."""
    jax.set_mesh(make_mesh())
    target = weights.load_target(options.target)
    drafters = {name: heads.load_head(pathlib.Path(folder)) for name, folder in (each.split("=", 1) for each in options.heads)}
    shapes = [Shape(*beam) for beam in read_beams(options.beams)]
    engines = {(name, shape): Engine(target, proposer_of(head, shape)) for name, head in drafters.items() for shape in shapes}
    columns = {}
    for text in options.text:
        stream = text_files.read_stream(text_files.texts([text], ()).files, options.target, target.config.vocab_size)
        contexts = Prompts(stream, options.places, rounds.CONTEXT_TOKENS).cut()
        columns[text.name] = rounds.read_each(engines, contexts, 0.0, BATCH)
    seconds = time_drafts(engines, contexts[0], options.repeats)
    rows = []
    for (name, shape), engine in engines.items():
        setting = Setting(target.config, drafters[name].config, data=1, model=1, batch=1, slots=1, width=WIDTH)
        found = {text: f"{each[name, shape]['accepted'].sum(axis=1).mean():.3f}" for text, each in columns.items()}
        cost = count_draft(setting, shape.width, shape.length)
        group, head = name.split("/", 1)
        row = {"group": group, "head": head, "beams": f"{shape.width}x{shape.length}", "megabytes": f"{cost.bytes / 1e6:.3f}"}
        rows.append(row | {"draft_ms": f"{1e3 * seconds[name, shape]:.3f}"} | found)
        print(*rows[-1].values(), engine.proposer.round.nodes, flush=True)
    return rows


def time_drafts(engines: dict, context: list[int], repeats: int) -> dict:
    """Seconds of the drafts of one row behind a context, of each engine: all in turn, medians."""
    propose = jax.jit(lambda target, proposer, view, memory: proposer.propose(target, view, memory)[0])
    calls, taken = {}, {key: [] for key in engines}
    for key, engine in engines.items():
        with jax.set_mesh(engine.mesh):
            length = engine.proposer.round.length
            given = [context], [len(context)], [length + 1], [[-1]]
            placed = (processes.put(np.asarray(values, np.int32), "data") for values in given)
            bucket = prefill.bucket(len(context), length + 1, length)
            state = loop.start(engine.target, engine.proposer, *placed, make_policy([Sampling()], [0]), bucket)
            calls[key] = functools.partial(propose, engine.target, engine.proposer, state.view(None), state.memory)
            jax.block_until_ready(calls[key]())
    for _ in range(repeats):
        for key, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            taken[key].append(time.perf_counter() - began)
    return {key: statistics.median(each) for key, each in taken.items()}


def draw() -> None:
    """A row of panels for each group of heads, a panel for each cost; a line for each head, a point for each length."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "redrafter_jax", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    rows = read()
    text, groups = list(rows[0])[-1], list(dict.fromkeys(row["group"] for row in rows))
    figure, panels = pyplot.subplots(len(groups), 2, figsize=(8.5, 3.4 * len(groups)), layout="constrained", squeeze=False)
    for axes, group in zip(panels, groups, strict=True):
        for axis, (cost, label) in zip(axes, COSTS.items(), strict=True):
            for number, name in enumerate(dict.fromkeys(row["head"] for row in rows if row["group"] == group)):
                points = [(float(row[cost]), float(row[text])) for row in rows if (row["group"], row["head"]) == (group, name)]
                axis.plot(*zip(*points, strict=True), f"{MARKS[number % len(MARKS)]}-", markersize=4, linewidth=1, label=name)
            axis.set(xlabel=label, title=group)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"tokens per step, {text.replace('_', ' ')}")
        axes[1].legend(fontsize=7)
    figure.savefig(PICTURE, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
