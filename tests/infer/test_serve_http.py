"""What stands around the server's application: the key, bounds on bodies and on how many wait, errors of HTTP itself."""

import asyncio
import hmac
import json
import threading
import types

import pytest
import transformers

from infer.serve import guard
from infer.serve.guard import Guard
from infer.serve.meters import Meters
from infer.serve.refusal import Refusal
from infer.serve.routes import House, make_app
from tests.serving import call, calling
from tests.texts import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(503), eos_token="<end>")


@pytest.fixture
def app(tokenizer):
    def make(orders=types.SimpleNamespace(name="golden"), worker=types.SimpleNamespace(is_well=True), **more):
        return make_app(House(orders, worker, Meters("golden", 100), tokenizer, 96, **more))

    return make


def test_a_key_is_needed_but_for_public_paths_is_compared_in_constant_time_and_is_shown_nowhere(app, monkeypatch, caplog, capsys):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    made = app(keys=(b"first-key", b"other-key"))
    for header in ((), [(b"authorization", b"Bearer wrong")], [(b"authorization", b"Basic first-key")]):
        status, headers, body = call(made, headers=header)
        error = json.loads(body)["error"]
        assert (status, error["code"], headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    for key in (b"first-key", b"other-key"):
        assert call(made, headers=[(b"authorization", b"Bearer " + key)])[0] == 200
    assert compared == [b"first-key", b"other-key"] * 5
    assert [call(made, path)[0] for path in ("/health", "/metrics", "/version", "/")] == [200] * 4
    assert call(made, "/v2")[0] == call(made, "/health/x")[0] == 401
    assert "first-key" not in caplog.text + "".join(capsys.readouterr())
    assert "first-key" not in repr(House(None, None, None, None, 1, keys=(b"first-key",)))


def test_no_origin_is_let_in_but_those_that_are_named(app):
    origin = [(b"origin", b"http://here:3000")]
    assert "access-control-allow-origin" not in call(app(), "/version", headers=origin)[1]
    named = app(origins=("http://here:3000",), keys=(b"k",))
    assert call(named, "/version", headers=origin)[1]["access-control-allow-origin"] == "http://here:3000"
    assert "access-control-allow-origin" not in call(named, "/version", headers=[(b"origin", b"http://there")])[1]
    preflight = [*origin, (b"access-control-request-method", b"POST")]
    assert call(named, "/v1/completions", "OPTIONS", preflight)[0] == 200
    assert call(named, headers=origin)[1]["access-control-allow-origin"] == "http://here:3000"  # with its 401


def test_a_body_is_bounded_also_where_its_length_is_not_said(app, monkeypatch):
    parts = [{"type": "http.request", "body": b"x" * 600, "more_body": True}] * 2
    made = app(most_bytes=1000)
    assert call(made, "/v1/completions", "POST", messages=parts)[0] == 413
    assert call(made, "/v1/completions", "POST", [(b"content-length", b"1001")], [])[0] == 413
    assert call(made, "/v1/completions", "POST", [(b"content-length", b"x")], [])[0] == 413
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    assert call(made, "/v1/completions", "POST", messages=parts[:1])[0] == 408


def test_a_client_that_goes_away_before_its_body_is_there_reaches_nothing():
    reached, sent = [], []

    async def inner(*_):
        reached.append(True)

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(inner, (), 10)({"type": "http", "path": "/", "method": "POST", "headers": []}, receive, send))
    assert not reached and not sent


def test_a_key_is_needed_behind_the_prefix_of_a_proxy_too(app):
    """Ray Serve's `route_prefix`: the path has it, and so has `root_path`, and routes count from there."""
    made = app(keys=(b"k",))
    key = [(b"authorization", b"Bearer k")]
    for root, open_path in (("/llm", "/llm/health"), ("/llm", "/health"), ("/v1", "/v1/health")):
        assert call(made, open_path, root=root)[0] == 200
    for path, root in (
        ("/llm/v1/models", "/llm"),
        ("/v1/models", "/llm"),
        ("/v1/v1/models", "/v1"),
        ("/healthy/v1/models", "/healthy"),
    ):
        assert (call(made, path, root=root)[0], call(made, path, headers=key, root=root)[0]) == (401, 200)


def test_a_path_that_takes_another_method_says_which(app):
    status, headers, body = call(app(), "/v1/completions", "GET")
    assert (status, headers["allow"], json.loads(body)["error"]["message"]) == (405, "POST", "Method Not Allowed")


def test_bodies_that_wait_to_be_read_count_and_those_beyond_are_refused(app):
    """Reading is slow: a long text takes seconds."""
    reads, may_go, asked = threading.Event(), threading.Event(), []

    def check_room(count):
        asked.append(count)
        if count > 2:
            raise Refusal(429, "too many", retry_after=1)

    def completion(body):
        reads.set()
        assert may_go.wait(60)
        raise Refusal(400, "read")

    made = app(
        types.SimpleNamespace(name="golden", completion=completion), types.SimpleNamespace(is_well=True, check_room=check_room)
    )

    def post() -> asyncio.Task:
        message = {"type": "http.request", "body": b'{"prompt": "a"}'}
        return asyncio.ensure_future(calling(made, "/v1/completions", "POST", [(b"content-type", b"application/json")], [message]))

    async def ask() -> list[int]:
        posts = [post() for _ in range(3)]
        await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED, timeout=60)  # the one that is refused
        assert await asyncio.to_thread(reads.wait, 60)
        may_go.set()
        statuses = [(await each)[0] for each in posts]
        return [*statuses, (await post())[0]]

    assert asyncio.run(ask()) == [400, 400, 429, 400]
    assert asked == [1, 2, 3, 1]
