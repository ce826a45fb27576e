"""A prompt that begins like one that a row has read takes that part from there: with the same bits, so with the same text."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redrafter_jax.decode import prefill
from redrafter_jax.decode.batch import make_requests
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.picker import Pick
from redrafter_jax.decode.policy import needs_of
from redrafter_jax.decode.prefix_cache import PrefixCache, exact_length
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Recurrent, Shape
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.decode.propose.union import Union
from redrafter_jax.decode.room import Room
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.decode.seat import Seat
from redrafter_jax.model.rope import Rope
from redrafter_jax.model.target import Target
from tests import small, support
from tests.support import compilations

ROWS, CHUNK, NEW = 3, 8, 20
BASE = np.random.default_rng(7).integers(1, 503, 60).tolist()
PROMPTS = [BASE[:30], BASE[:17] + [5, 6], BASE[:16], BASE[:33] + [9] * 20, [7] * 11, BASE[:8] + [1], BASE[:25], BASE[:24]]
PROMPTS += [BASE[:23] + [499, *BASE[24:40]]]  # the last token of a chunk is another
TURN, TURNS = [11, 12, 13], (0, 2, 7)  # what comes behind a reply, and to which prompts
WAYS = [Sampling(), Sampling(1.0), Sampling(0.7, rule="independent"), Sampling(1.3, top_k=7)]


def room_of(proposer, new=2 * NEW) -> Room:
    bucket = prefill.Bucket(64, new, proposer.round.length, chunk=CHUNK)
    return Room(bucket, needs_of([Sampling(1.0, top_k=7)]), 4, (4,))


def requests_of(engine, prompts, new=NEW, ways=WAYS):
    samplings = [ways[number % len(ways)] for number in range(len(prompts))]
    return make_requests(prompts, samplings, Limits(new), None, [], engine.target.config.vocab_size, 512)


@pytest.fixture(scope="module")
def engine(mha):
    return Engine(mha[0], Union(SmallModel(support.small_model(), Shape(1, 3)), Lookup(3, 1, 4, 2)))


@pytest.fixture(scope="module")
def requests(engine):
    return requests_of(engine, PROMPTS)


@pytest.fixture(scope="module")
def alone(mha):
    ways = [WAYS[number % len(WAYS)] for number in range(len(PROMPTS))]
    return [reply.token_ids for reply in Engine(mha[0]).generate(PROMPTS, ways, Limits(NEW), batch=len(PROMPTS))]


@pytest.fixture(scope="module")
def scheduler(engine):
    made = Scheduler(engine.runner, ROWS, room_of(engine.proposer))
    made.prepare()
    return made


@pytest.fixture(scope="module")
def adapting(mha):
    """A head that reads inner layers, and plain decoding, in turn, over a state of two rows."""
    engine = Engine(mha[0], Recurrent(support.with_features(mha[1]), Shape(2, 3)), shapes=(AUTOREGRESSIVE,))
    made = Scheduler(engine.runner, 2, room_of(engine.proposer), adapts=True)
    made.prepare()
    return engine, made


@pytest.fixture
def fresh(scheduler):
    """The scheduler, of which no row has anything."""
    scheduler.reset()
    return scheduler


def drain(scheduler) -> dict[int, list]:
    replies = {}
    while scheduler.running or scheduler.waiting:
        replies |= {event.ticket: event.reply for event in scheduler.step(3) if event.done}
    return replies


@pytest.fixture(scope="module")
def known(mha, engine, requests, alone):
    """Requests and their texts: of every prompt, and of the next turns behind the replies to three of them."""
    later = [[*PROMPTS[number], *alone[number], *TURN] for number in TURNS]
    ways = [WAYS[number] for number in range(len(later))]
    texts = [reply.token_ids for reply in Engine(mha[0]).generate(later, ways, Limits(NEW), batch=len(later))]
    return [*zip(requests, alone, strict=True), *zip(requests_of(engine, later), texts, strict=True)]


@pytest.mark.parametrize("adapts", [False, True])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(PROMPTS) + len(TURNS) - 1), st.integers(0, 4), st.booleans(), st.integers(1, 4), st.booleans()
        ),
        max_size=14,
    )
)
def test_the_text_does_not_depend_on_what_rows_have_read_before(adapting, scheduler, known, adapts, arrivals):
    """Requests come, end and are cancelled, also while prompts are read; what rows have stays from one example to the next."""
    scheduler = adapting[1] if adapts else scheduler
    expected, replies = {}, {}
    for number, pause, is_cancelled, rounds, is_hurried in arrivals:
        request, text = known[number]
        ticket = scheduler.submit(request)
        expected[ticket] = text
        for _ in range(pause):
            events = scheduler.step(rounds, reading_seconds=0.0 if is_hurried else 60.0)
            replies |= {event.ticket: event.reply for event in events if event.done}
        if is_cancelled and ticket not in replies:
            scheduler.cancel(ticket)
            del expected[ticket]
    replies |= drain(scheduler)
    assert {ticket: reply.token_ids for ticket, reply in replies.items()} == expected


def test_a_next_turn_takes_its_conversation_and_others_a_system_prompt_and_nothing_is_compiled(fresh, engine, requests, alone):
    turn = [*PROMPTS[0], *alone[0], *TURN]
    (later,) = requests_of(engine, [turn], 5)
    first = fresh.submit(requests[0])
    assert drain(fresh)[first].cached_tokens == 0
    with compilations() as found:
        tickets = [fresh.submit(each) for each in (later, requests[3], requests[6], requests[4])]
        replies = drain(fresh)
    assert [replies[ticket].cached_tokens for ticket in tickets] == [24, 24, 24, 0]
    assert not found
    without = Scheduler(engine.runner, ROWS, fresh.room, reuses=False)
    for request, ticket in zip((later, requests[3], requests[6]), tickets, strict=False):
        again = without.submit(request)
        reply = drain(without)[again]
        assert reply.cached_tokens == 0 and reply.token_ids == replies[ticket].token_ids


@pytest.mark.parametrize("way", [0, 1])
def test_one_that_adapts_takes_the_reply_as_well_and_gives_the_text_of_one_that_reads_it(adapting, way, alone, monkeypatch):
    engine, scheduler = adapting
    scheduler.reset()
    monkeypatch.setattr(scheduler.picker, "pick", lambda rows, busy: Pick(way, 100))
    asked = requests_of(engine, PROMPTS)
    tickets = [scheduler.submit(asked[0]), scheduler.submit(asked[4])]
    replies = drain(scheduler)
    assert [replies[ticket].token_ids for ticket in tickets] == [alone[0], alone[4]]
    seat = Seat(0, asked[0], False, 0.0)
    assert seat.in_cache(replies[tickets[0]]) == [*PROMPTS[0], *alone[0][:-1]]  # the newest token has no keys yet
    assert not seat.in_cache(dataclasses.replace(replies[tickets[0]], finish_reason="error"))
    scores = dataclasses.replace(seat, request=dataclasses.replace(asked[0], scores_prompt=True))
    assert not scores.in_cache(replies[tickets[0]])  # another program has read its prompt
    later = requests_of(engine, [[*PROMPTS[0], *alone[0], *TURN], [*PROMPTS[0], *alone[0][:12], *TURN]])
    found = []
    for request in later:
        ticket = scheduler.submit(request)
        found.append(drain(scheduler)[ticket])
    assert [reply.cached_tokens for reply in found] == [40, 40]
    without = Scheduler(engine.runner, 2, scheduler.room, reuses=False)
    for request, reply in zip(later, found, strict=True):
        ticket = without.submit(request)
        assert drain(without)[ticket].token_ids == reply.token_ids


def test_of_a_request_that_ends_otherwise_nothing_wrong_is_taken(adapting, alone):
    """Cancelled: its prompt alone. Ended by the caller: what its reply has."""
    engine, scheduler = adapting
    scheduler.reset()
    (request,) = requests_of(engine, [PROMPTS[0]])
    ticket = scheduler.submit(request)
    scheduler.step(1)
    scheduler.cancel(ticket)
    whole = [*PROMPTS[0], *alone[0], *TURN]
    assert scheduler._kept.find(whole)[1] == 24
    ticket, ended = scheduler.submit(request, follows=True), None
    while ended is None:
        ended = next(
            (
                event.reply
                for event in scheduler.step(1, lambda events: [each.ticket for each in events if each.count > 10])
                if event.done
            ),
            None,
        )
    count = len(ended.token_ids)
    assert 10 < count < NEW and scheduler._kept.find(whole)[1] == 8 * ((30 + count - 1 - 4) // 8)


def row_of(scheduler, request) -> list[np.ndarray]:
    """All that the row of this request has once its prompt is read: keys and values of the target and of the draft model, h, g."""
    ticket, usual = scheduler.submit(request), scheduler.round_seconds
    events = scheduler.step(0)
    assert scheduler.round_seconds == usual  # nothing was run that says otherwise
    (row,) = [row for row, seat in scheduler._seats.items() if seat.ticket == ticket]
    taken = next(event.cached for event in events if event.ticket == ticket)
    state, length = scheduler._state, len(request.prompt)
    caches = [state.cache, *(each for each in jax.tree.leaves(state.memory, is_leaf=is_cache) if is_cache(each))]
    live = [np.asarray(buffer)[row, :, :length] for kv in caches for buffer in kv.keys + kv.values]
    assert np.asarray(state.cache.length)[row] == length and len(caches) == 1 + isinstance(state.memory, tuple) * bool(state.memory)
    return [taken, *live, np.asarray(state.h)[row], np.asarray(state.g)[row]]


def is_cache(leaf) -> bool:
    return isinstance(leaf, prefill.cache.KVCache)


def assert_same_bits(engine, scheduler, before, requests, taken):
    without = Scheduler(engine.runner, scheduler.rows, scheduler.room, reuses=False)
    for request, count in zip(requests, taken, strict=True):
        scheduler.reset()
        for each, rounds in before:
            scheduler.submit(each)
            scheduler.step(rounds)
        without.reset()
        (found, *ours), (nothing, *theirs) = row_of(scheduler, request), row_of(without, request)
        assert (found, nothing) == (count, 0)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_is_taken_has_the_bits_that_reading_makes_from_a_row_that_runs_and_one_that_has_ended(scheduler, engine, requests):
    """The draft model's keys behind a prompt are rewritten by rounds, so they are not taken."""
    which = [requests[number] for number in (0, 1, 2, 3, 6, 7, 8)]
    assert_same_bits(engine, scheduler, [(requests[4], 1), (requests[0], 3)], which, [24, 16, 8, 24, 24, 16, 16])
    assert_same_bits(engine, scheduler, [(requests[7], 100)], which[:2], [16, 16])


def test_windows_and_rows_on_other_devices_take_the_same_bits():
    target, _ = small.models((2, 1))
    config = dataclasses.replace(target.config, windows=(5,))
    shapes = jax.eval_shape(lambda: Target(jax.random.key(0), config))
    engine = Engine(jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(target)))
    requests = requests_of(engine, [[token % small.V for token in prompt] for prompt in (PROMPTS[4], PROMPTS[0], PROMPTS[3])])
    made = Scheduler(engine.runner, 2, room_of(engine.proposer))
    short = dataclasses.replace(requests[1], limits=Limits(1))
    assert_same_bits(engine, made, [(requests[0], 1), (short, 1)], requests[2:], [24])  # of the second row, on the second device


def test_a_long_prompt_is_read_in_chunks_between_which_the_others_run_on(fresh, requests, alone):
    running = fresh.submit(dataclasses.replace(requests[4], limits=Limits(2 * NEW)), follows=True)
    fresh.step(1)
    long = fresh.submit(requests[3])  # 53 tokens, six chunks of eight and one that is filled up
    for rounds in range(2, 8):
        events = fresh.step(rounds % 2, reading_seconds=0.0)  # none: one, since those that run would be stopped again
        assert [(event.ticket, event.reply.rounds) for event in events] == [(running, rounds)]
        assert fresh.is_reading and (fresh.running, fresh.waiting) == (1, 1)
    assert len(fresh.step(1, reading_seconds=0.0)) == 2 and not fresh.is_reading and fresh.waiting == 0
    cancelled = fresh.submit(requests[8])
    fresh.step(1, reading_seconds=0.0)
    assert fresh.is_reading
    fresh.cancel(cancelled)
    assert not fresh.is_reading
    replies = drain(fresh)
    assert {ticket: reply.token_ids[:NEW] for ticket, reply in replies.items()} == {running: alone[4], long: alone[3]}


def test_a_chunk_is_written_in_place_and_a_row_is_taken_without_another_copy(engine):
    compiled = engine.runner.refilled(ROWS, room_of(engine.proposer, new=3000))
    one = engine.runner.on_mesh(compiled.take, engine.runner.on_mesh(compiled.empty), np.int32(1), np.int32(0))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves((one.cache, one.memory)))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(one))
    for program in compiled.reads.values():
        analysis = program.memory_analysis()
        assert analysis.alias_size_in_bytes >= kept and analysis.temp_size_in_bytes < largest
    assert compiled.begin.memory_analysis().alias_size_in_bytes >= kept
    assert compiled.take.memory_analysis().temp_size_in_bytes < largest


KEPT = list(range(100, 140))


def test_full_chunks_are_found_up_to_the_token_before_the_last():
    kept = PrefixCache(8, 3)
    assert kept.find(KEPT) == (0, 0)
    kept.keep(2, KEPT[:27], 5)  # 24 tokens are no part of what rounds write again
    kept.keep(1, KEPT[:26], 5)  # 16 of 26
    assert kept.find(KEPT) == (2, 24) and kept.find(KEPT[:25]) == (2, 24)
    assert kept.find(KEPT[:24]) == (1, 16) and kept.find(KEPT[:17]) == (1, 16) and kept.find(KEPT[:16]) == (1, 8)
    assert kept.find(KEPT[:15] + [0] * 20) == (1, 8) and kept.find(KEPT[:16] + [0] * 20) == (1, 16)
    assert kept.find(KEPT[:7] + [0] * 20) == (0, 0)
    kept.keep(2, [5] * 9, 5)
    assert kept.find(KEPT)[1] == 16
    kept.clear()
    assert kept.find(KEPT) == (0, 0)


def test_a_prompt_goes_where_it_comes_from_if_it_has_all_of_it_else_to_the_least_recently_used():
    kept = PrefixCache(8, 0)
    assert kept.choose([0, 1, 2], 0, 0) == 0
    for row in range(3):
        kept.keep(row, [row] * 16, 5)
    assert kept.choose([0, 1, 2], *kept.find([0] * 30)) == 0  # it goes on where it was
    assert kept.choose([0, 1, 2], *kept.find([0] * 8 + [9] * 9)) == 1  # row 0 has more than that, and was used since
    assert kept.choose([0, 2], *kept.find([1] * 30)) == 2  # row 1 runs
    kept.swap(0, 2)
    assert kept.find([2] * 30) == (0, 16) and kept.find([0] * 30) == (2, 16)
    kept.keep(1, [3] * 5, 5)  # nothing in full chunks
    kept.swap(1, 5)  # the latter was never filled
    assert kept.choose([2, 1, 5], 0, 0) == 1 and kept.choose([2, 5, 1], 0, 0) == 5
    assert kept.choose([1, 2], 7, 8) == 1  # the row that it was taken from was never filled


def test_nothing_is_taken_where_keys_depend_on_the_length_of_the_text(mha):
    config = mha[0].config
    assert exact_length(config) == float("inf")
    for kind in ("dynamic", "longrope"):
        by_length = dataclasses.replace(config, rope=Rope(kind=kind, original_length=30))
        assert exact_length(by_length) == 30
        runner = types.SimpleNamespace(target=types.SimpleNamespace(config=by_length), rows_at_least=1)
        kept = Scheduler(runner, 1, room_of(Lookup()))._kept
        kept.keep(0, KEPT[:20], 11)  # its row may become longer than the original length, and be read again
        assert kept.find(KEPT[:25]) == (0, 0)
        kept.keep(0, KEPT[:20], 10)
        assert kept.find(KEPT[:25])[1] == 8 and kept.find(KEPT[:31]) == (0, 0)
