"""Decodes prompts in rows that are refilled as they end, and says how long it took.

No prompt takes from a row what another has read there: a method's time would depend on what was asked before.
"""

import time
from collections.abc import Sequence

from infer.evaluate.figures import Spent
from redrafter_jax.decode import loop
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.reply import Reply


def warm(engine: Engine, rows: int, requests: Sequence[Request]) -> None:
    """Compiles what `decode` of such requests needs, and runs each program."""
    scheduler = engine.scheduler(rows, requests, reuses=False)
    scheduler.prepare()
    scheduler.submit(max(requests, key=lambda request: len(request.prompt)))
    scheduler.step(1)


def decode(engine: Engine, rows: int, requests: Sequence[Request]) -> tuple[list[Reply], Spent]:
    """The replies, in their order. What there is to compile should be compiled."""
    scheduler = engine.scheduler(rows, requests, reuses=False)
    scheduler.prepare()
    began, in_rounds, replies = time.perf_counter(), 0.0, {}
    tickets = [scheduler.submit(request) for request in requests]
    while len(replies) < len(tickets):
        before = scheduler.offered
        replies |= {event.ticket: event.reply for event in scheduler.step(loop.ALL_ROUNDS) if event.done}
        in_rounds += scheduler.round_seconds * (scheduler.offered - before) / scheduler.rows
    spent = Spent(time.perf_counter() - began, in_rounds, scheduler.offered // scheduler.rows)
    return [replies[ticket] for ticket in tickets], spent
