"""Many clients of a server at once: mixed lengths, some that hang up, some that send nonsense."""

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence

import schemathesis
from hypothesis import HealthCheck, given, settings

from infer.text import text_of
from tests.serving import Served

LIMITS = (1, 3, 9, 20, 40)  # new tokens of a reply
MALFORMED = (b"{", b'{"prompt": 1}', b'{"prompt": "a", "temperature": 1e9}', b'{"prompt": "' + b"a" * 60 + b'"}')


@dataclasses.dataclass(frozen=True)
class Asking:
    """A completion without its length, its prompt's ids, and the tokens of its longest reply."""

    body: dict
    prompt: list[int]
    tokens: list[int]


def soak(served: Served, askings: Sequence[Asking], requests: int, clients: int) -> dict[str, int]:
    """How often each thing became of a request: a whole reply with the text that it should have, a client that hung up midway, a
    status. Those that the queue refuses come again."""
    numbers = itertools.count()

    def client(seed: int) -> collections.Counter:
        rng, found = random.Random(seed), collections.Counter()
        while (number := next(numbers)) < requests:
            outcome = _one(served, rng, rng.choice(askings), number % 10 == 3, number % 17 == 5)
            while outcome == "429":
                threading.Event().wait(0.02)
                outcome = _one(served, rng, rng.choice(askings), number % 10 == 3, False)
            found[outcome] += 1
        return found

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        found = sum(pool.map(client, range(clients)), collections.Counter())
    served.wait_until_idle()
    return dict(found)


def _one(served: Served, rng: random.Random, asking: Asking, hangs_up: bool, is_malformed: bool) -> str:
    new, streams = rng.choice(LIMITS), hangs_up or rng.random() < 0.5
    body = json.dumps(asking.body | {"max_tokens": max(LIMITS) if hangs_up else new, "stream": streams}).encode()
    data = rng.choice(MALFORMED) if is_malformed else body
    request = urllib.request.Request(f"{served.url}/v1/completions", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as found:
            if hangs_up:
                found.readline()
                return "hung up"
            said = found.read()
    except urllib.error.HTTPError as error:
        assert json.load(error)["error"]["message"]
        return str(error.code)
    assert _text(said, streams) == text_of(served.pair.tokenizer, asking.prompt, asking.tokens[:new]), asking
    return "whole"


def _text(said: bytes, streams: bool) -> str:
    if not streams:
        return json.loads(said)["choices"][0]["text"]
    events = [json.loads(line[6:]) for line in said.split(b"\n\n") if line not in (b"", b"data: [DONE]")]
    return "".join(event["choices"][0]["text"] for event in events)


def resident() -> int:
    """Bytes of memory that this process has, clients and all."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def statuses_of_schema(url: str) -> tuple[set[str], dict[str, collections.Counter[int]]]:
    """Of requests that the server's own schema lets one make: the paths, and how often each status came, by method. Every other
    body names no model, so that it is not refused for that alone."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    paths, statuses = set(), collections.defaultdict(collections.Counter)
    for operation in (found.ok() for found in schema.get_all_operations()):
        paths.add(operation.path)
        _make_requests(operation, statuses[operation.method.upper()])
    return paths, statuses


def _make_requests(operation, statuses: collections.Counter[int]) -> None:
    many, number = 40 if operation.method.upper() == "POST" else 8, itertools.count()

    @settings(max_examples=many, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def call(case):
        if next(number) % 2 and isinstance(case.body, dict):
            case.body.pop("model", None)
        statuses[case.call(timeout=60).status_code] += 1

    call()
