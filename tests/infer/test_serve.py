"""A server on loopback, called as its users call it: by the official client, and by hand."""

import asyncio
import dataclasses
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request

import openai
import pytest

from infer.stopping import Stopper, Stops
from infer.text import text_of
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from tests.serving import OPTIONS, golden_pair, serving, wait_until
from tests.soak import Asking, resident, soak, statuses_of_schema
from tests.support import compilations

PROMPTS = ["def f", "éa", "x" * 30, "import os\n", "hello", "0", "<system>be<user>so<assistant>"]
WAYS = [Sampling(), *(Sampling(t, k, p) for t, k, p in ((3.0, 0, 1.0), (2.0, 9, 1.0), (1.5, 0, 0.8), (1.0, 0, 1.0), (4.0, 0, 1.0)))]
WAYS.append(Sampling(1.0))
NEW = 40
MAX_GROWTH_BYTES = 64 << 20  # of the process, by 2,000 requests


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(golden_pair(tmp_path_factory.mktemp("pair")), dataclasses.replace(OPTIONS, prompt_logprobs=True)) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    return served.client()


@pytest.fixture(scope="module")
def alone(served):
    """What plain decoding gives to each prompt with its number as the seed: the replies."""
    ids = [served.pair.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    ways, plain = [dataclasses.replace(way, logprobs=2) for way in WAYS], Engine(served.pair.engine.target, None, [256])
    *_, last = plain.stream(ids, ways, Limits(NEW), list(range(len(ids))), rounds=1 << 30)
    return last.replies


@pytest.fixture(scope="module")
def texts(served, alone):
    tokenizer = served.pair.tokenizer
    return [text_of(tokenizer, tokenizer(p)["input_ids"], reply.token_ids) for p, reply in zip(PROMPTS, alone, strict=True)]


def asked(number: int, **more) -> dict:
    """The fields of a completion, with the same sampling as `alone`."""
    way = WAYS[number]
    own = {"top_k": way.top_k} if way.top_k else {}
    fields = {"prompt": PROMPTS[number], "temperature": way.temperature, "top_p": way.top_p, "seed": number, "max_tokens": NEW}
    return {"model": "golden", **fields, "extra_body": own} | more


def check_idle(served) -> None:
    assert served.scheduler.running == served.scheduler.waiting == 0 and not served.house.worker._jobs
    assert (served.gauge("num_requests_running"), served.gauge("kv_cache_usage_perc")) == (0, 0)


def test_a_text_is_that_of_plain_decoding_for_its_seed_whatever_else_is_served(served, texts, alone):
    async def all_at_once() -> list:
        async with openai.AsyncOpenAI(**served.client_options) as client:
            return await asyncio.gather(*(client.completions.create(**asked(i)) for i in range(len(PROMPTS))))

    replies = asyncio.run(all_at_once())
    assert [reply.choices[0].text for reply in replies] == texts
    for number, reply in enumerate(replies):
        tokens = len(alone[number].token_ids)
        assert (reply.object, reply.model, reply.seed) == ("text_completion", "golden", number)
        assert reply.choices[0].finish_reason == alone[number].finish_reason
        assert reply.usage.completion_tokens == tokens and reply.usage.total_tokens == tokens + reply.usage.prompt_tokens


def test_nothing_is_compiled_while_requests_are_served(client, texts):
    with compilations() as found:
        client.completions.create(**asked(3))
        with client.completions.create(**asked(1), stream=True) as stream:
            next(iter(stream))
    assert not found


@pytest.mark.parametrize("number", [1, 3])
def test_a_stream_says_the_same_as_the_whole(client, texts, alone, number):
    chunks = list(client.completions.create(**asked(number), stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == texts[number] and len(chunks) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [alone[number].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(alone[number].token_ids)
    assert len({chunk.id for chunk in chunks}) == 1


def test_prompts_in_every_form_and_several_replies_to_each(served, client, texts):
    ids = served.pair.tokenizer(PROMPTS[0])["input_ids"]
    greedy = {"model": "golden", "temperature": 0, "max_tokens": NEW}
    for prompt in (PROMPTS[0], ids, [PROMPTS[0]], [ids]):
        assert client.completions.create(prompt=prompt, **greedy).choices[0].text == texts[0]
    several = client.completions.create(prompt=[PROMPTS[4], PROMPTS[4]], n=2, seed=4, max_tokens=NEW, model="golden", echo=True)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == PROMPTS[4] + texts[4] and len({choice.text for choice in several.choices}) == 4
    assert several.usage.prompt_tokens == 2 * len(PROMPTS[4])
    chunks = list(client.completions.create(prompt=PROMPTS[4], n=2, seed=4, max_tokens=NEW, model="golden", stream=True))
    said = ["".join(c.text for chunk in chunks for c in chunk.choices if c.index == index) for index in (0, 1)]
    assert said == [texts[4], several.choices[1].text.removeprefix(PROMPTS[4])]
    ids = served.pair.tokenizer("né日🙂")["input_ids"]
    assert client.completions.create(model="golden", prompt=[ids], echo=True).choices[0].text.startswith("né日🙂")


def test_a_reply_ends_where_its_row_has_no_more_room(client):
    full = client.completions.create(model="golden", prompt="x" * 40, max_tokens=95, seed=0, extra_body={"ignore_eos": True})
    assert (full.usage.total_tokens, full.choices[0].finish_reason) == (96, "length")


def test_a_seed_that_is_missing_is_chosen_and_said_and_gives_the_same_text_again(client):
    first, other = (client.completions.create(model="golden", prompt="a", max_tokens=20, temperature=3) for _ in range(2))
    assert first.seed != other.seed and first.choices[0].text != other.choices[0].text
    again = client.completions.create(model="golden", prompt="a", max_tokens=20, temperature=3, seed=first.seed)
    assert again.choices[0].text == first.choices[0].text


def test_a_chat_is_written_with_the_template_whole_and_streamed(client, texts, alone):
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "so"}]}]
    given = {"model": "golden", "messages": messages, "seed": 6, "max_completion_tokens": NEW, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**given)
    said, choice, reply = texts[6], whole.choices[0], alone[6]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", said, reply.finish_reason)
    assert whole.usage.prompt_tokens == len(PROMPTS[6]) and len(choice.logprobs.content) == len(reply.token_ids)
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in choice.logprobs.content)
    chunks = list(client.chat.completions.create(**given, stream=True))
    deltas = [chunk.choices[0] for chunk in chunks]
    assert deltas[0].delta.role == "assistant" and "".join(each.delta.content or "" for each in deltas) == said
    assert deltas[-1].finish_reason == reply.finish_reason and deltas[-2].finish_reason is None
    entries = [entry for each in deltas if each.logprobs for entry in each.logprobs.content]
    assert [entry.token for entry in entries] == [entry.token for entry in choice.logprobs.content]
    assert [entry.logprob for entry in entries] == pytest.approx([e.logprob for e in choice.logprobs.content], abs=1e-5)


def test_log_probabilities_of_a_completion_are_the_targets_own(client, alone):
    found, reply = client.completions.create(**asked(1), logprobs=2).choices[0].logprobs, alone[1]
    assert found.token_logprobs == pytest.approx(reply.logprobs, abs=1e-4) and len(found.tokens) == len(reply.token_ids)
    for index, (top, likeliest) in enumerate(zip(found.top_logprobs, reply.top_logprobs, strict=True)):
        assert 2 <= len(top) <= 3 and top[found.tokens[index]] == pytest.approx(reply.logprobs[index], abs=1e-4)
        assert sorted(top.values())[-2:] == pytest.approx(sorted(likeliest.values()), abs=1e-4)
    assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)


@pytest.mark.parametrize("new", [0, 1])
def test_log_probabilities_of_an_echo_are_those_that_its_text_was_decoded_with(served, client, alone, new):
    reply, tokenizer = alone[3], served.pair.tokenizer
    begin, said = len(PROMPTS[3]), reply.token_ids[:25]
    ids = [*tokenizer(PROMPTS[3])["input_ids"], *said]
    given = {"model": "golden", "prompt": [ids, ids[:begin]], "max_tokens": new, "echo": True, "logprobs": 2, "temperature": 0}
    whole = client.completions.create(**given)
    found, text = whole.choices[0].logprobs, whole.choices[0].text
    shown = [len(ids) + new, begin + new]
    assert (
        [len(choice.logprobs.tokens) for choice in whole.choices] == shown == [len(c.logprobs.text_offset) for c in whole.choices]
    )
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert found.token_logprobs[begin : len(ids)] == pytest.approx(reply.logprobs[: len(said)], abs=1e-4)
    for token, value, top in list(zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True))[1:]:
        assert 2 <= len(top) <= 3 and top[token] == value and max(top.values()) >= value
    echo = text_of(tokenizer, [], ids)
    assert text.startswith(echo) and (new or text == echo) and found.text_offset[: begin + 1] == list(range(begin + 1))
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(ids) + begin, 2 * new)
    assert whole.choices[0].finish_reason == "length"
    parts = [c for chunk in client.completions.create(**given, stream=True) for c in chunk.choices if c.index == 0]
    assert "".join(part.text for part in parts) == text
    values = [value for part in parts for value in part.logprobs.token_logprobs]
    assert values[0] is None and values[1:] == pytest.approx(found.token_logprobs[1:], abs=1e-4)


@pytest.fixture(scope="module")
def stop(texts):
    """A string of three characters in the middle of a reply, which begins and ends within words of the vocabulary."""
    return texts[4][9:12]


def test_a_stop_string_ends_a_text_before_it_whole_and_streamed(served, client, texts, alone, stop):
    expected = texts[4][: texts[4].index(stop)]
    whole = client.completions.create(**asked(4), stop=[stop, "never there"])
    choice = whole.choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (expected, "stop", stop)
    assert 0 < whole.usage.completion_tokens < len(alone[4].token_ids)
    chunks = list(client.completions.create(**asked(4), stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    included = client.completions.create(**asked(4, extra_body={"include_stop_str_in_output": True}), stop=stop)
    assert included.choices[0].text == expected + stop


def test_figures_and_drafts_are_in_a_reply_that_asks_for_them(client, alone):
    more = {"return_metrics": True, "return_drafts": True}
    whole = client.completions.create(**asked(0, extra_body=more))
    block = whole.metrics["speculative_decoding"]
    assert block["num_spec_tokens"] == 3 and sum(block["acceptance_histogram"]) == block["num_spec_steps"] > 0
    pieces = whole.choices[0].drafts
    assert "".join(text for text, _ in pieces) == whole.choices[0].text
    assert sum(drafted for _, drafted in pieces) - block["num_accepted_draft_tokens"] in (0, 1)  # the last pass was cut off
    assert whole.metrics["tokens_per_step"] == pytest.approx((len(alone[0].token_ids) - 1) / block["num_spec_steps"])
    last = list(client.chat.completions.create(
        model="golden", messages=[{"role": "user", "content": "a"}], max_tokens=9, stream=True, extra_body=more
    ))[-1]  # fmt: skip
    assert last.choices == [] and last.metrics["speculative_decoding"]["num_spec_tokens"] == 3
    assert not hasattr(client.completions.create(**asked(0)), "metrics")


@pytest.fixture
def slowly(served, monkeypatch):
    """Makes replies slow enough to go away from."""
    step = served.scheduler.step

    def one_round(rounds, *more):
        time.sleep(0.02)
        return step(1, *more)

    monkeypatch.setattr(served.scheduler, "step", one_round)


def test_a_client_that_goes_away_frees_its_row(served, client, slowly):
    served.wait_until_idle()
    before = served.gauge("request_cancellations_total")
    long = {"model": "golden", "prompt": "a", "max_tokens": 80, "extra_body": {"ignore_eos": True}}
    for _ in range(2):
        stream = client.completions.create(**long, stream=True)
        next(iter(stream))
        stream.response.close()
        wait_until(lambda: served.scheduler.running == 0, seconds=5)
    address = urllib.parse.urlsplit(served.url)
    body = json.dumps({"prompt": "a", "max_tokens": 80, "n": 4, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as raw:
        raw.sendall(head.encode() + body)
        wait_until(lambda: (served.scheduler.running, served.scheduler.waiting) == (3, 1))
    served.wait_until_idle()
    assert served.gauge("request_cancellations_total") == before + 6
    check_idle(served)


def test_fields_that_ask_for_nothing_and_unknown_ones_are_ignored(client, texts):
    nothing = {"logit_bias": {}, "best_of": 1, "suffix": None, "guided_json": None, "tools": [], "anything": "else", "top_k": -1}
    assert client.completions.create(**asked(1, extra_body=nothing)).choices[0].text == texts[1]


def test_the_queue_is_bounded_and_says_when_to_come_again(served):
    served.wait_until_idle()
    with pytest.raises(openai.RateLimitError) as refused:
        client = served.client()
        streams = []
        for _ in range(30):
            streams.append(client.completions.create(model="golden", prompt="a", n=3, max_tokens=80, stream=True))
    assert refused.value.status_code == 429 and int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.body["code"] == "rate_limit_exceeded"
    for stream in streams:
        stream.response.close()
    served.wait_until_idle()


def test_models_health_version_metrics_and_page(served, client):
    assert [model.id for model in client.models.list()] == ["golden"] and client.models.retrieve("golden").id == "golden"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")

    def get(path: str) -> str:
        with urllib.request.urlopen(served.url + path, timeout=60) as found:
            return found.read().decode()

    client.completions.create(**asked(0))
    assert get("/health") == "" and json.loads(get("/version"))["version"] and "<!doctype html>" in get("/")
    found = get("/metrics")
    for name in ("spec_decode_num_drafts_total", "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total",
                 "num_requests_running", "num_requests_waiting", "time_to_first_token_seconds_bucket", "prompt_tokens_total",
                 "inter_token_latency_seconds_bucket", "e2e_request_latency_seconds_bucket", "generation_tokens_total",
                 "kv_cache_usage_perc"):  # fmt: skip
        assert f'vllm:{name}{{engine="0"' in found, name
    assert 'per_pos_total{engine="0",model_name="golden",position="2"}' in found
    assert 'redrafter:rounds_total{engine="0",model_name="golden",way="2x3"}' in found
    accepted = [served.house.meters.registry.get_sample_value(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total", {"model_name": "golden", "engine": "0", "position": str(position)}
    ) for position in range(3)]  # fmt: skip
    assert accepted == sorted(accepted, reverse=True) and sum(accepted) == served.gauge("spec_decode_num_accepted_tokens_total") > 0
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        get("/v1/nothing")
    assert json.load(missing.value)["error"]["message"] == "Not Found"


def test_stops_of_several_rows_at_once_do_not_meet(served, texts, alone):
    """Rows with stop strings, with other ones and without any, in one batch."""
    cuts = [None, texts[1][5:8], None, texts[3][7:9], texts[4][4:7], texts[5][11:13], None]

    async def all_at_once() -> list:
        async with openai.AsyncOpenAI(**served.client_options) as client:
            made = (client.completions.create(**asked(i), stop=stop) for i, stop in enumerate(cuts))
            return await asyncio.gather(*made)

    for number, reply in enumerate(asyncio.run(all_at_once())):
        ids = served.pair.tokenizer(PROMPTS[number])["input_ids"]
        found = Stopper(served.pair.tokenizer, Stops((cuts[number],) if cuts[number] else ())).text(ids)
        whole = "".join(map(found.push, alone[number].token_ids)) + found.flush()
        assert reply.choices[0].text == whole


def test_no_request_that_the_schema_lets_one_make_fails_in_the_server(served):
    paths, statuses = statuses_of_schema(served.url)
    assert paths >= {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics", "/version"}
    assert max(map(max, statuses.values())) < 500 and {200, 400} <= set(statuses["POST"]) and 200 in statuses["GET"], statuses


@pytest.fixture(scope="module")
def askings(served, alone) -> list[Asking]:
    found = []
    for number, reply in enumerate(alone):
        body = asked(number)
        found.append(Asking(body | body.pop("extra_body"), served.pair.tokenizer(PROMPTS[number])["input_ids"], reply.token_ids))
    return found


def test_what_a_row_has_read_of_a_prompt_is_not_read_again_and_is_counted(served, client, texts, askings):
    names = ("prefix_cache_queries_total", "prefix_cache_hits_total")
    client.completions.create(**asked(2, max_tokens=1))
    before = [served.gauge(name) for name in names]
    again = client.completions.create(**asked(2))
    assert again.choices[0].text == texts[2] and again.usage.prompt_tokens_details.cached_tokens == 16  # of 30
    other = client.completions.create(**asked(2, prompt="x" * 15 + "y" * 20))
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    assert [served.gauge(name) - old for name, old in zip(names, before, strict=True)] == [65, 16]
    assert soak(served, [askings[2], askings[6]], requests=20, clients=6)["whole"] > 10
    assert served.gauge(names[1]) - before[1] > 11 * 16


def test_clients_that_come_at_once_hang_up_or_send_nonsense_change_no_text_and_keep_no_row(served, askings):
    found = soak(served, askings, requests=90, clients=8)
    assert sum(found.values()) == 90 and set(found) == {"whole", "hung up", "400"}
    check_idle(served)


@pytest.mark.slow
def test_two_thousand_requests_of_32_clients(served, askings):
    soak(served, askings, requests=500, clients=32)
    before = resident()
    found = soak(served, askings, requests=2000, clients=32)
    assert sum(found.values()) == 2000 and set(found) == {"whole", "hung up", "400"}
    check_idle(served)
    assert served.gauge("request_failures_total") == 0
    assert resident() - before < MAX_GROWTH_BYTES
