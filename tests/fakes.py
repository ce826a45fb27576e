"""An engine that decodes nothing."""

import dataclasses
import types

from redrafter_jax.decode import engine
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.seat import Event

REPLY = engine.Reply([5, 6], [False, False], "length", 1, [1], 0.1, 0)


class Fake(engine.Engine):
    """An engine that answers at once; a prompt that begins with 13 ends in an error."""

    proposer, compile_seconds = Plain(), 0.0

    def __init__(self, *_):
        self.runner = types.SimpleNamespace(context=1000)

    def autoregressive(self):
        return self

    def stream(self, prompts, *_, **__):
        ends = ["error" if prompt[0] == 13 else "length" for prompt in prompts]
        yield engine.Progress([dataclasses.replace(REPLY, finish_reason=end) for end in ends], [True] * len(prompts))

    def generate(self, prompts, *_, **__):
        return next(self.stream(prompts)).replies

    def requests(self, prompts, sampling, limits, seeds, samples=None):
        return [Request(prompt, sampling, limits, seed, ()) for prompt, seed in zip(prompts, seeds, strict=True)]

    def scheduler(self, rows, requests, prompt=0, reuses=True, adapts=False):
        return FakeScheduler(self, rows)


class FakeScheduler:
    """As many requests as there are rows are complete after each step, the last that came first."""

    round_seconds, offered = 0.1, 0

    def __init__(self, fake: Fake, rows: int):
        self.fake, self.rows, self.waiting = fake, rows, []

    def prepare(self):
        pass

    def submit(self, request, follows=False) -> int:
        self.waiting.append(request)
        return len(self.waiting) - 1

    def step(self, rounds=1, watch=None):
        left = [ticket for ticket, request in enumerate(self.waiting) if request is not None][: self.rows]
        replies = self.fake.generate([self.waiting[ticket].prompt for ticket in left])
        for ticket in left:
            self.waiting[ticket] = None
        self.offered += self.rows
        return [Event(ticket, reply, True, len(reply.token_ids)) for ticket, reply in zip(left, replies, strict=True)][::-1]
