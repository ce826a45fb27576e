"""docs/images/tokens_per_step.svg, from infer/demo_pair/figures.json (needs matplotlib).

python docs/scripts/tokens_per_step.py
"""

import json

import matplotlib
from fit_rows import DATA
from scaling import IMAGES, save

FIGURES = DATA.parents[1] / "infer" / "demo_pair" / "figures.json"
HEADS = {"drafter_best": "best head", "drafter_slim": "slim head", "drafter": "the paper's head"}
MODES = {"greedy": "greedy", "coupled": "T = 1, coupled", "independent": "T = 1, independent", "along_text": "along held-out text"}


def main() -> None:
    """Draws a panel per head: tokens per step over the beam shapes, search trees."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "redrafter_jax", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figures = json.loads(FIGURES.read_text())
    figure, axes = pyplot.subplots(1, len(HEADS), figsize=(10, 2.9), sharey=True, layout="constrained")
    for axis, (head, name) in zip(axes, HEADS.items(), strict=True):
        rows = [row for row in figures[head] if row["tree"] == "search"]
        for number, (mode, label) in enumerate(MODES.items()):
            places = [place + (number - 1.5) * 0.2 for place in range(len(rows))]
            axis.bar(places, [row[mode] - 1 for row in rows], 0.2, 1, label=label)
        axis.set_xticks(range(len(rows)), [row["shape"].replace("x", " x ") for row in rows])
        axis.set(title=name, xlabel="W x L", ylim=(1, 4.2))
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("tokens per step (plain decoding: 1)")
    axes[0].legend(fontsize=8, ncols=2)
    save(figure, IMAGES / "tokens_per_step.svg")


if __name__ == "__main__":
    main()
