"""A request's text is what it is alone, whatever runs beside it, whenever it came, whichever row it got, and in whichever ways it
was drafted."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redrafter_jax.decode import prefill, programs
from redrafter_jax.decode.batch import make_requests
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.picker import Pick, Picker
from redrafter_jax.decode.policy import needs_of
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Recurrent, Shape
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.decode.reader import Reader
from redrafter_jax.decode.room import Room, room_for
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.errors import BadInput
from redrafter_jax.slices import program_text
from tests import support
from tests.support import compilations

ROWS, NEW = 3, 24
SHAPES = [Shape(1, 2), AUTOREGRESSIVE]
WAYS = [Sampling(), Sampling(1.0), Sampling(0.7, rule="independent"), Sampling(1.3, top_k=7), Sampling(1.0, top_p=0.8)]
PROMPTS = [[1, 5, 9], [4, 8, 100, 200, 7, 7], [3] * 20, [9, 8], [7] * 11, [2, 300], [1, 5, 9, 11], [40] * 31]
LIMITS = [Limits(9), Limits(24), Limits(1), Limits(17), Limits(24), Limits(3), Limits(24), Limits(12)]


def requests_of(engine, prompts=PROMPTS, limits=LIMITS):
    samplings = [WAYS[number % len(WAYS)] for number in range(len(prompts))]
    config = engine.target.config
    return make_requests(prompts, samplings, limits, None, [], config.vocab_size, config.max_position_embeddings)


@pytest.fixture(scope="module")
def engine(mha):
    return Engine(mha[0], Union(Recurrent(support.with_features(mha[1]), Shape(2, 3)), Lookup(3, 1, 4, 2)), shapes=SHAPES)


@pytest.fixture(scope="module")
def requests(engine):
    return requests_of(engine)


@pytest.fixture(scope="module")
def alone(mha):
    """What plain decoding gives to each request; that it gives it to each alone is a test of `test_rows.py`."""
    ways = [WAYS[number % len(WAYS)] for number in range(len(PROMPTS))]
    return [reply.token_ids for reply in Engine(mha[0]).generate(PROMPTS, ways, LIMITS, batch=len(PROMPTS))]


@pytest.fixture(scope="module")
def scheduler(engine, requests):
    made = Scheduler(engine.runner, ROWS, room_for(requests, engine.runner.context, engine.proposer.round.length), adapts=True)
    made.prepare()
    return made


class Forced(Picker):
    """Takes the ways that it is told, over and over; none of them: as a `Picker` does."""

    def __init__(self, real: Picker, ways: list[int]):
        super().__init__(real.seconds, [each.length for each in real.evidence])
        self.ways = itertools.cycle(ways) if ways else None

    def pick(self, rows: int, busy: int) -> Pick:
        usual = super().pick(rows, busy)
        return usual if self.ways is None else Pick(next(self.ways), 1)


def drain(scheduler, rounds=1000) -> dict[int, list]:
    """The complete replies, by ticket."""
    replies = {}
    while scheduler.running or scheduler.waiting:
        replies |= {event.ticket: event.reply for event in scheduler.step(rounds) if event.done}
    return replies


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(0, 3), st.booleans(), st.integers(1, 4)), max_size=14),
    st.lists(st.integers(0, 2), max_size=5),
)
def test_the_text_of_a_request_depends_neither_on_what_runs_beside_it_nor_on_the_ways_taken(
    scheduler, requests, alone, arrivals, ways
):
    scheduler.picker = Forced(scheduler.picker, ways)
    expected, replies = {}, {}
    for number, pause, is_cancelled, rounds in arrivals:
        ticket = scheduler.submit(requests[number])
        expected[ticket] = alone[number]
        for _ in range(pause):
            replies |= {event.ticket: event.reply for event in scheduler.step(rounds) if event.done}
        if is_cancelled and ticket not in replies:
            scheduler.cancel(ticket)
            del expected[ticket]
    replies |= drain(scheduler)
    assert {ticket: reply.token_ids for ticket, reply in replies.items()} == expected
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_nothing_is_compiled_while_requests_come_and_go(scheduler, requests):
    drain(scheduler)
    scheduler.picker = Forced(scheduler.picker, [0, 1, 2, 2])
    with compilations() as found:
        for request in requests:
            scheduler.submit(request, follows=request.index == 3)
            scheduler.step(2)
        scheduler.cancel(scheduler.submit(requests[1]))
        drain(scheduler)
        scheduler.reset()
    assert not found and min(scheduler.rounds_of.values()) > 5
    assert set(scheduler.rounds_of) == {"2x3 with lookup", "1x2 with lookup", "plain"}


def test_a_row_is_refilled_as_soon_as_it_ends_and_the_busy_rows_are_counted(engine, requests, scheduler):
    drain(scheduler)
    before = scheduler.decoded, scheduler.offered
    for request in requests:
        scheduler.submit(request)
    assert (scheduler.running, scheduler.waiting) == (0, len(requests))
    rounds = 0
    while scheduler.waiting or scheduler.running:
        events = scheduler.step()
        rounds += sum(event.reply.rounds for event in events if event.done)
        assert scheduler.waiting == 0 or len(events) == ROWS and any(event.done for event in events)
    decoded, offered = scheduler.decoded - before[0], scheduler.offered - before[1]
    assert decoded == rounds and decoded <= offered <= ROWS * rounds


def test_prompts_are_read_for_a_bounded_time_and_a_reset_forgets_all_requests(scheduler, requests, alone, monkeypatch):
    drain(scheduler)
    for request in requests[:ROWS]:
        scheduler.submit(request)
    scheduler.step(1, reading_seconds=0.0)
    assert (scheduler.running, scheduler.waiting) == (1, ROWS - 1)  # one is read in any case
    scheduler.step(1, reading_seconds=60.0)
    assert scheduler.running >= ROWS - 1 and scheduler.waiting == 0 and scheduler.round_seconds > 0
    held, place = [], scheduler._runner.on_mesh
    monkeypatch.setattr(scheduler._runner, "on_mesh", lambda *given: held.append(scheduler._state) or place(*given))
    scheduler.reset()
    assert held == [None]  # there is room for one cache: the old one is gone before another is made
    assert (scheduler.running, scheduler.waiting) == (0, 0) and scheduler.step() == []
    ticket = scheduler.submit(requests[4])
    assert {key: reply.token_ids for key, reply in drain(scheduler).items()} == {ticket: alone[4]}


def test_a_watch_ends_rows_and_what_is_cancelled_is_never_heard_of_again(scheduler, requests, alone):
    drain(scheduler)
    long = [requests[number] for number in (1, 4, 6)]
    tickets = [scheduler.submit(request, follows=request is long[0]) for request in long]
    events = scheduler.step(2, watch=lambda events: [event.ticket for event in events if event.ticket == tickets[1]])
    followed, _, unseen = events
    assert followed.reply.token_ids == alone[1][: followed.count] and unseen.reply is None and 0 < unseen.count < 24
    ended = {event.ticket: event.reply for event in events if event.done}
    assert set(ended) == {tickets[1]} and ended[tickets[1]].finish_reason == "ended"
    text = ended[tickets[1]].token_ids
    assert 0 < len(text) < 24 and text == alone[4][: len(text)]
    scheduler.cancel(tickets[0])
    replies = drain(scheduler)
    assert set(replies) == {tickets[2]} and replies[tickets[2]].token_ids == alone[6]


@pytest.mark.parametrize("kind", ["recurrent", "small model", "plain"])
def test_generate_refills_rows_and_gives_the_replies_in_order(mha, requests, alone, kind):
    proposer = {
        "recurrent": Recurrent(mha[1], Shape(4, 3)),
        "small model": SmallModel(support.small_model(), Shape(1, 3)),
        "plain": None,
    }
    engine = Engine(mha[0], proposer[kind])
    given = ([request.sampling for request in requests], LIMITS)
    replies = list(engine.generate(PROMPTS, *given, batch=2))
    assert [reply.token_ids for reply in replies] == alone
    assert [reply.index for reply in replies] == list(range(len(PROMPTS)))
    assert all(0 < reply.first_token_seconds < reply.seconds for reply in replies if reply.rounds)


def test_rows_that_penalise_or_wait_and_log_probabilities_move_with_their_row(mha):
    ways = [Sampling(1.0, repetition_penalty=1.3), Sampling(), Sampling(0.8, presence_penalty=1.0, logprobs=2), Sampling(1.2)]
    limits = [Limits(9), Limits(12, min_new=6), Limits(5), Limits(12, min_new=3)]
    engine, prompts = Engine(mha[0], Recurrent(mha[1], Shape(2, 2)), stop_ids=list(range(200))), PROMPTS[:4]
    refilled, one_batch = (list(engine.generate(prompts, ways, limits, batch=rows)) for rows in (2, 4))
    for one, other in zip(refilled, one_batch, strict=True):
        assert (one.token_ids, one.finish_reason, one.stop_reason) == (other.token_ids, other.finish_reason, other.stop_reason)
        assert (one.accepted_histogram, one.scored, one.drafted) == (other.accepted_histogram, other.scored, other.drafted)
    np.testing.assert_allclose(refilled[2].logprobs, one_batch[2].logprobs, atol=1e-5)
    assert len(refilled[1].token_ids) >= 6


def test_a_row_is_inserted_in_place_and_no_other_row_is_touched(engine, requests):
    room = Room(prefill.Bucket(32, 1000, 4), needs_of([Sampling(1.0)]), 4)
    runner = engine.runner
    compiled = runner.refilled(ROWS, room, 3, (1,))
    state = runner.on_mesh(compiled.empty)
    assert np.asarray(state.done).all() and not np.asarray(state.count).any()
    cache = sum(buffer.nbytes for buffer in state.cache.keys + state.cache.values)
    analysis = compiled.insert.memory_analysis()
    assert analysis.alias_size_in_bytes >= cache and analysis.temp_size_in_bytes < cache / ROWS
    greedy = dataclasses.replace(requests[2], sampling=Sampling(), limits=Limits(5))
    reader = Reader(runner, compiled, room, greedy, state, 0, 0)
    reader.read()
    assert reader.is_complete
    few = reader.begin()
    before, expected = jax.device_get(_words(state)), jax.device_get(_words(few))
    after = jax.device_get(_words(runner.on_mesh(compiled.insert, state, np.int32(1), few)))
    for old, new, one in zip(*map(jax.tree.leaves, (before, after, expected)), strict=True):
        np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])
        np.testing.assert_array_equal(new[1], one[0])


def test_rows_change_places_in_place_and_programs_of_a_few_rows_copy_no_other_row(engine, requests):
    runner, room = engine.runner, Room(prefill.Bucket(32, 1000, 4), needs_of([Sampling(1.0)]), 4)
    compiled = runner.refilled(ROWS, room, 3, (1,))
    assert (compiled.rows, compiled.ways) == ((1,), 3)
    state = runner.on_mesh(compiled.empty)
    for row, number in ((2, 1), (0, 0)):
        reader = Reader(runner, compiled, room, dataclasses.replace(requests[number], sampling=Sampling()), state, 0, 0)
        reader.read()
        state = runner.on_mesh(compiled.insert, state, np.int32(row), reader.begin())
    state = runner.end(state, [0])
    before = jax.device_get(_words(state))
    state = runner.on_mesh(compiled.swap, state, np.int32(2), np.int32(0))
    after = jax.device_get(_words(state))
    assert np.asarray(state.done).tolist() == [False, True, True] and before.done.tolist() == [True, True, False]
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        np.testing.assert_array_equal(new, old[[2, 1, 0]])
    buffer = state.cache.keys[0]
    for way in range(3):
        text = program_text.parse(compiled.runs[1, way].as_text())
        assert not text.copies_in_loops(buffer.size // ROWS)
        analysis = compiled.runs[1, way].memory_analysis()
        assert analysis.alias_size_in_bytes >= sum(each.nbytes for each in state.cache.keys + state.cache.values)
        assert f"{buffer.shape[0]},{','.join(map(str, buffer.shape[1:]))}]{{3,2,1,0}} copy(" not in compiled.runs[1, way].as_text()


def _words(state):
    """With keys as numbers, which can be compared on the host."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": [1] * 33}, "a prompt should have at most 32 tokens, not 33"),
        ({"limits": Limits(65)}, "max_new_tokens should be at most 64, not 65"),
        ({"stop_ids": tuple(range(5))}, "stop_ids should be at most 4, not 5"),
        ({"sampling": Sampling(repetition_penalty=1.5)}, "this way to sample was not prepared"),
        ({"limits": Limits(9, min_new=2)}, "this way to sample was not prepared"),
    ],
)
def test_a_request_that_asks_for_more_than_there_is_room_for_is_refused(scheduler, requests, change, message):
    with pytest.raises(BadInput, match=message):
        scheduler.submit(dataclasses.replace(requests[0], **change))
    assert scheduler.waiting == 0


def test_programs_that_refill_take_plain_arrays(engine):
    compiled = engine.runner.refilled(ROWS, _room(engine), 3, (1, ROWS))
    assert isinstance(compiled, programs.Refilled) and "Target" not in str(compiled.runs[ROWS, 0].in_tree)


def _room(engine) -> Room:
    return room_for(requests_of(engine), engine.runner.context, engine.proposer.round.length)


@pytest.mark.parametrize("kind", ["small model", "rejection", "too deep"])
def test_what_cannot_take_turns_keeps_its_own_way(mha, kind):
    """A small model would miss what other ways decode, and drafts that are drawn decide the text."""
    proposer = SmallModel(support.small_model(), Shape(1, 2)) if kind == "small model" else Recurrent(mha[1], Shape(1, 2))
    engine = Engine(mha[0], proposer, shapes=[Shape(1, 4)] if kind == "too deep" else SHAPES)
    sampling = Sampling(1.0, rule="rejection" if kind == "rejection" else "coupled")
    request = make_requests([[1, 5]], sampling, Limits(5), None, [], 503, 99)
    room = room_for(request, 99, 2)
    made = Scheduler(engine.runner, 1, room, adapts=True)
    made.submit(request[0])
    made.step()
    assert list(made.rounds_of) == ["2 deep, 3 nodes" if kind == "small model" else "1x2"]
    assert made._programs.ways == 1 and made.picker is None
