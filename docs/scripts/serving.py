"""What serving costs and gains, in one run: a server that drafts beside one that decodes plainly, and `infer.generate` on the same
prompts with as many rows.

    python -m docs.scripts.serving --rows 16 --clients 1 4 16 --repeats 3 --json serving.json
    python -m docs.scripts.serving -- --target MODEL --drafter HEAD

Both servers are up all the time, and one that is asked nothing takes no time of the machine; they start one after the other, since
one that adapts times its rounds. All take turns, and of the repeats the median counts. Everything is greedy, without end tokens.
The clients' replies have from a half to one and a half times --max-tokens, since no traffic has equal ones. The cost of HTTP is
read at as many clients as there are rows, with replies of --max-tokens each, as `infer.generate` has: tokens per second of the
server, in streams and in whole replies, over those that it says (compiling is in neither).
Options behind `--` are those of the pair, for all three.
"""

import argparse
import contextlib
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.parse

from scripts.serve_load import PROMPTS, load

READY_SECONDS = 900
SPEED = re.compile(r"; ([\d.,]+) tokens/s")
WAYS = {"adapts": [], "plain": ["--decoding", "autoregressive"]}  # options of each server
FIGURES = {
    "first_token_ms_median": "first token, ms", "first_token_ms_p90": "90%, ms", "between_tokens_ms_median": "between tokens, ms",
    "between_tokens_ms_p90": "90%, ms", "tokens_per_second": "tokens/s",
}  # fmt: skip


class Server:
    """A server in a process of its own, until the body ends. Raises SystemExit where it does not start."""

    def __init__(self, *options: str):
        command = [sys.executable, "-m", "infer.serve", "--port", "0", *options]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._lines: list[str] = []
        self._is_ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stderr:
            self._lines.append(line)
            if line.startswith("ready after"):
                self._is_ready.set()
        self._is_ready.set()

    def __enter__(self) -> tuple[str, int]:
        self._is_ready.wait(READY_SECONDS)
        found = re.search(r"on (http://\S+) ", self._lines[-1] if self._lines else "")
        if found is None:
            self._process.kill()
            raise SystemExit("".join(self._lines))
        address = urllib.parse.urlsplit(found.group(1))
        return address.hostname, address.port

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def generate(prompts: list[str], rows: int, new: int, pair: list[str]) -> float:
    """Tokens per second of `infer.generate`, as its closing line says them."""
    with tempfile.TemporaryDirectory() as folder:
        given = pathlib.Path(folder) / "prompts.jsonl"
        given.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        sizes = ["--batch-size", str(rows), "--max-new-tokens", str(new), "--ignore-eos", "--json"]
        command = [sys.executable, "-m", "infer.generate", "--prompts", str(given), *sizes, *pair]
        ended = subprocess.run(command, capture_output=True, text=True)
    found = SPEED.findall(ended.stderr)
    if ended.returncode or not found:
        raise SystemExit(ended.stderr)
    return float(found[-1].replace(",", ""))


def main() -> None:
    """Prints both tables, and writes the figures of every repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=64, help="for each number of clients")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=256, help="tokens of prompt and reply of a row")
    parser.add_argument("--prompts", type=pathlib.Path, default=PROMPTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("pair", nargs="*", help="options of all three, behind --")
    options = parser.parse_args()
    lines = [json.loads(line)["prompt"] for line in options.prompts.read_text().splitlines() if line.strip()]
    prompts = [lines[number % len(lines)] for number in range(options.requests)]
    shared, most = {"temperature": 0, "ignore_eos": True}, options.max_tokens
    equal = [{"prompt": prompt, "seed": number, "max_tokens": most, **shared} for number, prompt in enumerate(prompts)]
    unequal = [body | {"max_tokens": most // 2 + 37 * body["seed"] % (most + 1)} for body in equal]
    sizes = ["--batch-size", str(options.rows), "--max-length", str(options.max_length), *options.pair]
    found: dict[str, list] = {}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, more in WAYS.items():
            servers[name] = stack.enter_context(Server(*sizes, *more))
            load(servers[name], equal[: options.rows], options.rows)  # connections and caches are warm
        for repeat in range(options.repeats):
            order = list(WAYS)[:: -1 if repeat % 2 else 1]  # nobody is always the first
            for clients in options.clients:
                for name in order:
                    found.setdefault(f"{name} {clients}", []).append(load(servers[name], unequal, clients))
            for name in order:
                for kind, streams in (("streams", True), ("whole", False)):
                    found.setdefault(f"{name} {kind}", []).append(load(servers[name], equal, options.rows, streams))
                speed = generate(prompts, options.rows, most, [*options.pair, *WAYS[name]])
                found.setdefault(f"{name} generate", []).append(speed)
    print_tables(found, options.clients, options.rows)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"options": {**vars(options), "prompts": str(options.prompts), "json": None}} | found, indent=1)
        )


def print_tables(found: dict[str, list], counts: list[int], rows: int) -> None:
    """Medians of the repeats."""

    def median(key: str, figure: str) -> float:
        return statistics.median(one[figure] for one in found[key])

    print(f"| clients | server | {' | '.join(FIGURES.values())} | of plain |")
    print("|---" * (len(FIGURES) + 3) + "|")
    for clients in counts:
        for name in WAYS:
            key = f"{name} {clients}"
            ratio = median(key, "tokens_per_second") / median(f"plain {clients}", "tokens_per_second")
            figures = " | ".join(f"{median(key, figure):.1f}" for figure in FIGURES)
            print(f"| {clients} | {name} | {figures} | {ratio:.2f} |")
    print(f"\n| {rows} rows, tokens/s | `infer.generate` | server, streams | ratio | server, whole replies | ratio |")
    print("|---" * 6 + "|")
    for name in WAYS:
        alone = statistics.median(found[f"{name} generate"])
        served = [median(f"{name} {kind}", "tokens_per_second") for kind in ("streams", "whole")]
        print(f"| {name} | {alone:.0f} | {' | '.join(f'{speed:.0f} | {speed / alone:.2f}' for speed in served)} |")


if __name__ == "__main__":
    main()
