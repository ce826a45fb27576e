"""An order between asyncio and the worker's thread: its jobs go there, what becomes of them comes back.

    exchange = Exchange(worker, stopper, order, seconds=600)
    async for index, delta in exchange.deltas():
        ...
    exchange.close()

Nothing piles up where a client reads slowly: of each reply only the newest state is kept.
"""

import asyncio
import contextlib
import functools
import math
from collections.abc import AsyncIterator

from infer import failures
from infer.serve.growth import Delta, Growth
from infer.serve.orders import Order
from infer.serve.refusal import Refusal
from infer.serve.worker import Job, Worker
from infer.stopping import Stopper, Watched
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.reply import Reply


class Exchange:
    """Submits the jobs of an order, in a coroutine. seconds: after which its replies are given up, if not before.

    Raises:
      Refusal: as `Worker.submit`.
    """

    def __init__(self, worker: Worker, stopper: Stopper, order: Order, seconds: float):
        self._worker, self._loop, self._ready = worker, asyncio.get_running_loop(), asyncio.Event()
        self._limit, self._is_late = min((seconds, "--max-seconds"), (order.seconds or math.inf, "max_seconds")), False
        self._latest: dict[int, tuple[Reply | None, bool, Refusal | None]] = {}
        how = order.silent, order.logprobs is not None or order.drafts
        self._growths = [Growth(stopper, *each, *how) for each in zip(order.requests, order.echoes, strict=True)]
        self._jobs = [
            Job(request, _watched(stopper, request), order.streams, functools.partial(self._tell, index))
            for index, request in enumerate(order.requests)
        ]
        worker.submit(self._jobs)
        self._deadline = self._loop.call_later(self._limit[0], self._give_up)

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """What is new, with the number of its choice, until all replies are complete.

        Raises:
          Refusal: a reply cannot be given.
        """
        left = len(self._jobs)
        while left:
            await self._ready.wait()
            if self._is_late:
                raise Refusal(504, f"this took longer than the {self._limit[0]:g} s of {self._limit[1]}", code="timeout")
            self._ready.clear()
            latest, self._latest = self._latest, {}
            for index, (reply, done, why) in latest.items():
                if why is not None:
                    raise why
                if reply.finish_reason == "error":
                    raise Refusal(500, failures.sentence(1, 1, "the weights of the model"), code="not_finite")
                left -= done
                yield index, self._growths[index].grow(reply, done)

    def close(self) -> None:
        """Ends what still runs."""
        self._deadline.cancel()
        self._worker.cancel(self._jobs)

    def _give_up(self) -> None:
        self._is_late = True
        self._ready.set()

    def _tell(self, index: int, reply: Reply | None, done: bool, why: Refusal | None) -> None:
        """In the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._note, index, (reply, done, why))

    def _note(self, index: int, latest: tuple) -> None:
        self._latest[index] = latest
        self._ready.set()


def _watched(stopper: Stopper, request: Request) -> Watched | None:
    if not stopper.stops.strings:
        return None
    return Watched(stopper.text(list(request.prompt), request.limits.min_new))
