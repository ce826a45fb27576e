"""Many clients at once: mixed lengths, some that hang up, some that send nonsense."""

import concurrent.futures
import json
import random
import threading
import urllib.error
import urllib.request

import pytest

from infer.text import text_of
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from tests.serving import golden_pair, serving

PROMPTS = ["a", "def f(x):", "é", "x" * 38, "import os\n", "hello, world", "0 1 2 3", "~"]
WAYS = [Sampling(), Sampling(1.0), Sampling(0.8, top_p=0.9), Sampling(1.2, top_k=20)]
LIMITS = [1, 3, 9, 20, 50]
MALFORMED = [b"{", b'{"prompt": 1}', b'{"prompt": "a", "temperature": 1e9}', b'{"prompt": "' + b"a" * 60 + b'"}']
MAX_GROWTH_BYTES = 64 << 20  # of the process between the first quarter of a long soak and its end


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(golden_pair(tmp_path_factory.mktemp("pair"))) as found:
        yield found


@pytest.fixture(scope="module")
def texts(served) -> dict:
    """The text of each prompt and way at the longest limit, with the prompt's number as the seed; and its tokens."""
    tokenizer, plain = served.pair.tokenizer, Engine(served.pair.engine.target, None, [256])
    cases = [(i, j) for i in range(len(PROMPTS)) for j in range(len(WAYS))]
    ids = [tokenizer(PROMPTS[i])["input_ids"] for i, _ in cases]
    replies = plain.generate(ids, [WAYS[j] for _, j in cases], Limits(max(LIMITS)), [i for i, _ in cases], batch=len(cases))
    return {case: (prompt, reply.token_ids) for case, prompt, reply in zip(cases, ids, replies, strict=True)}


def one(served, texts, rng: random.Random, hangs_up: bool, is_malformed: bool) -> str:
    """What became of one request."""
    i, j, new = rng.randrange(len(PROMPTS)), rng.randrange(len(WAYS)), rng.choice(LIMITS)
    way = WAYS[j]
    body = {
        "prompt": PROMPTS[i],
        "seed": i,
        "max_tokens": new,
        "temperature": way.temperature,
        "top_p": way.top_p,
        "top_k": way.top_k,
    }
    streams = hangs_up or rng.random() < 0.5
    data = rng.choice(MALFORMED) if is_malformed else json.dumps(body | {"stream": streams}).encode()
    request = urllib.request.Request(served.url + "/v1/completions", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as found:
            if hangs_up:
                found.readline()
                return "hung up"
            said = found.read()
    except urllib.error.HTTPError as error:
        json.load(error)
        return str(error.code)
    if streams:
        events = [json.loads(line[6:]) for line in said.split(b"\n\n") if line not in (b"", b"data: [DONE]")]
        text = "".join(event["choices"][0]["text"] for event in events)
    else:
        text = json.loads(said)["choices"][0]["text"]
    prompt, tokens = texts[i, j]
    assert text == text_of(served.pair.tokenizer, prompt, tokens[:new]), (i, j, new)
    return "whole"


def soak(served, texts, requests: int, clients: int) -> dict[str, int]:
    """How often each thing became of a request. Those that the queue refuses come again."""
    found: dict[str, int] = {}
    lock, numbers = threading.Lock(), iter(range(requests))

    def client(seed: int) -> None:
        rng = random.Random(seed)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            outcome = one(served, texts, rng, hangs_up=number % 10 == 3, is_malformed=number % 17 == 5)
            while outcome == "429":
                threading.Event().wait(0.02)
                outcome = one(served, texts, rng, False, False)
            with lock:
                found[outcome] = found.get(outcome, 0) + 1

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for made in [pool.submit(client, seed) for seed in range(clients)]:
            made.result()
    served.wait_until_idle()
    return found


def check(served, found: dict[str, int], requests: int) -> None:
    assert sum(found.values()) == requests and set(found) == {"whole", "hung up", "400"}
    assert served.scheduler.running == served.scheduler.waiting == 0 and not served.house.worker._jobs
    assert (served.gauge("num_requests_running"), served.gauge("kv_cache_usage_perc")) == (0, 0)
    assert served.gauge("request_failures_total") == 0


def test_every_text_is_its_seeds_own_and_no_row_is_lost(served, texts):
    check(served, soak(served, texts, requests=90, clients=8), requests=90)


@pytest.mark.slow
def test_two_thousand_requests_of_32_clients(served, texts):
    soak(served, texts, requests=500, clients=32)
    before = resident()
    check(served, soak(served, texts, requests=2000, clients=32), requests=2000)
    assert resident() - before < MAX_GROWTH_BYTES


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
