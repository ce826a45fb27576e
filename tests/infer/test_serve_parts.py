"""The parts of the server that need no device: the worker's bounds and its end, texts, options."""

import asyncio
import contextlib
import dataclasses
import queue

import pytest
import transformers

from infer.serve import session
from infer.serve.exchange import Exchange
from infer.serve.growth import Growth
from infer.serve.meters import Meters
from infer.serve.orders import Order
from infer.serve.refusal import Refusal
from infer.serve.vocabulary import TokenTexts
from infer.serve.worker import Job, Worker
from infer.stopping import Stopper, Stops, Watched
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.request import Limits, Sampling
from redrafter_jax.decode.seat import Event
from redrafter_jax.errors import BadInput
from tests.serving import wait_until
from tests.texts import byte_tokenizer

REQUEST = Request([1, 2], Sampling(), Limits(8), 0, ())


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(503), eos_token="<end>")


def reply_of(ids, reason="length") -> Reply:
    return Reply(
        list(ids), [False] * len(ids), reason, max(0, len(ids) - 1), [max(0, len(ids) - 1), 0], 0.1, 0, scored=[0] * len(ids)
    )


class Steps:
    """A scheduler of one row, each of whose steps gives a token to the request in it, or raises what is in ``errors``. A step
    without rounds gives the first one only."""

    rows, round_seconds, rounds_of, idle_seconds, is_reading = 1, 0.001, {"plain": 1}, None, False

    def __init__(self, tokens=(65, 66, 67), errors=()):
        self.tokens, self.errors, self.queue, self.count, self.resets, self.tickets = tokens, list(errors), [], 0, 0, 0
        self.may_go, self.asked = queue.Queue(), []

    running = property(lambda self: int(bool(self.queue)))
    waiting = property(lambda self: max(0, len(self.queue) - 1))

    def submit(self, request, follows):
        self.queue.append(self.tickets)
        self.tickets += 1
        return self.tickets - 1

    def cancel(self, ticket):
        self.count = 0 if self.queue[:1] == [ticket] else self.count
        self.queue.remove(ticket)

    def reset(self):
        self.resets += 1
        self.queue.clear()
        self.count = 0

    def step(self, rounds, watch, seconds):
        if not self.queue:
            return []
        self.may_go.get(timeout=60)
        if self.errors:
            raise self.errors.pop()
        self.asked.append(rounds)
        self.count += rounds > 0 or self.count == 0
        event = Event(self.queue[0], reply_of(self.tokens[: self.count]), self.count == len(self.tokens), self.count)
        is_ended = watch is not None and event.ticket in watch([event]) and not event.done
        if event.done or is_ended:
            self.queue.pop(0)
            self.count = 0
        return [dataclasses.replace(event, done=event.done or is_ended)]


@pytest.fixture
def started():
    made = []

    def start(steps: Steps, waiting: int = 2) -> Worker:
        made.append((Worker(steps, 0.05, waiting, Meters("m", 100)), steps))
        made[-1][0].start()
        return made[-1][0]

    yield start
    for worker, steps in made:
        for _ in range(100):
            steps.may_go.put(None)
        worker.stop()
        assert not worker.is_well


def job(said: list, streams=False, watched=None) -> Job:
    return Job(REQUEST, watched, streams, lambda *what: said.append(what))


def test_who_streams_is_told_at_every_look_and_others_at_the_end(started):
    steps, stream, whole = Steps(), [], []
    worker = started(steps)
    worker.submit([job(stream, streams=True), job(whole)])
    for _ in range(6):
        steps.may_go.put(None)
    wait_until(lambda: whole)
    assert [(reply.token_ids, done) for reply, done, _ in stream] == [([65], False), ([65, 66], False), ([65, 66, 67], True)]
    assert [(reply.token_ids, done) for reply, done, _ in whole] == [([65, 66, 67], True)]


class Arriving(Steps):
    """Before these steps a request waits for a row that is free."""

    rows = 2
    waiting = property(lambda self: int(len(self.asked) in (0, 1, 3, 4)))


def test_a_first_token_waits_for_no_round_but_running_rows_go_on_between_two_that_are_read(started):
    steps, stream = Arriving((65, 66, 67, 68)), []
    worker = started(steps)
    worker.submit([job(stream, streams=True)])
    for _ in range(5):
        steps.may_go.put(None)
    wait_until(lambda: stream and stream[-1][1])
    assert steps.asked == [0, 1, 50, 0, 1]
    assert [len(reply.token_ids) for reply, *_ in stream] == [1, 2, 3, 4]  # and nothing is told where nothing is new


def test_requests_beyond_the_queue_are_refused_all_or_none_and_a_cancelled_one_makes_room(started):
    steps, said = Steps(), []
    worker = started(steps, waiting=2)
    jobs = [job(said) for _ in range(3)]
    worker.submit(jobs)
    wait_until(lambda: steps.tickets == 3)
    with pytest.raises(Refusal) as refused:
        worker.submit([job(said)])
    assert (refused.value.status, refused.value.retry_after) == (429, 1) and "2 requests wait" in refused.value.message
    worker.cancel(jobs[:1])
    worker.submit([job(said)])
    with pytest.raises(Refusal):
        worker.submit([job(said)])
    for _ in range(30):
        steps.may_go.put(None)
    wait_until(lambda: len(said) == 3)
    worker.cancel(jobs)  # complete already
    worker.submit([job(said)])
    wait_until(lambda: len(said) == 4)
    assert worker.is_well and steps.resets == 0


@pytest.mark.parametrize(("given", "of_request", "whose"), [(0.05, None, "--max-seconds"), (60, 0.05, "max_seconds")])
def test_a_request_that_takes_too_long_is_given_up_and_its_row_is_free(started, tokenizer, given, of_request, whose):
    steps, order = Steps(), Order(False, (REQUEST,), ("",), Stops(), 0, True, seconds=of_request)
    worker = started(steps)

    async def texts(seconds: float) -> list[str]:
        with contextlib.closing(Exchange(worker, Stopper(tokenizer), order, seconds)) as exchange:
            return [delta.text async for _, delta in exchange.deltas()]

    with pytest.raises(Refusal) as refused:
        asyncio.run(texts(given))
    assert refused.value.status == 504 and refused.value.message.endswith(f"took longer than the 0.05 s of {whose}")
    steps.may_go.put(None)  # for the step that it was in; two more would end the request by themselves
    wait_until(lambda: steps.running == 0, seconds=20)  # before a step that gets none gives up
    for _ in range(3):
        steps.may_go.put(None)
    order = dataclasses.replace(order, seconds=90.0)  # no more than the server gives
    assert "".join(asyncio.run(texts(60))) == tokenizer.decode([65, 66, 67])


def test_a_device_that_fails_ends_requests_with_an_error_and_the_next_ones_are_served(started):
    steps, said, ended = Steps(errors=[RuntimeError("INTERNAL: boom")]), [], []
    worker = started(steps)
    worker.on_end = lambda: ended.append(True)
    for _ in range(4):
        steps.may_go.put(None)
    worker.submit([job(said), job(said)])
    wait_until(lambda: len(said) == 2)
    assert {(reply, done, why.status, why.code) for reply, done, why in said} == {(None, True, 500, "device_failure")}
    worker.submit([job(said)])
    wait_until(lambda: len(said) == 3)
    assert said[2][0].token_ids == [65, 66, 67] and steps.resets == 1 and not ended and worker.is_well


def test_a_reply_that_ends_in_an_error_is_a_failure_and_no_success():
    meters = Meters("m", 100)
    for reason in ("error", "length"):
        meters.ended(job([]), reply_of([65], reason), 1.0)
    read = meters.registry.get_sample_value
    labels = {"model_name": "m", "engine": "0"}
    assert read("vllm:request_failures_total", labels) == 1
    assert read("vllm:request_success_total", labels | {"finished_reason": "error"}) is None
    assert read("vllm:request_success_total", labels | {"finished_reason": "length"}) == 1


def test_failures_far_apart_do_not_end_the_server(started):
    steps, said = Steps(errors=[RuntimeError("a")]), []
    worker = started(steps)
    for _ in range(2):
        steps.errors = [RuntimeError("a")]
        for count in (1, 2):
            for _ in range(4):
                steps.may_go.put(None)
            worker.submit([job(said)])
            wait_until(lambda total=len(said) + 1: len(said) == total)
            steps.may_go.queue.clear()
            assert (said[-1][2] is None) == (count == 2)
    assert steps.resets == 2 and worker.is_well


def test_a_device_that_fails_again_ends_the_server_and_no_request_hangs(started):
    steps, said, ended = Steps(errors=[RuntimeError("a"), RuntimeError("b")]), [], []
    worker = started(steps)
    worker.on_end = lambda: ended.append(True)
    for count in (1, 2):
        steps.may_go.put(None)
        wait_until(lambda: steps.resets == len(said))
        worker.submit([job(said)])
        wait_until(lambda count=count: len(said) == count)
    wait_until(lambda: ended)
    assert steps.resets == 1 and [why.status for _, _, why in said] == [500, 500]
    wait_until(lambda: not worker.is_well)
    with pytest.raises(Refusal) as refused:
        worker.submit([job(said)])
    assert refused.value.status == 503


def test_a_worker_that_is_stopped_ends_requests_with_an_error(started):
    steps, said = Steps(), []
    worker = started(steps)
    worker.submit([job(said), job(said)])
    steps.may_go.put(None)
    wait_until(lambda: steps.tickets == 2)
    steps.may_go.put(None)
    worker.stop()
    assert [why.status for _, _, why in said] == [503, 503]


def test_a_stop_string_ends_a_job_at_its_token(started, tokenizer):
    ids = tokenizer("abcde")["input_ids"]
    steps, said = Steps(tokens=ids), []
    worker = started(steps)
    worker.submit([job(said, watched=Watched(Stopper(tokenizer, Stops(("cd",))).text([])))])
    for _ in range(5):
        steps.may_go.put(None)
    wait_until(lambda: said)
    (reply, done, why), *more = said
    assert (reply.token_ids, reply.finish_reason, reply.stop_reason, done, why) == (ids[:4], "stop", "cd", True, None) and not more


@pytest.mark.parametrize(("stops", "in_pieces"), [((), True), ((), False), (("🙂k",), False)], ids=["pieces", "plain", "stops"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_characters_of_several_tokens_arrive_whole_however_a_reply_grows(tokenizer, size, stops, in_pieces):
    said = "né日本🙂 ok"
    ids = tokenizer(said)["input_ids"]
    growth = Growth(Stopper(tokenizer, Stops(stops)), REQUEST, "echo ", in_pieces=in_pieces)
    deltas = [growth.grow(reply_of(ids[:count]), False) for count in range(0, len(ids), size)]
    deltas.append(growth.grow(reply_of(ids), True))
    assert "".join(delta.text for delta in deltas) == "echo " + said
    assert not any("\ufffd" in piece for delta in deltas for piece in delta.pieces)
    offsets = [delta.offset for delta in deltas]
    assert offsets == [sum(len(delta.text) for delta in deltas[:number]) for number in range(len(deltas))]
    counts = [max(1, len(delta.reply.token_ids) - delta.first) if in_pieces or stops else 1 for delta in deltas]
    assert [len(delta.pieces) for delta in deltas] == counts


def test_what_may_begin_a_stop_string_is_kept_back_and_nothing_comes_behind_one(tokenizer):
    ids = tokenizer("ab<stop>cd")["input_ids"]
    growth = Growth(Stopper(tokenizer, Stops(("<stop>",))), REQUEST, "")
    assert [growth.grow(reply_of(ids[: count + 1]), False).text for count in range(7)] == ["a", "b", *[""] * 5]
    assert growth.grow(reply_of(ids[:8], "stop"), True).text == ""


def test_tokens_alone_have_their_bytes(tokenizer):
    tokens = TokenTexts(tokenizer)
    ids = tokenizer("é ")["input_ids"]
    assert [tokens.bytes_of(token) for token in ids] == [b"\xc3", b"\xa9", b" "]
    assert [tokens.text_of(token) for token in (*ids, 256, 300)] == ["bytes:\\xc3", "bytes:\\xa9", " ", "<end>", "w300"]


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded():
    with session.bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(BadInput, match="--port .* cannot be listened on"):
            session.bind("127.0.0.1", taken.getsockname()[1])
