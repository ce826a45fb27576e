"""DecodeState -> the replies of a batch so far, on the host."""

import time
from collections.abc import Collection, Sequence

from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.commit import DecodeState
from redrafter_jax.decode.reply import Progress, Reply

TEXTS = ("tokens", "drafted", "scored")  # of a state, which are as long as a row
COUNTS = ("prompt", "count", "rounds", "histogram", "done", "failed")
FETCHED = (*TEXTS, *COUNTS, "logprobs")


class Report:
    """Of the requests of one batch, which begins when this is made. It remembers when each row ended, and which ones the caller
    ended (`end`)."""

    def __init__(self, requests: Sequence[Request]):
        self.requests = requests
        self.began = time.perf_counter()
        self.first_token_seconds = 0.0
        self.finished: dict[int, float] = {}
        self.ended: set[int] = set()

    @staticmethod
    def wanted(state: DecodeState) -> dict:
        """What of the state has to be on the host for `read`."""
        return {name: getattr(state, name) for name in FETCHED}

    def begin_decoding(self) -> None:
        """The prefill is done."""
        self.first_token_seconds = time.perf_counter() - self.began

    def end(self, rows: Collection[int]) -> None:
        """The caller ends these rows, of which those that are done already stay as they are."""
        self.ended |= set(rows) - self.finished.keys()

    def read(self, host: dict) -> Progress:
        """The replies, of `wanted` as host arrays."""
        now = time.perf_counter() - self.began
        done = [bool(host["done"][row]) or row in self.ended for row in range(len(self.requests))]
        for row, is_done in enumerate(done):
            if is_done:
                self.finished.setdefault(row, now)
        return Progress([self._reply(host, row, self.finished.get(row, now)) for row in range(len(done))], done)

    def _reply(self, host: dict, row: int, seconds: float) -> Reply:
        return reply_of(host, row, self.requests[row], seconds, self.first_token_seconds, row in self.ended)


def reply_of(host: dict, row: int, request: Request, seconds: float, first_token_seconds: float, is_ended: bool) -> Reply:
    """The reply in one row of `Report.wanted` as host arrays; is_ended: by the caller."""
    reply = slice(host["prompt"][row], host["prompt"][row] + host["count"][row])
    ids = host["tokens"][row, reply].tolist()
    stop = ids[-1] if ids and ids[-1] in request.stop_ids else None
    reason = "error" if host["failed"][row] else "stop" if stop is not None else "length"
    chosen, top = _logprobs(host["logprobs"], row, reply, request.sampling.logprobs)
    prompt = slice(1, host["prompt"][row])
    of_prompt = _logprobs(host["logprobs"], row, prompt, request.sampling.logprobs) if request.scores_prompt else (None, None)
    return Reply(
        token_ids=ids,
        drafted=host["drafted"][row, reply].tolist(),
        finish_reason="ended" if is_ended else reason,
        rounds=int(host["rounds"][row]),
        accepted_histogram=host["histogram"][row].tolist(),
        seconds=seconds,
        seed=int(request.seed),
        first_token_seconds=first_token_seconds,
        index=request.index,
        sample=request.sample,
        stop_reason=stop if reason == "stop" and not is_ended else None,
        logprobs=chosen,
        top_logprobs=top,
        scored=host["scored"][row, reply].tolist(),
        prompt_logprobs=of_prompt[0],
        prompt_top_logprobs=of_prompt[1],
    )


def _logprobs(host, row: int, reply: slice, count: int) -> tuple[list[float] | None, list[dict[int, float]] | None]:
    """Those of a reply, and of the ``count`` likeliest tokens at each of its places; none of a row that reports none."""
    if host is None or not count:
        return None, None
    ids, values = host.ids[row, reply, :count].tolist(), host.top[row, reply, :count].tolist()
    return host.chosen[row, reply].tolist(), [dict(zip(*place, strict=True)) for place in zip(ids, values, strict=True)]
