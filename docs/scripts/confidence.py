"""Are the beam's scores calibrated, and would calibrated ones fill a node budget better?

    python -m docs.scripts.confidence --text corpus/held_out corpus/held_out_packages --temperature 0

One round from each of many held-out places. A node's score is the draft head's log-probability of its prefix; the target accepts it
or does not. Printed are, by depth and by the score, the expected and the actual share of accepted nodes; and tokens per step where
a budget of N nodes is filled from one wider search by the scores, or by the fit of `train.calibrate`, which is made on the even
places and judged on the odd ones.
"""

import argparse
import pathlib

import numpy as np

import infer
from infer import text_files
from infer.evaluate.metrics import BATCH, Prompts
from infer.pair import EMBEDDED
from redrafter_jax.decode.propose.recurrent import Shape
from train.calibrate import fit, rounds

EDGES = (0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0001)  # of the bins of probabilities


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--drafter", default=EMBEDDED / "drafter_slim")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--places", type=int, default=2048)
    parser.add_argument("--beams", type=int, nargs=2, default=[8, 5], metavar=("W", "L"))
    parser.add_argument("--nodes", type=int, nargs="+", default=[9, 17, 25, 33])
    options = parser.parse_args()
    pair = infer.load(drafter=options.drafter, shape=Shape(*options.beams), ignore_eos=True)
    for text in options.text:
        files = text_files.texts([text], ()).files
        stream = text_files.read_stream(files, EMBEDDED / "target", pair.engine.target.config.vocab_size)
        contexts = Prompts(stream, options.places, rounds.CONTEXT_TOKENS).cut()
        found = rounds.read(pair.engine, contexts, options.temperature, BATCH)
        print(f"\n{text.name}, T = {options.temperature:g}, {options.beams[0]} x {options.beams[1]}, {options.places} places\n")
        report_calibration(found)
        report_budgets(found, options.nodes)


def report_calibration(found: dict[str, np.ndarray]) -> None:
    """Expected and actual tokens, by depth, and of the two best nodes of a depth; and shares by the score."""
    counts, p, rank = found["valid"] & (found["depth"] > 0), np.exp(found["score"]), rank_in_depth(found)
    print("| depth | expected tokens | accepted | best node: expected | accepted | second: expected | accepted |")
    print("|---|---|---|---|---|---|---|")
    for depth in range(1, found["depth"].max() + 1):
        cells = []
        for which in (None, 0, 1):
            here = counts & (found["depth"] == depth) & (True if which is None else rank == which)
            cells += [p[here].sum() / len(p), found["accepted"][here].sum() / len(p)]
        print(f"| {depth} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    print("\n| probability of the prefix | nodes | expected | accepted |\n|---|---|---|---|")
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        here = counts & (p >= low) & (p < high)
        if here.any():
            print(f"| {low:g} to {min(high, 1):g} | {here.sum()} | {p[here].mean():.4f} | {found['accepted'][here].mean():.4f} |")


def rank_in_depth(found: dict[str, np.ndarray]) -> np.ndarray:
    """How many nodes of the same depth come first by the score."""
    same = found["depth"][:, :, None] == found["depth"][:, None, :]
    return np.sum(same & (found["score"][:, None, :] > found["score"][:, :, None]) & found["valid"][:, None, :], axis=-1)


def report_budgets(found: dict[str, np.ndarray], sizes: list[int]) -> None:
    """Tokens per step of the odd places, the +1 counted, by what fills a budget."""
    even = {name: values[::2] for name, values in found.items()}
    ways = [found["score"], fit.apply(found, fit.fit(even, found["depth"].max()))]
    print("\n| nodes | by the scores | by the fit | change, ± standard error |\n|---|---|---|---|")
    for size in sizes:
        plain, fitted = (fit.tokens_per_step(found, value, size)[1::2] for value in ways)
        error = (fitted - plain).std() / np.sqrt(len(plain)) / plain.mean()
        change = fitted.mean() / plain.mean() - 1
        print(f"| {size} | {plain.mean():.3f} | {fitted.mean():.3f} | {change:+.1%} ± {error:.1%} |")


if __name__ == "__main__":
    main()
