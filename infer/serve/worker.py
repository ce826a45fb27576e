"""The one thread that owns engine and scheduler: requests come in from any thread, replies go out to whoever asked.

    worker = Worker(scheduler, look_seconds=0.05, queue=64, meters=meters)
    worker.start()
    worker.submit([Job(request, watched, streams, tell)])  # tell is called in the worker's thread
    worker.stop()

It sleeps while nothing is to be done. Between two looks at the batch it decodes for about ``look_seconds``: what comes in
meanwhile waits for so long. Not here: text (`growth.py`), asyncio (`exchange.py`), HTTP.
"""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence

from infer.serve.meters import Meters
from infer.serve.refusal import Refusal
from infer.stopping import Watched
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.decode.seat import Event

LOG = logging.getLogger(__name__)
MAX_RETRY_SECONDS = 60
Tell = Callable[[Reply | None, bool, Refusal | None], None]
"""The reply so far, whether nothing comes behind it, and why there is none."""


@dataclasses.dataclass(eq=False)
class Job:
    """A request and who is told of its reply: at every look where it ``streams``, else at its end. watched: looks for stop strings,
    None where there are none. began, looked: seconds of `time.perf_counter` at which it came, and at which it last grew;
    count, seen: tokens so far, and the reply that was last fetched."""

    request: Request
    watched: Watched | None
    streams: bool
    tell: Tell
    began: float = dataclasses.field(default_factory=time.perf_counter)
    looked: float = 0.0
    count: int = 0
    seen: Reply | None = None
    ticket: int | None = None


class Worker:
    """queue: requests that may wait for a row; on_end: called once, in the worker's thread, where it cannot go on.

    A step that fails ends the requests that there are with an error. The next ones start from an empty batch; where that cannot be
    made any more, or fails as well before any reply is complete, the worker ends.
    """

    def __init__(self, scheduler: Scheduler, look_seconds: float, queue: int, meters: Meters):
        self.on_end: Callable[[], None] = lambda: None
        self._scheduler, self._look_seconds, self._meters = scheduler, look_seconds, meters
        self._most = scheduler.rows + queue
        self._wake = threading.Condition()
        self._jobs: set[Job] = set()
        self._new: list[Job] = []
        self._gone: list[Job] = []
        self._by_ticket: dict[int, Job] = {}
        self._is_stopping, self._has_failed, self._has_ended, self._has_paused = False, False, False, False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    @property
    def is_well(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._has_ended

    def start(self) -> None:
        """Takes requests from now on. The scheduler's programs have to be compiled."""
        self._thread.start()

    def stop(self) -> None:
        """Ends every request with an error, and the thread, and waits for it."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """All of them, or none.

        Raises:
          Refusal: there are too many, or the worker has ended.
        """
        with self._wake:
            self.check_room(len(jobs))
            self._jobs.update(jobs)
            self._new += jobs
            self._wake.notify()

    def check_room(self, count: int) -> None:
        """Raises Refusal where so many more requests are too many, or the worker has ended."""
        with self._wake:
            if self._is_stopping or self._has_ended:
                raise Refusal(503, "the server is going down", code="unavailable")
            if len(self._jobs) + count > self._most:
                wait = min(MAX_RETRY_SECONDS, math.ceil(self._meters.usual_seconds))
                waiting = max(0, len(self._jobs) - self._scheduler.rows)
                message = f"all rows are busy and {waiting} requests wait; try again later"
                raise Refusal(429, message, code="rate_limit_exceeded", retry_after=max(1, wait))

    def cancel(self, jobs: Collection[Job]) -> None:
        """Nobody waits for these any more: their rows are free at the next look, and nobody is told."""
        with self._wake:
            gone = self._jobs.intersection(jobs)
            self._jobs -= gone
            self._gone += gone
            if gone:
                self._wake.notify()

    def _run(self) -> None:
        while not self._has_ended:
            new, gone = self._take()
            if self._is_stopping:
                self._end(Refusal(503, "the server was stopped", code="unavailable"))
                return
            try:
                self._step(new, gone)
            except Exception as error:  # whatever XLA raises: it must end requests, not hang them
                self._fail(error)

    def _take(self) -> tuple[list[Job], list[Job]]:
        """What came in; sleeps while there is nothing to do, for as long as the scheduler can do without a step."""

        def has_work() -> bool:
            return bool(self._new or self._gone or self._by_ticket or self._is_stopping)

        with self._wake:
            self._wake.wait_for(has_work, self._scheduler.idle_seconds)
            taken, self._new, self._gone = (self._new, self._gone), [], []
            return taken

    def _step(self, new: Sequence[Job], gone: Sequence[Job]) -> None:
        for job in new:
            job.ticket = self._scheduler.submit(job.request, follows=job.streams or job.watched is not None)
            self._by_ticket[job.ticket] = job
        for job in gone:
            if self._by_ticket.pop(job.ticket, None) is not None:  # else it was complete before its client went away
                self._scheduler.cancel(job.ticket)
                self._meters.cancelled()
        is_watched = any(job.watched is not None for job in self._by_ticket.values())
        events = self._scheduler.step(self._rounds(), self._watch if is_watched else None, self._look_seconds)
        now, used = time.perf_counter(), 0
        for event in events:
            job = self._by_ticket[event.ticket]
            has_grown = event.count > job.count
            reply = event.reply if job.watched is None else job.watched.cut(event.reply, event.done)
            self._meters.grew(job, event, now)
            used += len(job.request.prompt) + event.count
            if event.done:
                self._has_failed = False
                self._forget(job)
                self._meters.ended(job, reply, now)
            if event.done or (job.streams and has_grown):
                job.tell(reply, event.done, None)
        self._meters.looked(self._scheduler, used)

    def _rounds(self) -> int:
        """Those of about a look's time. No round where a prompt will be read, whose first token is not kept back; one where that
        was so at the last step too, since other rows wait meanwhile. Between the chunks of a long one those that run get a look's
        time too."""
        scheduler = self._scheduler
        if scheduler.waiting and scheduler.running < scheduler.rows and not scheduler.is_reading:
            self._has_paused = not self._has_paused
            return int(not self._has_paused)
        self._has_paused = False
        return max(1, int(self._look_seconds / scheduler.round_seconds)) if scheduler.round_seconds else 1

    def _watch(self, events: Sequence[Event]) -> list[int]:
        """The tickets whose text has a stop string."""
        watched = [(event, self._by_ticket[event.ticket].watched) for event in events]
        return [event.ticket for event, text in watched if text is not None and text.has_stopped(event.reply)]

    def _forget(self, job: Job) -> None:
        del self._by_ticket[job.ticket]
        with self._wake:
            self._jobs.discard(job)

    def _fail(self, error: Exception) -> None:
        LOG.error("a step failed: %s: %s", type(error).__name__, " ".join(str(error).split())[:500])
        self._tell_all(Refusal(500, "the device failed while this request was decoded", code="device_failure"))
        try:
            if self._has_failed:
                raise error
            self._has_failed = True
            self._scheduler.reset()
        except Exception:
            LOG.error("the batch cannot be started again; the server ends")
            self._end(Refusal(503, "the device has failed", code="device_failure"))
            self.on_end()

    def _end(self, why: Refusal) -> None:
        with self._wake:
            self._has_ended = True
        self._tell_all(why)

    def _tell_all(self, why: Refusal) -> None:
        with self._wake:
            jobs, self._jobs, self._new, self._gone = list(self._jobs), set(), [], []
        self._by_ticket.clear()
        for job in jobs:
            job.tell(None, True, why)
        self._meters.failed(len(jobs))
