"""What is counted and timed, under vLLM's names, so that its dashboards and tools read it. Of a tree every drafted node is a draft
token (`redrafter_jax/decode/metrics.py`)."""

import prometheus_client as prometheus

from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.scheduler import Scheduler
from redrafter_jax.decode.seat import Event

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)  # seconds
BETWEEN_TOKENS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
WHOLE_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
SMOOTHING = 0.9  # of the usual time of a request: the share that the last one does not change


class Meters:
    """Of one server. model: its name there; usual_seconds: that a request takes, waiting included; slots: of all rows' caches."""

    def __init__(self, model: str, slots: int):
        self.registry = prometheus.CollectorRegistry()
        self.usual_seconds = 1.0
        self._slots, self._labels = slots, {"model_name": model, "engine": "0"}
        self._running = self._gauge("num_requests_running", "Requests that have a row.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait for a row.")
        self._cache = self._gauge("kv_cache_usage_perc", "Share of the cache's slots that hold tokens, from 0 to 1.")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._queries = self._counter("prefix_cache_queries", "Tokens of prompts that were looked up among those of the rows.")
        self._hits = self._counter("prefix_cache_hits", "Tokens of prompts that were taken from a row, and so not read.")
        self._generated = self._counter("generation_tokens", "Tokens that were generated.")
        self._drafts = self._counter("spec_decode_num_drafts", "Target passes that scored drafts.")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Draft tokens that were scored.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Draft tokens that were accepted.")
        self._by_position = self._make(
            prometheus.Counter, "spec_decode_num_accepted_tokens_per_pos", "The same, by their position.", "position"
        )
        self._finished = self._make(prometheus.Counter, "request_success", "Requests that were finished.", "finished_reason")
        self._errors = self._counter("request_failures", "Requests that ended in an error of the server or of the model.")
        self._gone = self._counter("request_cancellations", "Requests whose client went away, or whose time was over.")
        self._rounds = prometheus.Counter(
            "redrafter:rounds", "Rounds by the way to draft that was taken.", [*self._labels, "way"], registry=self.registry
        )
        self._rounds_seen: dict[str, int] = {}
        self._first = self._histogram("time_to_first_token_seconds", "Until the first token.", FIRST_TOKEN_BUCKETS)
        self._between = self._histogram("inter_token_latency_seconds", "From token to token.", BETWEEN_TOKENS_BUCKETS)
        self._whole = self._histogram("e2e_request_latency_seconds", "Until the last token.", WHOLE_BUCKETS)

    def grew(self, job, event: Event, now: float) -> None:
        """A look found this of a request, behind ``job.count`` tokens. Drafts are counted where there is a reply."""
        new = event.count - job.count
        if not job.looked:
            self._prompt.inc(len(job.request.prompt))
            self._queries.inc(len(job.request.prompt))
            self._hits.inc(event.cached)
            self._first.observe(now - job.began)
        elif new:
            self._between.observe((now - job.looked) / new)
        job.looked, job.count = now, event.count
        self._generated.inc(new)
        if event.reply is not None:
            self._count_drafts(event.reply, job.seen)
            job.seen = event.reply

    def _count_drafts(self, reply: Reply, seen: Reply | None) -> None:
        old = len(seen.token_ids) if seen else 0
        before = seen.accepted_histogram if seen else [0] * len(reply.accepted_histogram)
        times = [now - then for now, then in zip(reply.accepted_histogram, before, strict=True)]
        nodes = [scored - 1 for scored in reply.scored[old:] if scored > 1]
        if not nodes:
            return
        self._drafts.inc(len(nodes))
        self._drafted.inc(sum(nodes))
        self._accepted.inc(sum(accepted * count for accepted, count in enumerate(times)))
        for position in range(len(times) - 1):
            self._by_position.labels(**self._labels, position=str(position)).inc(sum(times[position + 1 :]))

    def ended(self, job, reply: Reply, now: float) -> None:
        """A reply is complete."""
        self._whole.observe(now - job.began)
        self.usual_seconds = SMOOTHING * self.usual_seconds + (1 - SMOOTHING) * (now - job.began)
        if reply.finish_reason == "error":
            self._errors.inc()
        else:
            self._finished.labels(**self._labels, finished_reason=reply.finish_reason).inc()

    def looked(self, scheduler: Scheduler, used: int) -> None:
        """What the batch holds after a step; used: tokens in the rows."""
        self._running.set(scheduler.running)
        self._waiting.set(scheduler.waiting)
        for way, rounds in scheduler.rounds_of.items():
            self._rounds.labels(**self._labels, way=way).inc(rounds - self._rounds_seen.get(way, 0))
            self._rounds_seen[way] = rounds
        self._cache.set(used / self._slots if scheduler.running else 0)

    def cancelled(self) -> None:
        """A client went away, or its request's time was over."""
        self._gone.inc()

    def failed(self, count: int) -> None:
        """So many requests ended in an error, and nothing is left."""
        self._errors.inc(count)
        for gauge in (self._running, self._waiting, self._cache):
            gauge.set(0)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)

    def _gauge(self, name: str, text: str):
        return self._make(prometheus.Gauge, name, text).labels(**self._labels)

    def _counter(self, name: str, text: str):
        return self._make(prometheus.Counter, name, text).labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple):
        return self._make(prometheus.Histogram, name, text, buckets=buckets).labels(**self._labels)

    def _make(self, kind: type, name: str, text: str, *labels: str, **more):
        return kind(f"vllm:{name}", text, [*self._labels, *labels], registry=self.registry, **more)
