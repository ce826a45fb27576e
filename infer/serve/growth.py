"""The text of a reply as it grows: what each look at the batch adds to it. Not here: JSON (`responses.py`)."""

import dataclasses
from collections.abc import Sequence

from infer import text
from infer.stopping import Stopper
from infer.text import Detokenizer
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.reply import Reply

SILENCE = {"token_ids": [], "drafted": [], "scored": [], "logprobs": [], "top_logprobs": []}  # of a reply


@dataclasses.dataclass(frozen=True)
class Delta:
    """What is new of a reply. pieces: the text that each new token completes, the last of them with what is left at the end, or one
    piece of all; first: the number of the first new token; offset: characters of the text before it; done: nothing comes behind it;
    echo: the prompt's text, which stands before the first piece; prompt: the prompt's tokens, each with its part of that text,
    where their log-probabilities belong here."""

    reply: Reply
    pieces: list[str]
    first: int
    offset: int
    done: bool
    echo: str = ""
    prompt: Sequence[tuple[int, str]] = ()

    @property
    def text(self) -> str:
        return self.echo + "".join(self.pieces)

    @property
    def marked(self) -> list[tuple[str, bool]]:
        """The pieces, and whether each was an accepted draft."""
        pieces = [self.echo + self.pieces[0], *self.pieces[1:]]
        return list(zip(pieces, self.reply.drafted[self.first :], strict=False))


class Growth:
    """Of the reply to one request, whose text begins with ``echo``, and ends there if it is ``silent``. in_pieces: whether the text
    of each token is wanted; else what is new is one piece."""

    def __init__(self, stopper: Stopper, request: Request, echo: str, silent: bool = False, in_pieces: bool = True):
        prompt = list(request.prompt)
        has_stops = bool(stopper.stops.strings)
        self._in_pieces = in_pieces or has_stops
        self._text = stopper.text(prompt, request.limits.min_new) if has_stops else Detokenizer(stopper.tokenizer, prompt)
        self._echo, self._silent, self._seen, self._offset = echo, silent, 0, 0
        scored = text.pieces_of(stopper.tokenizer, [], prompt) if request.scores_prompt else []
        self._prompt = list(zip(prompt, scored, strict=False))

    def grow(self, reply: Reply, done: bool) -> Delta:
        """What the reply has more than the last one that was given; ``done``: it is the last."""
        if self._silent:
            reply = dataclasses.replace(reply, finish_reason="length", stop_reason=None, **SILENCE)
        echo, self._echo = self._echo, ""
        prompt, self._prompt = self._prompt, []
        first, offset = self._seen, self._offset
        new = reply.token_ids[first:]
        pieces = [self._text.push(token) for token in new] if self._in_pieces else [self._text.push_all(new)]
        rest = self._text.flush() if done else ""
        if rest or not pieces:
            pieces = [*pieces[:-1], "".join(pieces[-1:]) + rest]
        self._seen, self._offset = len(reply.token_ids), offset + len(echo) + sum(map(len, pieces))
        return Delta(reply, pieces, first, offset, done, echo, prompt)
