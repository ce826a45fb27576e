"""Busy rows move down to the first rows of their device, whatever the mesh, and no text changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.ladder import Places, ladder
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from tests import small


@pytest.mark.parametrize(
    ("rows", "shards", "sizes"),
    [(1, 1, (1,)), (3, 1, (1, 3)), (16, 1, (1, 4, 16)), (24, 1, (1, 4, 16, 24)), (16, 4, (4, 16)), (4, 4, (4,))],
)
def test_the_sizes_of_programs(rows, shards, sizes):
    assert ladder(rows, shards) == sizes


@settings(deadline=None)
@given(st.sampled_from([1, 2, 4]), st.sets(st.integers(0, 15), min_size=1))
def test_rows_move_no_more_than_they_must_to_where_the_smallest_program_that_fits_has_them(shards, busy):
    places = Places(16, shards, ladder(16, shards))
    size, moves = places.arrange(busy)
    after = (busy - {source for source, _ in moves}) | {goal for _, goal in moves}
    most = max(sum(row // (16 // shards) == shard for row in busy) for shard in range(shards))
    assert len(after) == len(busy) and after <= set(places.order[:size])
    assert size == min(each for each in ladder(16, shards) if each >= most * shards)
    assert all(source // (16 // shards) == goal // (16 // shards) and goal not in busy for source, goal in moves)
    assert len(moves) == len(busy - set(places.order[:size])) and sorted(places.order) == list(range(16))


def test_on_a_mesh_few_rows_are_decoded_as_on_one_device():
    prompts, limits = [[number + 1, 7] for number in range(9)], [Limits(3 + 5 * (number % 4)) for number in range(9)]
    plain = [reply.token_ids for reply in Engine(small.models()[0]).generate(prompts, Sampling(1.0), limits, batch=9)]
    target, head = small.models((2, 2))
    engine = Engine(target, Recurrent(head, Shape(1, 2)))
    requests = engine.requests(prompts, Sampling(1.0), limits, None)
    scheduler = engine.scheduler(6, requests, adapts=True)
    found, asked, sizes = {}, [scheduler.submit(request) for request in requests], set()
    while len(found) < len(asked):
        found |= {event.ticket: event.reply.token_ids for event in scheduler.step(3) if event.done}
        sizes.add(scheduler._arrange() if scheduler.running else 0)
    assert [found[ticket] for ticket in asked] == plain and sizes >= {2, 6}
