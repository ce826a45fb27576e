"""The text of a reply as it grows: what each look at the batch adds to it. Not here: JSON (`responses.py`)."""

import dataclasses

from infer.stopping import Stopper
from infer.text import Detokenizer
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.reply import Reply


@dataclasses.dataclass(frozen=True)
class Delta:
    """What is new of a reply. pieces: the text that each new token completes, the last of them with what is left at the end;
    first: the number of the first new token; offset: characters of the text before it; done: nothing comes behind it."""

    reply: Reply
    pieces: list[str]
    first: int
    offset: int
    done: bool

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def marked(self) -> list[tuple[str, bool]]:
        """The pieces, and whether each was an accepted draft."""
        return list(zip(self.pieces, self.reply.drafted[self.first :], strict=False))


class Growth:
    """Of the reply to one request, whose text begins with ``echo``."""

    def __init__(self, stopper: Stopper, request: Request, echo: str):
        prompt = list(request.prompt)
        has_stops = bool(stopper.stops.strings)
        self._text = stopper.text(prompt, request.limits.min_new) if has_stops else Detokenizer(stopper.tokenizer, prompt)
        self._echo, self._seen, self._offset = echo, 0, 0

    def grow(self, reply: Reply, done: bool) -> Delta:
        """What the reply has more than the last one that was given; ``done``: it is the last."""
        first, offset = self._seen, self._offset
        pieces = [self._text.push(token) for token in reply.token_ids[first:]]
        rest = self._text.flush() if done else ""
        if rest or not pieces:
            pieces = [*pieces[:-1], "".join(pieces[-1:]) + rest]
        if self._echo:
            pieces[0], self._echo = self._echo + pieces[0], ""
        self._seen, self._offset = len(reply.token_ids), offset + sum(map(len, pieces))
        return Delta(reply, pieces, first, offset, done)
