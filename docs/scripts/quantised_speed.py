"""Tokens per second of the embedded pair by the format of its target's weights: plain and speculative, all in turn in one process.

python -m docs.scripts.quantised_speed --weights float32 int8 fp8    # greedy; medians over --repeats
"""

import argparse
import os
import statistics
import time

from infer import pair, prompts, text


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["float32", "int8"])
    parser.add_argument("--prompts", type=int, default=8, help="of the embedded pair's, the first")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    import jax

    from redrafter_jax.decode.request import Limits

    load = os.getloadavg()[0]
    engines = {}
    for weights in options.weights:
        loaded = pair.load(weights=weights, ignore_eos=True).engine
        engines |= {(weights, "plain"): loaded.autoregressive(), (weights, "speculative"): loaded}
    target = pair.embedded("target")
    tokenizer, limits = text.load_tokenizer(target), Limits(options.max_new_tokens)
    given = prompts.read((), str(pair.EMBEDDED / "prompts.jsonl"))[: options.prompts]
    ids = [prompts.encode(prompt, tokenizer, 10**6, 10**6) for prompt in given]
    seconds: dict[tuple[str, str], list[float]] = {way: [] for way in engines}
    replies = {way: list(engine.generate(ids, limits=limits)) for way, engine in engines.items()}  # compiles
    for _ in range(options.repeats):
        for way, engine in engines.items():
            began = time.perf_counter()
            list(engine.generate(ids, limits=limits))
            seconds[way].append(time.perf_counter() - began)
    first = engines[options.weights[0], "plain"].target.config
    print(
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, load average {load:.1f} before it began;"
        f" {first.num_hidden_layers} layers of width {first.hidden_size}, {len(ids)} prompts one after the other,"
        f" {options.max_new_tokens} new tokens each, greedy, medians of {options.repeats}"
    )
    print("| weights | decoding | tokens/s | tokens per step |\n| --- | --- | --- | --- |")
    for way in engines:
        tokens = sum(len(reply.token_ids) for reply in replies[way])
        rounds = sum(reply.rounds for reply in replies[way])
        step = (tokens - len(ids)) / rounds
        print(f"| {way[0]} | {way[1]} | {tokens / statistics.median(seconds[way]):.0f} | {step:.2f} |")


if __name__ == "__main__":
    main()
