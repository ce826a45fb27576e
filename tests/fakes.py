"""An engine that decodes nothing."""

import dataclasses

from redrafter_jax.decode import engine
from redrafter_jax.decode.propose.plain import Plain

REPLY = engine.Reply([5, 6], [False, False], "length", 1, [1], 0.1, 0)


class Fake(engine.Engine):
    """An engine that answers at once; a prompt that begins with 13 ends in an error."""

    def __init__(self, *_):
        self.compile_seconds = 0.0
        self.proposer = Plain()

    def autoregressive(self):
        return self

    def stream(self, prompts, *_, **__):
        ends = ["error" if prompt[0] == 13 else "length" for prompt in prompts]
        yield engine.Progress([dataclasses.replace(REPLY, finish_reason=end) for end in ends], [True] * len(prompts))

    def generate(self, prompts, *_, **__):
        return next(self.stream(prompts)).replies
