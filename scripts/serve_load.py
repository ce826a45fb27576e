"""Load on a server of OpenAI's interface: time to first token, time between tokens and tokens per second, by the number of clients.

    python -m infer.serve --batch-size 16 &
    python scripts/serve_load.py --clients 1 4 16

Each client streams completions one after the other, of the prompts of a JSONL file in turn; request i has the seed i. Nothing here
imports JAX, so it takes little from a server on the same machine.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import pathlib
import statistics
import threading
import time
import urllib.parse

PROMPTS = pathlib.Path(__file__).parents[1] / "infer" / "demo_pair" / "prompts.jsonl"


def ask(connection: http.client.HTTPConnection, body: dict, streams: bool) -> tuple[float, float, int]:
    """Seconds to the first text and to the end, and the tokens of the reply, which comes at once where it is not streamed."""
    began, first, tokens = time.perf_counter(), 0.0, 0
    more = {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
    connection.request("POST", "/v1/completions", json.dumps(body | more), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ValueError(f"{response.status}: {response.read().decode()}")
    for line in response:
        first = first or (time.perf_counter() - began if line.startswith((b"data: {", b"{")) else 0.0)
        if b'"usage"' in line:
            tokens = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
    response.read()  # nothing; without it the connection takes no further request where the length was known
    return first, time.perf_counter() - began, tokens


def load(address: tuple[str, int], bodies: list[dict], clients: int, streams: bool = True) -> dict[str, float]:
    """The figures of so many clients that share these requests."""
    numbers, found, wrong, lock = itertools.count(), [], [], threading.Lock()

    def client() -> None:
        try:
            with contextlib.closing(http.client.HTTPConnection(*address, timeout=600)) as connection:
                while not wrong and (number := next(numbers)) < len(bodies):
                    one = ask(connection, bodies[number], streams)
                    with lock:
                        found.append(one)
        except (OSError, ValueError, http.client.HTTPException) as error:
            wrong.append(error)

    threads, began = [threading.Thread(target=client) for _ in range(clients)], time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:  # figures of fewer requests would look like figures
        raise SystemExit(f"error: a request failed: {wrong[0]}")
    seconds = time.perf_counter() - began
    first = [one[0] for one in found]
    between = [(whole - first) / (tokens - 1) for first, whole, tokens in found if tokens > 1]
    return {
        "clients": clients,
        "requests": len(found),
        "first_token_ms_median": 1e3 * statistics.median(first),
        "first_token_ms_p90": 1e3 * statistics.quantiles(first, n=10)[-1],
        "between_tokens_ms_median": 1e3 * statistics.median(between),
        "between_tokens_ms_p90": 1e3 * statistics.quantiles(between, n=10)[-1],
        "tokens_per_second": sum(one[2] for one in found) / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--prompts", type=pathlib.Path, default=PROMPTS)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=64, help="for each number of clients")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--ignore-eos", action="store_true", help="replies of --max-tokens each")
    options = parser.parse_args()
    lines = [json.loads(line)["prompt"] for line in options.prompts.read_text().splitlines() if line.strip()]
    shared = {"max_tokens": options.max_tokens, "temperature": options.temperature, "ignore_eos": options.ignore_eos}
    bodies = [{"prompt": lines[i % len(lines)], "seed": i, **shared} for i in range(options.requests)]
    place = urllib.parse.urlsplit(options.url)
    load((place.hostname, place.port), bodies[:4], 4)  # connections and caches are warm
    for clients in options.clients:
        found = load((place.hostname, place.port), bodies, clients)
        print(json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
