"""What a body may not ask for: each is one error in OpenAI's form. Nothing is decoded, so nothing is compiled."""

import json
import types

import pytest

from infer.serve import session
from infer.serve.bodies import ChatBody
from infer.serve.meters import Meters
from infer.serve.orders import Orders
from infer.serve.refusal import Refusal
from infer.serve.routes import House, make_app
from tests.serving import OPTIONS, call, golden_pair
from tests.texts import THINKING


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return golden_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def app(pair):
    """The application without its worker."""
    room = session.make_room(OPTIONS, pair.engine.target.config, 3, OPTIONS.max_length)
    scheduler = session.schedule(pair.engine, OPTIONS.batch_size, room)
    orders = Orders(pair.engine, pair.tokenizer, scheduler.room, "golden", most=11)
    return make_app(
        House(
            orders,
            types.SimpleNamespace(is_well=True, check_room=lambda _: None),
            Meters("golden", 100),
            pair.tokenizer,
            96,
            most_bytes=20_000,
        )
    )


def post(app, path: str, body: bytes | dict, kind: str = "application/json") -> tuple[int, dict]:
    """Status and error of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    messages = [{"type": "http.request", "body": data}]
    status, _, said = call(app, path, "POST", [(b"content-type", kind.encode())], messages)
    return status, json.loads(said)["error"]


REFUSED = [
    ({"prompt": "a", "model": "other"}, 404, "there is no model 'other'; this server has golden", "model"),
    ({}, 400, "prompt: Field required", "prompt"),
    ({"prompt": 5}, 400, "prompt", "prompt"),
    ({"prompt": []}, 400, "prompt is empty", "prompt"),
    ({"prompt": ""}, 400, "prompt is empty", "prompt"),
    ({"prompt": [[]]}, 400, "prompt is empty", "prompt"),
    ({"prompt": [999]}, 400, "token id 999 is outside the target's vocabulary", "prompt"),
    ({"prompt": "x" * 41}, 400, "prompt has 41 tokens; this server has room for prompts of at most 40", "prompt"),
    ({"prompt": "\ud800"}, 400, "", "prompt"),
    ({"prompt": "a", "max_seconds": 0}, 400, "max_seconds should be a number above 0, not 0", "max_seconds"),
    ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens should be from 1", "max_tokens"),
    ({"prompt": "a", "max_tokens": 96}, 400, "max_tokens should be at most 95 (--max-tokens-limit), not 96", "max_tokens"),
    ({"prompt": "a", "max_tokens": "5"}, 400, "max_tokens: Input should be a valid integer", "max_tokens"),
    ({"prompt": "a", "temperature": -1}, 400, "temperature should be 0 (greedy) or from 0.01", "temperature"),
    ({"prompt": "a", "temperature": float("nan")}, 400, "temperature should be", "temperature"),
    ({"prompt": "a", "top_p": 0}, 400, "top_p should be above 0", "top_p"),
    ({"prompt": "a", "seed": -1}, 400, "seed should be from 0", "seed"),
    ({"prompt": "a", "n": 12}, 400, "are more than the 11 replies", "n"),
    ({"prompt": "a", "n": 2, "temperature": 0}, 400, "n should be 1 at temperature 0", "n"),
    ({"prompt": "a", "logprobs": 5}, 400, "logprobs should be at most 4", "logprobs"),
    ({"prompt": "a", "stop": ""}, 400, "stop should be texts of at least one character", "stop"),
    ({"prompt": "a", "stop": ["a"] * 17}, 400, "stop should be at most 16 texts", "stop"),
    ({"prompt": "a", "stop_token_ids": list(range(20))}, 400, "stop_token_ids should be at most", "stop_token_ids"),
    ({"prompt": "a", "min_tokens": 17}, 400, "min_tokens should be at most max_tokens, 16", "min_tokens"),
    ({"prompt": "a", "logit_bias": {"5": 1}, "suffix": "b"}, 400, "not supported by this server: logit_bias, suffix", "logit_bias"),
    ({"prompt": "a", "stream_options": {}}, 400, "stream_options goes with stream: true", "stream_options"),
    ({"prompt": "a", "echo": True, "logprobs": 1}, 400, "echo with logprobs is off: the server was started without", "echo"),
    ({"prompt": "a", "chat_template_kwargs": {"x": 1}}, 400, "by this server: chat_template_kwargs", "chat_template_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "message", "param"), REFUSED, ids=[str(case[0])[:40] for case in REFUSED])
def test_what_cannot_be_served_is_refused_in_openais_form(app, body, status, message, param):
    found, error = post(app, "/v1/completions", body)
    assert found == status and message in error["message"] and error["param"] == param, error
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "messages should be a list"),
        ({"messages": [{"role": "user"}]}, "messages should be a list of objects"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "another kind: 'image_url'"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "not supported by this server: tools"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "not supported by this server: tool_calls"),
        (
            {"messages": [{"role": "tool", "content": "a", "tool_call_id": "1", "tool_calls": []}]},
            "not supported by this server: tool_call_id",
        ),
        ({"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True}, "not supported by this server: add_special"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "top_logprobs goes with logprobs: true"),
        ({"messages": [{"role": "user", "content": "a"}], "echo": True}, "not supported by this server: echo"),
    ],
)
def test_a_chat_that_cannot_be_served_is_refused(app, body, message):
    status, error = post(app, "/v1/chat/completions", body)
    assert status == 400 and message in error["message"], error


def test_variables_of_the_template_are_the_servers_and_a_request_has_its_own(pair):
    room = session.make_room(OPTIONS, pair.engine.target.config, 3, OPTIONS.max_length)
    room = session.schedule(pair.engine, 1, room).room
    orders = Orders(pair.engine, pair.tokenizer, room, "golden", 11, THINKING, kwargs={"enable_thinking": False})

    def written(**more) -> str:
        body = ChatBody.model_validate({"messages": [{"role": "user", "content": "a"}]} | more)
        return pair.tokenizer.decode(orders.chat(body).requests[0].prompt)

    assert written().endswith("<assistant><think>\n\n</think>\n\n")
    assert written(chat_template_kwargs={"enable_thinking": True}).endswith("<assistant>")
    with pytest.raises(Refusal, match="chat_template_kwargs should hold variables"):
        written(chat_template_kwargs={"messages": []})
    with pytest.raises(Refusal, match="other"):
        written(chat_template_kwargs={"other": 1})


NO_OBJECTS = [b"", b"{", b"[]", b"7", b'{"prompt": ' + b"[" * 5000, b"\xff", b'{"prompt": 1' + b"0" * 5000 + b"}"]


@pytest.mark.parametrize("body", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_what_is_no_json_object_is_refused(app, body):
    status, error = post(app, "/v1/completions", body)
    assert status == 400 and error["message"]


def test_bodies_that_a_page_could_send_without_asking_are_refused(app):
    """Browsers send text/plain to any server without a preflight."""
    status, error = post(app, "/v1/completions", {"prompt": "a"}, "text/plain")
    assert status == 400 and "application/json" in error["message"]


def test_a_body_that_is_too_large_is_refused(app):
    status, error = post(app, "/v1/completions", {"prompt": "a" * 20_000})
    assert (status, error["code"]) == (413, "request_too_large")
