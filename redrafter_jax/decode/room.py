"""The static sizes of a batch, and a request's arrays in them: what shares a room shares its compiled programs."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from redrafter_jax.decode import prefill
from redrafter_jax.decode.batch import Request, stop_id_columns, stop_id_table
from redrafter_jax.decode.policy import Needs, make_policy, needs_of
from redrafter_jax.decode.request import Sampling
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput

Inputs = tuple[jax.Array, ...]
"""What `loop.start` takes besides the models: tokens, lengths, limits, stop ids, policy."""


@dataclasses.dataclass(frozen=True)
class Room:
    """bucket: tokens of prompt and reply; needs: ways to sample; stop_columns: stop ids of a request; ends: numbers of tokens that
    the last chunk of a prompt is filled up to, where it has fewer than a chunk; scores: whether requests may score prompts."""

    bucket: prefill.Bucket
    needs: Needs
    stop_columns: int
    ends: tuple[int, ...] = ()
    scores: bool = False

    @property
    def longest(self) -> int:
        """Tokens of prompt and reply at most."""
        return self.bucket.text or self.bucket.prompt + self.bucket.new

    @property
    def chunks(self) -> tuple[int, ...]:
        """The numbers of tokens that a pass over a prompt reads, ascending: the last one, or a smaller one for the prompt's end."""
        most = self.bucket.pass_tokens
        return (*sorted(size for size in self.ends if size < most), most)

    def check(self, request: Request) -> None:
        """Raises BadInput where a request asks for more."""
        length, new = len(request.prompt), request.limits.new
        if length > self.bucket.prompt:
            raise BadInput(f"a prompt should have at most {self.bucket.prompt} tokens, not {length}")
        if new > self.bucket.new:
            raise BadInput(f"max_new_tokens should be at most {self.bucket.new}, not {new}")
        if stop_id_columns([request.stop_ids]) > self.stop_columns:
            raise BadInput(f"stop_ids should be at most {self.stop_columns}, not {len(request.stop_ids)}")
        if not self.needs.covers(needs_of([request.sampling], [request.limits.min_new])):
            raise BadInput(f"this way to sample was not prepared: {request.sampling}, min_new {request.limits.min_new}")
        if request.scores_prompt and not (self.scores and request.sampling.logprobs):
            raise BadInput("scores_prompt needs log-probabilities, and a room that was made with scores")


def room_for(requests: Sequence[Request], context: int, length: int, prompt: int = 0) -> Room:
    """With room for each of these requests to a target of this context, and for prompts of so many tokens, by rounds of depth
    ``length``."""
    news = [min(request.limits.new, _context(request, context)) for request in requests]
    bucket = prefill.bucket(max(prompt, *(len(request.prompt) for request in requests)), max(news), length)
    return Room(
        bucket,
        needs_of([request.sampling for request in requests], [request.limits.min_new for request in requests]),
        stop_id_columns([request.stop_ids for request in requests]),
    )


def put(requests: Sequence[Request], rows: int, context: int, room: Room) -> Inputs:
    """Requests as arrays on the mesh that is set, one per row; rows without one are done before they start."""
    lengths = [len(request.prompt) for request in requests]
    contexts = [min(_context(request, context), room.longest) for request in requests]
    news = [min(request.limits.new, each) for request, each in zip(requests, contexts, strict=True)]
    allowed = [min(new, each - length) for new, each, length in zip(news, contexts, lengths, strict=True)]
    tokens = np.zeros((rows, room.bucket.prompt), np.int32)
    for row, request in enumerate(requests):
        tokens[row, : lengths[row]] = request.prompt
    filler = rows - len(requests)
    return (
        processes.put(tokens, "data", None),
        processes.put(np.asarray(lengths + [1] * filler, np.int32), "data"),
        processes.put(np.asarray(allowed + [0] * filler, np.int32), "data"),
        processes.put(stop_id_table([request.stop_ids for request in requests], rows, room.stop_columns), "data", None),
        make_policy(
            [request.sampling for request in requests] + [Sampling()] * filler,
            [request.seed for request in requests] + [0] * filler,
            [request.sample for request in requests] + [0] * filler,
            [request.limits.min_new for request in requests] + [0] * filler,
            room.needs,
        ),
    )


def _context(request: Request, context: int) -> int:
    return request.limits.length or context
