"""Total tokens per second of prompts whose replies have unequal lengths: rows that are refilled as they end, against batches.

    python -m docs.scripts.refilled_rows --rows 8 16 --repeats 3

The embedded pair decodes starts of held-out Python, each to a length of its own, drawn from a log-normal distribution (--median,
--sigma, --most), as real replies have: most are short, a few are very long. A batch is R prompts in the order of the list,
and ends when its longest reply does. Both ways run in turn, compiled beforehand; the median of their speeds counts. Busy: the share
of rows times rounds that decoded a reply that was not complete.
"""

import argparse
import json
import statistics
import time

import numpy as np

import infer
from infer.pair import EMBEDDED
from redrafter_jax.decode import loop
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Shape


def main() -> None:
    """Prints a row of the table for each number of rows and each way to draft."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--median", type=float, default=60)
    parser.add_argument("--sigma", type=float, default=0.9)
    parser.add_argument("--most", type=int, default=448)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beams", type=int, nargs=2, default=[1, 2], metavar=("W", "L"))
    options = parser.parse_args()
    pair = infer.load(shape=Shape(*options.beams), ignore_eos=True)
    lines = (EMBEDDED / "suite.jsonl").read_text().splitlines()
    ids = [pair.tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    prompts = [ids[number % len(ids)] for number in range(options.prompts)]
    drawn = np.random.default_rng(0).lognormal(np.log(options.median), options.sigma, len(prompts))
    news = np.clip(np.rint(drawn), 4, options.most).astype(int).tolist()
    tenths = np.percentile(news, (10, 50, 90, 100)).astype(int).tolist()
    print(f"{len(prompts)} replies of {sum(news)} tokens; 10%, 50%, 90%, 100% of them have at most {tenths} tokens\n")
    print("| drafts | rows | batches, tokens/s | refilled, tokens/s | ratio | busy, batches | busy, refilled |")
    print("|---|---|---|---|---|---|---|")
    for name, engine in {f"{options.beams[0]}x{options.beams[1]}": pair.engine, "plain": pair.engine.autoregressive()}.items():
        for rows in options.rows:
            ways = {"batches": in_batches, "refilled": refilled}
            texts, busy = zip(*(way(engine, prompts, news, rows) for way in ways.values()), strict=True)  # compiles, too
            if texts[0] != texts[1]:
                raise SystemExit("the texts differ")
            speeds = {way: [] for way in ways}
            for _ in range(options.repeats):
                for way, decode in ways.items():
                    began = time.perf_counter()
                    decode(engine, prompts, news, rows)
                    speeds[way].append(sum(news) / (time.perf_counter() - began))
            slow, fast = (statistics.median(each) for each in speeds.values())
            print(f"| {name} | {rows} | {slow:.0f} | {fast:.0f} | {fast / slow:.2f} | {busy[0]:.0%} | {busy[1]:.0%} |", flush=True)


def in_batches(engine: Engine, prompts: list[list[int]], news: list[int], rows: int) -> tuple[list[list[int]], float]:
    """The replies to one batch after the other, and the share of busy rows."""
    texts, decoded, offered = [], 0, 0
    for first in range(0, len(prompts), rows):
        part = slice(first, first + rows)
        limits, seeds = [Limits(new) for new in news[part]], list(range(len(prompts)))[part]
        *_, last = engine.stream(prompts[part], Sampling(), limits, seeds, rows, loop.ALL_ROUNDS)
        texts += [reply.token_ids for reply in last.replies]
        rounds = [reply.rounds for reply in last.replies]
        decoded, offered = decoded + sum(rounds), offered + rows * max(rounds)
    return texts, decoded / offered


def refilled(engine: Engine, prompts: list[list[int]], news: list[int], rows: int) -> tuple[list[list[int]], float]:
    """The same in rows that are refilled as they end."""
    requests = engine.requests(prompts, Sampling(), [Limits(new) for new in news], None)
    scheduler = engine.scheduler(rows, requests)
    asked, replies = [scheduler.submit(request) for request in requests], {}
    while len(replies) < len(asked):
        replies |= {event.ticket: event.reply for event in scheduler.step() if event.done}
    return [replies[ticket].token_ids for ticket in asked], scheduler.decoded / scheduler.offered


if __name__ == "__main__":
    main()
