"""Milliseconds until the first token of a conversation's next turn, by what of the turn before a row still has.

    python -m docs.scripts.next_turn --replies 64 128 256 512

The embedded pair answers a start of held-out Python with so many tokens; the next turn is prompt, reply and a line more, in a batch
that is idle otherwise. From submitting it to its first token: the best of --repeats, since what else runs only adds; ways in turn.
"""

import argparse
import json
import time

import infer
from infer.pair import EMBEDDED, Pair
from redrafter_jax.decode.engine import Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.scheduler import Scheduler

LINE = "\n\ndef main():\n"
WAYS = {
    "nothing": {"reuses": False, "adapts": True},
    "the prompt": {"reuses": True, "adapts": False},
    "the prompt and the reply": {"reuses": True, "adapts": True},
}


def main() -> None:
    """Prints a row for each length of the reply."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replies", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--prompt", type=int, default=320, help="tokens of the first prompt")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    pair = infer.load(shape=Shape(2, 2), ignore_eos=True)
    lines = (EMBEDDED / "suite.jsonl").read_text().splitlines()
    ids = [token for line in lines for token in pair.tokenizer(json.loads(line)["prompt"])["input_ids"]][: options.prompt]
    more = pair.tokenizer(LINE)["input_ids"]
    (longest,) = pair.engine.requests([ids], Sampling(), Limits(max(options.replies)), None)
    deepest = len(ids) + max(options.replies) + len(more)
    made = {name: pair.engine.scheduler(2, [longest], deepest, **given) for name, given in WAYS.items()}
    print(f"| tokens of the reply | {' | '.join(f'reused: {name} (ms, tokens)' for name in made)} |")
    print("|---|" + "---|" * len(made))
    for new in options.replies:
        times, cached = {name: [] for name in made}, {}
        for _ in range(options.repeats):
            for name, scheduler in made.items():
                reply = decode(pair, scheduler, ids, new)
                began = time.perf_counter()
                cached[name] = decode(pair, scheduler, [*ids, *reply.token_ids, *more], 1).cached_tokens
                times[name].append(1e3 * (time.perf_counter() - began))
                scheduler.reset()
        print(f"| {new} | {' | '.join(f'{min(times[name]):.1f}, {cached[name]}' for name in made)} |", flush=True)


def decode(pair: Pair, scheduler: Scheduler, ids: list[int], new: int):
    """The reply to these ids."""
    (request,) = pair.engine.requests([ids], Sampling(), Limits(new), None)
    scheduler.submit(request)
    while scheduler.running or scheduler.waiting:
        for event in scheduler.step():
            if event.done:
                return event.reply
    raise SystemExit("no reply")


if __name__ == "__main__":
    main()
