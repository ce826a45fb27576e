"""The tables and the plots of docs/reports/scaling.md, from docs/data.

python docs/scripts/scaling.py           # writes the tables into the page, and docs/images/*.svg (needs matplotlib)
python docs/scripts/scaling.py --check   # only says whether the page has the tables of today's data
"""

import argparse
import pathlib
import sys

from fit_rows import DATA, read_rows

PAGE = DATA.parent / "reports" / "scaling.md"
IMAGES = DATA.parent / "images"
BEGIN, END = "<!-- table from docs/data/{}: docs/scripts/scaling.py -->\n", "<!-- end of table -->"
BATCHES = ("1", "8", "64")
PAYS = 1.5  # plain steps; the default of `infer.fit --most`
NAMES = {
    "qwen3-0.6b": "Qwen3-0.6B sizes",
    "llama-7b": "Vicuna 7B", "vicuna-7b": "Vicuna 7B", "llama-13b": "Llama 13B", "llama-33b": "Llama 33B",
    "llama-3.1-8b": "Llama-3.1 8B", "llama-3.1-70b": "Llama-3.1 70B",
    "gemma-3-1b": "Gemma 3 1B", "llama-3.2-1b": "Llama-3.2 1B", "qwen3-1.7b": "Qwen3-1.7B", "llama-3.2-3b": "Llama-3.2 3B",
    "phi-4-mini": "Phi-4-mini", "gemma-3-4b": "Gemma 3 4B", "qwen3-4b": "Qwen3-4B",
    "mistral-7b": "Mistral 7B", "qwen3-8b": "Qwen3-8B",
}  # fmt: skip
SHOWN = (
    ("qwen3-0.6b", "v5e:1x1"),
    ("llama-7b", "v6e:1x1"),
    ("llama-3.1-8b", "v6e:1x1"),
    ("vicuna-7b", "v5e:2x2"), ("vicuna-7b", "v5e:2x4"), ("vicuna-7b", "v6e:2x4"), ("vicuna-7b", "v5p:2x2x1"),
    ("llama-13b", "v5e:2x4"),
    ("llama-33b", "v6e:2x2"), ("llama-33b", "v5p:2x2x1"),
    ("llama-3.1-8b", "v5e:2x2"), ("llama-3.1-8b", "v5e:2x4"), ("llama-3.1-8b", "v6e:2x4"),
    ("llama-3.1-70b", "v5e:4x4"), ("llama-3.1-70b", "v6e:2x4"), ("llama-3.1-70b", "v5p:2x2x2"),
)  # fmt: skip
ONE_CHIP = (  # on `ONE_CHIP_TOPOLOGY`, in each of `ONE_CHIP_WEIGHTS`
    "qwen3-0.6b", "gemma-3-1b", "llama-3.2-1b", "qwen3-1.7b", "llama-3.2-3b", "phi-4-mini", "gemma-3-4b", "qwen3-4b",
    "llama-7b", "mistral-7b", "llama-3.1-8b", "qwen3-8b",
)  # fmt: skip
ONE_CHIP_TOPOLOGY, ONE_CHIP_WEIGHTS, ONE_CHIP_BATCHES = "v5e:1x1", ("bfloat16", "int8"), ("1", "8")
ONE_CHIP_HEADINGS = ("model", "weights", "GiB, of usable", "plain step, ms", "shape: its break-even")
HEADINGS = ("model", "slice, mesh", "GiB per chip, of usable", "plain step, ms", "shape: its break-even")
TRAIN_SHOWN = (
    ("vicuna-7b", "v5e:2x4", "8x1", "full"),
    ("vicuna-7b", "v5e:2x4", "4x2", "full"),
    ("vicuna-7b", "v5p:2x2x1", "4x1", "full"),
    ("llama-13b", "v5e:2x4", "8x1", "full"),
    ("llama-3.1-8b", "v5e:2x4", "8x1", "full"),
    ("llama-3.1-8b", "v5e:2x4", "8x1", "full, 32768 tokens"),
    ("llama-3.1-70b", "v5p:2x2x2", "8x1", "full"),
)
TRAIN_HEADINGS = (
    "model, head",
    "slice, mesh",
    "target split over",
    "GiB per chip, of usable",
    "step, ms (floor)",
    "of peak",
    "tokens/s",
)


def main() -> int:
    """Writes, or checks, what the page shows; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text()
    wanted = with_tables(text)
    if parser.parse_args().check:
        print(
            "the tables are those of the data"
            if wanted == text
            else "the tables are not those of the data; run docs/scripts/scaling.py"
        )
        return int(wanted != text)
    PAGE.write_text(wanted)
    plot()
    return 0


def with_tables(text: str) -> str:
    """The page with the tables of today's data."""
    tables = {"fit.csv": table(), "train_fit.csv": train_table(), "quantised_fit.csv": one_chip_table()}
    for source, found in tables.items():
        text = with_table(text, source, found)
    return text


def with_table(text: str, source: str, table: str) -> str:
    """The page with this table between its marks."""
    begin = BEGIN.format(source)
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{PAGE} has no place for the table of {source}")
    return f"{before}{begin}{table}{END}{after}"


def markdown(lines: list[list[str] | tuple[str, ...]]) -> str:
    """A table of Markdown, whose first line are the headings."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def train_table() -> str:
    """The table of training steps."""
    rows = {(row["model"], row["topology"], row["mesh"], row["head"]): row for row in read_rows(DATA / "train_fit.csv")}
    return markdown([TRAIN_HEADINGS, *(train_line(rows[shown]) for shown in TRAIN_SHOWN)])


def train_line(row: dict) -> list[str]:
    """A line of the table of training steps; no times where it does not fit."""
    name = NAMES[row["model"]] + ("" if row["head"] == "full" else f", head of {row['head'].removeprefix('full, ')}")
    first = [name, f"{row['topology']}, {row['mesh']}", row["target_split_over"]]
    memory = f"{float(row['gib']):.1f}"
    if row["fits"] != "yes":
        return [*first, f"**{memory}: no** of {row['usable_gib']}", "-", "-", "-"]
    step = f"{int(row['step_ms']):,} ({int(row['floor_ms']):,})"
    peak, speed = f"{float(row['peak_share']):.0%}", f"{int(row['tokens_per_second']):,}"
    return [*first, f"{memory} of {row['usable_gib']}", step, peak, speed]


def table() -> str:
    """The table as Markdown; figures by hand in italics."""
    compiled, floors = read_rows(DATA / "fit.csv"), read_rows(DATA / "floors.csv")
    lines: list = [HEADINGS]
    for model, topology in SHOWN:
        by_hand = {row["batch"]: row for row in floors if (row["model"], row["topology"]) == (model, topology)}
        mesh = by_hand["1"]["mesh"]
        rows = [row for row in compiled if (row["model"], row["topology"], row["mesh"]) == (model, topology, mesh)]
        by_batch = [cells([row for row in rows if row["batch"] == batch], by_hand.get(batch)) for batch in BATCHES]
        memory, steps, shapes = (" / ".join(parts) for parts in zip(*by_batch, strict=True))
        place = f"{topology}, {mesh}"
        lines.append([NAMES[model], place, f"{memory} of {by_hand['1']['usable_gib']}", steps, shapes])
    return markdown(lines)


def one_chip_table() -> str:
    """What one chip holds by the format of the weights; figures by hand in italics."""
    lines: list = [ONE_CHIP_HEADINGS]
    for model in ONE_CHIP:
        for weights in ONE_CHIP_WEIGHTS:
            prefix = "" if weights == "bfloat16" else "quantised_"
            place = {"model": model, "topology": ONE_CHIP_TOPOLOGY, "mesh": "1x1"} | ({"weights": weights} if prefix else {})
            files = (DATA / f"{prefix}{name}.csv" for name in ("fit", "floors"))
            compiled, floors = ([row for row in read_rows(file) if place.items() <= row.items()] for file in files)
            by_hand = {row["batch"]: row for row in floors}
            found = [cells([row for row in compiled if row["batch"] == batch], by_hand[batch]) for batch in ONE_CHIP_BATCHES]
            memory, steps, shapes = (" / ".join(parts) for parts in zip(*found, strict=True))
            lines.append([NAMES[model], weights, f"{memory} of {by_hand['1']['usable_gib']}", steps, shapes])
    return markdown(lines)


def cells(rows: list[dict], floor: dict | None) -> tuple[str, str, str]:
    """Memory, plain step and shape of one batch: of the compiler's rows where there are any, else by hand."""
    if floor is None:
        return "-", "-", "-"
    plain = next((row for row in rows if row["shape"] == "plain"), None)
    if plain is None:
        fits = float(floor["gib"]) <= 0.95 * float(floor["usable_gib"])
        memory = f"*{float(floor['gib']):.1f}*"
        shape = f"*4x4: {float(floor['round_4x4']):.2f}*"
        return (memory, f"*{float(floor['plain_ms']):.1f}*", shape) if fits else ("**no**", "-", "-")
    if plain["fits"] != "yes":
        return "**no**", "-", "-"
    rounds = [row for row in rows if "x" in row["shape"]]
    best = recommend(rounds)
    largest = max(float(row["gib"]) for row in [plain, best])
    shape = (
        f"**{best['shape']}: {break_even(best):.2f}**" if break_even(best) <= PAYS else f"{best['shape']}: {break_even(best):.2f}"
    )
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
    """Tokens per step above which each compiled round pays on more than one chip; the anchor is 1, where a round costs a plain
    step."""
    from matplotlib import pyplot

    compiled = [row for row in read_rows(DATA / "fit.csv") if row["topology"] != ONE_CHIP_TOPOLOGY]
    rounds = [row for row in compiled if "x" in row["shape"] and row["over_plain"]]
    order = list(NAMES)
    places = sorted({key(row) for row in rounds}, key=lambda place: (order.index(place[0]), *place[1:]))
    shapes = ("4x4", "8x5", "16x4")
    figure, axis = pyplot.subplots(figsize=(8.5, 4.2), layout="constrained")
    for place, shape in enumerate(shapes):
        heights = [next(break_even(row) for row in rounds if key(row) == where and row["shape"] == shape) for where in places]
        axis.barh(
            [number + (place - 1) * 0.27 for number in range(len(places))], [height - 1 for height in heights], 0.27, 1, label=shape
        )
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
