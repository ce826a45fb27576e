"""A server on a thread of this process, with a golden pair that has a tokenizer."""

import asyncio
import contextlib
import dataclasses
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence

import openai
import uvicorn

from infer.completion import Pair
from infer.serve import session
from infer.serve.__main__ import Options
from infer.serve.routes import House, make_app
from infer.text import load_tokenizer
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.scheduler import Scheduler
from tests import support
from tests.texts import with_tokenizer

OPTIONS = Options(
    model_name="golden", batch_size=3, max_length=96, max_prompt_tokens=40, chunk_tokens=16, logprobs=3, look_ms=5.0, max_queue=8,
    max_seconds=120.0, max_request_bytes=20_000,
)  # fmt: skip
END_SECONDS = 60  # that a server may take to end


@dataclasses.dataclass(frozen=True)
class Served:
    """A server that runs: url without a path."""

    url: str
    pair: Pair
    scheduler: Scheduler
    house: House

    def client(self, **more) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(**self.client_options, **more)

    @property
    def client_options(self) -> dict:
        return {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 120.0}

    def gauge(self, name: str) -> float:
        """The value of one of vLLM's metrics."""
        labels = {"model_name": "golden", "engine": "0"}
        return self.house.meters.registry.get_sample_value(f"vllm:{name}", labels)

    def wait_until_idle(self) -> None:
        """Until no request is decoded or waits."""
        wait_until(lambda: (self.gauge("num_requests_running"), self.gauge("num_requests_waiting")) == (0, 0))


def golden_pair(folder: pathlib.Path) -> Pair:
    """The Vicuna-like golden pair, whose tokens are bytes."""
    target, drafter = support.load_pair("mha_rnn")
    return Pair(Engine(target, Recurrent(drafter, Shape(2, 3)), [256]), load_tokenizer(with_tokenizer(folder / "target", True)))


@contextlib.contextmanager
def serving(pair: Pair, options: Options = OPTIONS, keys: Sequence[bytes] = ()) -> Iterator[Served]:
    """A server of this pair until the body ends."""
    length = pair.engine.proposer.round.length
    room = session.make_room(options, pair.engine.target.config, length, options.max_length)
    scheduler = session.schedule(pair.engine, options.batch_size, room, not options.no_prefix_reuse)
    house = session.furnish(pair, scheduler, options.model_name, options, keys)
    session.prepare(scheduler, pair)
    listener = session.bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(house), log_level="warning", ws="none", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", pair, scheduler, house)
    finally:
        server.should_exit = True
        thread.join(END_SECONDS)
        assert not thread.is_alive()


def wait_until(is_so, seconds: float = 60.0) -> None:
    """Raises AssertionError where it is not so after a time."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def call(*request, **more) -> tuple[int, dict, bytes]:
    """`calling`, in a loop of its own."""
    return asyncio.run(calling(*request, **more))


async def calling(
    app, path="/v1/models", method="GET", headers=(), messages=({"type": "http.request"},), root=""
) -> tuple[int, dict, bytes]:
    """Status, headers and body of a request to an ASGI application, which a proxy may have mounted at a path."""
    waiting, sent = list(messages), []

    async def receive():
        return waiting.pop(0) if waiting else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "path": path, "raw_path": path.encode(), "method": method, "query_string": b"", "headers": list(headers),
        "http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("y", 1), "root_path": root,
    }  # fmt: skip
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}, body
