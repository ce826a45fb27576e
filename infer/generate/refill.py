"""Questions -> replies, in a running batch whose rows are refilled as they end. Each question comes behind the reply before it."""

import collections
from collections.abc import Callable, Iterator, Sequence

from infer.stopping import StopScheduler
from infer.turns import Turns
from redrafter_jax.decode import loop
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.reply import Reply


def decode(
    rows: StopScheduler, turns: Turns, left: Sequence[int], request_of: Callable[[int], Request]
) -> Iterator[tuple[int, Reply | None]]:
    """The replies with these numbers, as they become complete; None where the question cannot be asked any more. Before the next
    one is taken, the caller has to `Turns.answer` with it."""
    behind = {number for number in left if turns.all[number].question} & {number + 1 for number in left}
    ready, asked = collections.deque(number for number in left if number not in behind), {}
    while ready or asked:
        while ready:
            number = ready.popleft()
            if turns[number]:
                asked[rows.submit(request_of(number))] = number
                continue
            yield number, None
            ready.extend({number + 1} & behind)
        for event in rows.step(loop.ALL_ROUNDS) if asked else ():
            if event.done:
                number = asked.pop(event.ticket)
                yield number, event.reply
                ready.extend({number + 1} & behind)
