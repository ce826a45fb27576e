"""The table and the two plots of docs/reports/scaling.md, from docs/data/fit.csv and floors.csv.

    python docs/scripts/scaling.py           # writes the table into the page, and docs/images/*.svg (needs matplotlib)
    python docs/scripts/scaling.py --check   # only says whether the page has the table of today's data
"""

import argparse
import pathlib
import sys

from fit_rows import DATA, read_rows

PAGE = DATA.parent / "reports" / "scaling.md"
IMAGES = DATA.parent / "images"
BEGIN, END = "<!-- table from docs/data: docs/scripts/scaling.py -->", "<!-- end of table -->"
BATCHES = ("1", "8", "64")
PAYS = 1.5  # plain steps; the default of `infer.fit --most`
NAMES = {
    "qwen3-0.6b": "Qwen3-0.6B sizes", "vicuna-7b": "Vicuna / Llama 7B", "llama-13b": "Llama 13B", "llama-33b": "Llama 33B",
    "llama-3.1-8b": "Llama-3.1 8B", "llama-3.1-70b": "Llama-3.1 70B",
}  # fmt: skip
SHOWN = (
    ("qwen3-0.6b", "v5e:1x1"),
    ("vicuna-7b", "v5e:2x2"), ("vicuna-7b", "v5e:2x4"), ("vicuna-7b", "v6e:2x4"), ("vicuna-7b", "v5p:2x2x1"),
    ("llama-13b", "v5e:2x4"),
    ("llama-33b", "v6e:2x2"), ("llama-33b", "v5p:2x2x1"),
    ("llama-3.1-8b", "v5e:2x2"), ("llama-3.1-8b", "v5e:2x4"), ("llama-3.1-8b", "v6e:2x4"),
    ("llama-3.1-70b", "v5e:4x4"), ("llama-3.1-70b", "v6e:2x4"), ("llama-3.1-70b", "v5p:2x2x2"),
)  # fmt: skip
HEADINGS = ("model", "slice, mesh", "GiB per chip of usable, batch 1, 8, 64", "plain step, ms", "shape, and its break-even tokens per step")


def main() -> int:
    """Writes, or checks, what the page shows; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text()
    wanted = with_table(text, table())
    if parser.parse_args().check:
        print("the table is that of the data" if wanted == text else "the table is not that of the data; run docs/scripts/scaling.py")
        return int(wanted != text)
    PAGE.write_text(wanted)
    plot()
    return 0


def with_table(text: str, table: str) -> str:
    """The page with this table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}{END}{after}"


def table() -> str:
    """The table as Markdown; figures by hand in italics."""
    compiled, floors = read_rows(DATA / "fit.csv"), read_rows(DATA / "floors.csv")
    lines = [HEADINGS, ["---"] * len(HEADINGS)]
    for model, topology in SHOWN:
        by_hand = {row["batch"]: row for row in floors if (row["model"], row["topology"]) == (model, topology)}
        mesh = by_hand["1"]["mesh"]
        rows = [row for row in compiled if (row["model"], row["topology"], row["mesh"]) == (model, topology, mesh)]
        by_batch = [cells([row for row in rows if row["batch"] == batch], by_hand.get(batch)) for batch in BATCHES]
        memory, steps, shapes = (", ".join(parts) for parts in zip(*by_batch, strict=True))
        place = f"{topology}, {mesh.replace('x', ' x ')}"
        lines.append([NAMES[model], place, f"{memory} of {by_hand['1']['usable_gib']}", steps, shapes])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(rows: list[dict], floor: dict | None) -> tuple[str, str, str]:
    """Memory, plain step and shape of one batch: of the compiler's rows where there are any, else by hand."""
    if floor is None:
        return "-", "-", "-"
    plain = next((row for row in rows if row["shape"] == "plain"), None)
    if plain is None:
        fits = float(floor["gib"]) <= 0.95 * float(floor["usable_gib"])
        memory = f"*{float(floor['gib']):.1f}*"
        shape = f"*4x4, {float(floor['round_4x4']):.2f}*"
        return (memory, f"*{float(floor['plain_ms']):.1f}*", shape) if fits else (f"**{memory}: no**", "-", "-")
    rounds = [row for row in rows if "x" in row["shape"]]
    best = recommend(rounds)
    largest = max(float(row["gib"]) for row in [plain, best])
    shape = f"**{best['shape']}, {break_even(best):.2f}**" if break_even(best) <= PAYS else f"{best['shape']}, {break_even(best):.2f}"
    return f"{largest:.1f}", f"{float(plain['round_ms']):.1f}", shape


def recommend(rounds: list[dict]) -> dict:
    """As `infer.fit` does: the shape of most nodes that costs at most `PAYS` plain steps; where there is none, the cheapest."""
    affordable = [row for row in rounds if break_even(row) <= PAYS]
    return max(affordable, key=lambda row: int(row["nodes"])) if affordable else min(rounds, key=break_even)


def break_even(row: dict) -> float:
    """Plain steps that a round costs, by the compiler or by hand, whichever is more: the tokens per step above which it pays."""
    return max(float(row["over_plain"]), float(row["floors_over_plain"]))


def plot() -> None:
    """Both plots."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "redrafter_jax", "svg.fonttype": "none", "font.size": 9})
    plot_passes(IMAGES / "scaling_passes.svg")
    plot_break_even(IMAGES / "scaling_break_even.svg")


def plot_passes(file: pathlib.Path) -> None:
    """What a pass over N nodes costs by hand, over a plain step, by batch and chip."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(8.5, 2.8), sharey=True, layout="constrained")
    floors = [row for row in read_rows(DATA / "floors.csv") if row["model"] == "vicuna-7b"]
    for axis, topology in zip(axes, ("v5e:2x4", "v5p:2x2x2", "v6e:2x4"), strict=True):
        for row in (row for row in floors if row["topology"] == topology):
            nodes = [int(name.removeprefix("verify_")) for name in row if name.startswith("verify_") and row[name]]
            axis.plot(nodes, [float(row[f"verify_{count}"]) for count in nodes], marker=".", label=f"batch {row['batch']}")
        axis.set(xscale="log", yscale="log", title=topology, xlabel="nodes N in a pass")
        axis.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
        axis.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("plain steps, at least")
    axes[0].legend()
    save(figure, file)


def plot_break_even(file: pathlib.Path) -> None:
    """Tokens per step above which each compiled round pays; the anchor is 1, where a round costs a plain step."""
    from matplotlib import pyplot

    rounds = [row for row in read_rows(DATA / "fit.csv") if "x" in row["shape"] and row["over_plain"]]
    places = list(dict.fromkeys((row["model"], row["topology"], row["batch"]) for row in rounds))
    shapes = ("4x4", "8x5", "16x4")
    figure, axis = pyplot.subplots(figsize=(8.5, 4.2), layout="constrained")
    for place, shape in enumerate(shapes):
        heights = [next(break_even(row) for row in rounds if key(row) == where and row["shape"] == shape) for where in places]
        axis.barh([number + (place - 1) * 0.27 for number in range(len(places))], [height - 1 for height in heights], 0.27, 1, label=shape)
    names = [f"{NAMES[model]}, {topology}, batch {batch}" for model, topology, batch in places]
    axis.set_yticks(range(len(places)), names)
    axis.invert_yaxis()
    axis.set_xlabel("tokens per step above which a round pays (1: a round costs a plain step)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(title="W x L")
    save(figure, file)


def key(row: dict) -> tuple[str, str, str]:
    """What tells the points of the second plot apart."""
    return row["model"], row["topology"], row["batch"]


def save(figure, file: pathlib.Path) -> None:
    """Writes a picture without its date, so that the same data give the same file."""
    from matplotlib import pyplot

    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
