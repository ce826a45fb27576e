"""Several processes that decode together do the same, whatever the clock and the texts of the first one say."""

import dataclasses
import itertools
import queue
import threading

import pytest

from redrafter_jax.decode import led
from redrafter_jax.decode.batch import make_requests
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.led import Led, follow
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.room import room_for
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput

PROMPTS = [[1, 5, 9], [4, 8, 100, 200, 7, 7], [3] * 20, [9, 8], [7] * 11, [2, 300]]
WAYS = [Sampling(), Sampling(1.0), Sampling(0.7, top_k=9), Sampling(1.3, top_p=0.8)]
NEW = 12
SECONDS = 120


class Recorded(Scheduler):
    """Remembers what its steps brought, and what its programs were called with."""

    def __init__(self, *given):
        super().__init__(*given)
        self.seen = []

    def step(self, rounds, watch, seconds):
        events = super().step(rounds, watch, seconds)
        self.seen.append((rounds, self.running, self.waiting, [(e.ticket, e.count, e.done and e.reply.token_ids) for e in events]))
        return events


@pytest.fixture(scope="module")
def engine(mha):
    return Engine(mha[0], Recurrent(mha[1], Shape(2, 2)))


@pytest.fixture(scope="module")
def requests(engine):
    config, ways = engine.target.config, [way for _, way in zip(PROMPTS, itertools.cycle(WAYS), strict=False)]
    return make_requests(PROMPTS, ways, Limits(NEW), None, [], config.vocab_size, config.max_position_embeddings)


@pytest.fixture
def both(engine, requests, monkeypatch):
    """Led, the scheduler under it, the one of a second process, which is a thread that follows, and what ends that."""
    told, first = queue.Queue(), threading.current_thread()

    def broadcast(buffer):
        if threading.current_thread() is first:
            told.put(buffer.copy())
            return buffer
        return told.get(timeout=SECONDS)

    monkeypatch.setattr(processes, "broadcast", broadcast)
    monkeypatch.setattr(led, "BUFFER_BYTES", 64)  # so that messages need several, and end in the middle of one
    room = room_for(requests, engine.runner.context, engine.proposer.round.length)
    own, other = (Recorded(engine.runner, 2, room) for _ in range(2))
    for scheduler in (own, other):
        scheduler.prepare()
    follower = threading.Thread(target=follow, args=(other,), daemon=True)
    leader = Led(own)
    follower.start()

    def finish() -> None:
        leader.close()
        follower.join(SECONDS)
        assert not follower.is_alive()

    yield leader, own, other, finish
    finish()


def test_the_others_do_what_the_first_one_does_and_texts_are_those_of_each_request_alone(both, engine, requests):
    leader, own, other, finish = both
    ways = [request.sampling for request in requests]
    alone = [reply.token_ids for reply in Engine(engine.target).generate(PROMPTS, ways, Limits(NEW), batch=len(PROMPTS))]
    replies, expected = {}, {}

    def step(rounds=3, watch=None, seconds=0.0):
        for event in leader.step(rounds, watch, seconds):
            if event.done:
                replies[event.ticket] = event.reply.token_ids

    for number, request in enumerate(requests):
        expected[leader.submit(request)] = alone[number]
        assert leader.waiting >= 1
        if number % 2:
            step()  # of two that wait, time is left to read one
    cancelled = leader.submit(requests[0])
    leader.cancel(cancelled)
    ended = leader.submit(requests[1])
    while leader.running or leader.waiting:
        step(1, lambda events: [event.ticket for event in events if event.ticket == ended and event.count > 2])
    cut = replies.pop(ended)
    assert replies == expected and 2 < len(cut) < NEW and cut == alone[1][: len(cut)]
    finish()
    assert own.seen == other.seen
    assert len(own.seen) > 8 and {waiting for _, _, waiting, _ in own.seen} > {0}


def test_what_a_request_asks_for_arrives_as_it_was_sent(both, requests):
    way = Sampling(0.1 + 0.2, top_k=3, top_p=0.7, repetition_penalty=1.1, presence_penalty=-0.3, frequency_penalty=1e-3, logprobs=2)
    sent = dataclasses.replace(
        requests[2], sampling=way, limits=Limits(5, 90, 2), stop_ids=(7, 9), seed=2**32 - 1, sample=3, scores_prompt=True
    )
    assert led._request(led._plain(sent)) == dataclasses.replace(sent, prompt=list(sent.prompt))
    with pytest.raises(BadInput, match="max_new_tokens should be at most"):
        both[0].submit(dataclasses.replace(sent, limits=Limits(1000)))


def test_after_a_step_that_failed_there_is_no_other(both, requests, monkeypatch):
    leader, own, _, _ = both
    leader.submit(requests[0])

    def fail(*_):
        raise RuntimeError("a process was lost")

    leader.step(0)
    monkeypatch.setattr(own, "step", fail)
    with pytest.raises(RuntimeError, match="was lost"):
        leader.step(1)
    assert "was lost" in str(leader.failure)
    with pytest.raises(RuntimeError, match="cannot be started again"):
        leader.reset()
    leader.failure = None  # so that the thread ends
