"""Are the beam's scores calibrated, and would calibrated ones fill a node budget better?

    python -m docs.scripts.confidence --text corpus/held_out corpus/held_out_packages --temperature 0

One round from each of many held-out places. A node's score is the draft head's log-probability of its prefix; the target accepts it
or does not. Printed are, by depth and by the score, the expected and the actual share of accepted nodes; and tokens per step where
a budget of N nodes is filled from one wider search by the scores, by a logistic fit of acceptance on score and depth (another slope
and bias at each depth), and by one on score, depth and rank. The fits are made on the even places and judged on the odd ones.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import infer
from infer import text_files
from infer.evaluate.metrics import BATCH, Prompts
from infer.pair import EMBEDDED
from redrafter_jax.decode import loop, prefill, sample, verify
from redrafter_jax.decode.engine import Sampling
from redrafter_jax.decode.policy import make_policy
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import processes

CONTEXT_TOKENS = 64
EDGES = (0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0001)  # of the bins of probabilities


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--drafter", default=None, help="by default the embedded slim head")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--places", type=int, default=2048)
    parser.add_argument("--beams", type=int, nargs=2, default=[8, 5], metavar=("W", "L"))
    parser.add_argument("--nodes", type=int, nargs="+", default=[9, 17, 25, 33])
    options = parser.parse_args()
    drafter = options.drafter or EMBEDDED / "drafter_slim"
    pair = infer.load(drafter=drafter, shape=Shape(*options.beams), ignore_eos=True)
    for text in options.text:
        files = text_files.texts([text], ()).files
        stream = text_files.read_stream(files, EMBEDDED / "target", pair.engine.target.config.vocab_size)
        rounds = read_rounds(pair.engine, Prompts(stream, options.places, CONTEXT_TOKENS).cut(), options.temperature)
        print(f"\n{text.name}, T = {options.temperature:g}, {options.beams[0]} x {options.beams[1]}, {options.places} places\n")
        report_calibration(rounds)
        report_budgets(rounds, options.nodes)


def read_rounds(engine, contexts: list[list[int]], temperature: float) -> dict[str, np.ndarray]:
    """Of one round from each context, for every node ``[R, N]``: depth, parent, score, valid, rank and whether it was accepted."""
    target, proposer = engine.target, engine.proposer
    length = proposer.round.length
    bucket = prefill.bucket(CONTEXT_TOKENS, length + 1, length)

    @jax.jit
    def one(target, proposer, state):
        policy = state.policy
        noise = sample.noise(policy, state.cache.length + 1, length + 1, target.config.vocab_size)
        tree, _ = proposer.propose(target, state.view(sample.show_noise(policy, noise)), state.memory)
        verdict = verify.verify(target, tree, state.cache, policy, noise, length, state.history())
        steps = jnp.arange(length + 1)
        on_path = verdict.path[:, :, None] == jnp.arange(tree.tokens.shape[1])
        accepted = jnp.any(on_path & (steps <= verdict.accepted[:, None])[..., None], axis=1)
        return {"depth": tree.depth, "parent": tree.parent, "score": tree.scores, "valid": tree.valid, "accepted": accepted}

    found = []
    with jax.set_mesh(engine.mesh):
        for first in range(0, len(contexts) - BATCH + 1, BATCH):
            policy = make_policy([Sampling(temperature)] * BATCH, list(range(first, first + BATCH)))
            given = (contexts[first : first + BATCH], *([size] * BATCH for size in (CONTEXT_TOKENS, length + 1)), [[-1]] * BATCH)
            state = loop.start(target, proposer, *map(_put, given), policy, bucket)
            found.append({name: np.asarray(value) for name, value in one(target, proposer, state).items()})
    rounds = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return rounds | {"rank": rank_in_depth(rounds)}


def _put(values: list) -> jax.Array:
    return processes.put(np.asarray(values, np.int32), "data")


def rank_in_depth(rounds: dict[str, np.ndarray]) -> np.ndarray:
    """How many nodes of the same depth come first by the score."""
    same = rounds["depth"][:, :, None] == rounds["depth"][:, None, :]
    return np.sum(same & (rounds["score"][:, None, :] > rounds["score"][:, :, None]) & rounds["valid"][:, None, :], axis=-1)


def report_calibration(rounds: dict[str, np.ndarray]) -> None:
    """Expected and actual shares, by depth and rank and by the score."""
    counts, p = rounds["valid"] & (rounds["depth"] > 0), np.exp(rounds["score"])
    print("| depth | expected tokens | accepted | best node: expected | accepted | second: expected | accepted |")
    print("|---|---|---|---|---|---|---|")
    for depth in range(1, rounds["depth"].max() + 1):
        cells = []
        for rank in (None, 0, 1):
            here = counts & (rounds["depth"] == depth) & (True if rank is None else rounds["rank"] == rank)
            cells += [p[here].sum() / len(p), rounds["accepted"][here].sum() / len(p)]
        print(f"| {depth} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    print("\n| probability of the prefix | nodes | expected | accepted |\n|---|---|---|---|")
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        here = counts & (p >= low) & (p < high)
        if here.any():
            print(f"| {low:g} to {min(high, 1):g} | {here.sum()} | {p[here].mean():.4f} | {rounds['accepted'][here].mean():.4f} |")


def report_budgets(rounds: dict[str, np.ndarray], sizes: list[int]) -> None:
    """Tokens per step of the odd places, the +1 counted, by what fills a budget."""
    ways = {"score": rounds["score"], "score and depth": fit(rounds, False), "score, depth, rank": fit(rounds, True)}
    print(f"\n| nodes | {' | '.join(ways)} | difference, ± standard error |\n|---|{'---|' * len(ways)}---|")
    for size in sizes:
        tokens = [tokens_per_step(rounds, value, size)[1::2] for value in ways.values()]
        change = [(other - tokens[0]).mean() / tokens[0].mean() for other in tokens[1:]]
        error = [(other - tokens[0]).std() / np.sqrt(len(other)) / tokens[0].mean() for other in tokens[1:]]
        told = ", ".join(f"{x:+.2%} ± {e:.2%}" for x, e in zip(change, error, strict=True))
        print(f"| {size} | {' | '.join(f'{each.mean():.3f}' for each in tokens)} | {told} |")


def fit(rounds: dict[str, np.ndarray], with_rank: bool) -> np.ndarray:
    """The log-probability of acceptance ``[R, N]`` by a logistic fit on the even places, never above the parent's."""
    depth, score = rounds["depth"], np.maximum(rounds["score"], -30)
    deepest = depth.max()
    at = [(depth == d).astype(float) for d in range(1, deepest + 1)]
    odds = score - np.log1p(-np.minimum(np.exp(score), 1 - 1e-6))
    columns = [*at, *(each * odds for each in at)] + ([np.log1p(rounds["rank"]) * each for each in at] if with_rank else [])
    x = np.stack(columns, axis=-1)
    counts = rounds["valid"] & (depth > 0)
    counts[1::2] = False
    a, y = x[counts], rounds["accepted"][counts].astype(float)
    weights = np.zeros(a.shape[-1])
    for _ in range(30):  # Newton's method
        p = 1 / (1 + np.exp(-np.clip(a @ weights, -30, 30)))
        hessian = (a * (p * (1 - p))[:, None]).T @ a + 1e-3 * np.eye(len(weights))
        weights += np.linalg.solve(hessian, a.T @ (y - p) - 1e-3 * weights)
    value = -np.logaddexp(0, -(x @ weights))
    value = np.where(depth == 0, 0.0, value)
    for _ in range(deepest):
        value = np.minimum(value, np.take_along_axis(value, rounds["parent"], axis=1))
    return value


def tokens_per_step(rounds: dict[str, np.ndarray], value: np.ndarray, size: int) -> np.ndarray:
    """``[R]``, accepted nodes, the root counted, among the ``size`` of largest value (shallower ones first among equals)."""
    value = np.where(rounds["valid"], value, -np.inf)
    order = np.lexsort((np.broadcast_to(np.arange(value.shape[1]), value.shape), rounds["depth"], -value), axis=-1)
    kept = np.zeros(value.shape, bool)
    np.put_along_axis(kept, order[:, :size], True, axis=1)
    return (kept & rounds["accepted"]).sum(axis=1)


if __name__ == "__main__":
    main()
