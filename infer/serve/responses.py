"""Replies -> completions, chat completions and the chunks of their streams, in the types of the package `openai`.

Beyond OpenAI's fields: ``seed``, with which the same request gives the same text; on a choice ``stop_reason``, as vLLM has it;
``metrics`` and ``drafts`` where they were asked for. Not here: which text is new (`growth.py`), HTTP (`routes.py`).
"""

import itertools
import secrets
import time
from collections.abc import Sequence

import pydantic
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat import chat_completion as whole
from openai.types.chat import chat_completion_chunk as chunk
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs
from openai.types.completion_usage import PromptTokensDetails
from openai.types.model import Model

from infer.serve.growth import Delta
from infer.serve.orders import Order
from infer.serve.vocabulary import TokenTexts
from redrafter_jax.decode import metrics
from redrafter_jax.decode.reply import Reply, mean_tokens_per_step
from redrafter_jax.version import __version__

LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON does not have
END = b"data: [DONE]\n\n"


class Responses:
    """Writes the replies to one order."""

    def __init__(self, order: Order, model: str, tokens: TokenTexts):
        self._order, self._tokens = order, tokens
        kind = "chatcmpl" if order.is_chat else "cmpl"
        self._shared = {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"redrafter_jax-{__version__}",
            "seed": order.seed,
        }

    def complete(self, deltas: Sequence[Delta]) -> bytes:
        """The response without a stream, of what is new of each reply since its beginning."""
        kind = (ChatCompletion, "chat.completion") if self._order.is_chat else (Completion, "text_completion")
        choice = self._chat_choice if self._order.is_chat else self._choice
        made = [choice(index, delta) for index, delta in enumerate(deltas)]
        replies = [delta.reply for delta in deltas]
        return _dump(_made(kind[0], object=kind[1], choices=made, **self._shared, **self._figures(replies)))

    def begin(self) -> list[bytes]:
        """What stands before the first new text of a stream."""
        if not self._order.is_chat:
            return []
        opening = _made(chunk.ChoiceDelta, role="assistant", content="")
        return [self._event(self._chat_chunk(index, opening)) for index in range(len(self._order.requests))]

    def part(self, index: int, delta: Delta) -> list[bytes]:
        """What a stream says about a choice."""
        says_more = self._order.logprobs is not None or self._order.drafts
        if not self._order.is_chat:
            return [self._event(self._choice(index, delta))] if delta.text or delta.done or says_more else []
        said, events = delta.text, []
        if said or says_more:
            events.append(self._chat_chunk(index, _made(chunk.ChoiceDelta, content=said), delta))
        if delta.done:
            events.append(self._chat_chunk(index, _made(chunk.ChoiceDelta), None, delta))
        return [self._event(event) for event in events]

    def end(self, replies: Sequence[Reply]) -> list[bytes]:
        """The usage and the metrics, where they were asked for, and what stands behind the last chunk."""
        figures = self._figures(replies)
        if not self._order.usage:
            del figures["usage"]
        return [*([self._event(None, **figures)] if figures else []), END]

    def _event(self, choice, **more) -> bytes:
        kind = (ChatCompletionChunk, "chat.completion.chunk") if self._order.is_chat else (Completion, "text_completion")
        choices = [] if choice is None else [choice]
        return b"data: " + _dump(_made(kind[0], object=kind[1], choices=choices, **self._shared, **more)) + b"\n\n"

    def _figures(self, replies: Sequence[Reply]) -> dict:
        given, made = self._order.prompt_tokens, sum(len(reply.token_ids) for reply in replies)
        details = _made(PromptTokensDetails, cached_tokens=sum(r.cached_tokens for r in replies if not r.sample))
        usage = _made(
            CompletionUsage, prompt_tokens=given, completion_tokens=made, total_tokens=given + made, prompt_tokens_details=details
        )
        if not self._order.metrics:
            return {"usage": usage}
        (only,) = replies if len(replies) == 1 else (None,)
        found = None if only is None else metrics.speculative_decoding(only.accepted_histogram, only.scored)
        block = {"speculative_decoding": found, "tokens_per_step": mean_tokens_per_step(replies)}
        return {"usage": usage, "metrics": block}

    def _drafts(self, delta: Delta) -> dict:
        return {"drafts": delta.marked} if self._order.drafts else {}

    def _choice(self, index: int, delta: Delta) -> CompletionChoice:
        logprobs = None if self._order.logprobs is None else self._completion_logprobs(delta)
        given = {"index": index, "text": delta.text, "logprobs": logprobs}
        return _made(CompletionChoice, **given, **_ending(delta), **self._drafts(delta))

    def _chat_choice(self, index: int, delta: Delta) -> whole.Choice:
        said = _made(ChatCompletionMessage, role="assistant", content=delta.text, refusal=None)
        logprobs = self._chat_logprobs(delta, whole.ChoiceLogprobs)
        given = {"index": index, "message": said, "logprobs": logprobs}
        return _made(whole.Choice, **given, **_ending(delta), **self._drafts(delta))

    def _chat_chunk(
        self, index: int, said: chunk.ChoiceDelta, delta: Delta | None = None, last: Delta | None = None
    ) -> chunk.Choice:
        """A chunk that says something, of which ``delta`` knows more, or that ends the choice (``last``)."""
        logprobs = None if delta is None else self._chat_logprobs(delta, chunk.ChoiceLogprobs)
        drafts = {} if delta is None else self._drafts(delta)
        return _made(chunk.Choice, index=index, delta=said, logprobs=logprobs, **_ending(last), **drafts)

    def _completion_logprobs(self, delta: Delta) -> Logprobs:
        reply, first, text_of = delta.reply, delta.first, self._tokens.text_of
        new = list(zip(reply.token_ids[first:], reply.logprobs[first:], reply.top_logprobs[first:], strict=True))
        offsets = _offsets(delta.pieces, delta.offset + len(delta.echo))[: len(new)]
        if delta.prompt:  # nothing is said of the first token, for nothing came before it
            ids, pieces = zip(*delta.prompt, strict=True)
            new = [*zip(ids, [None, *reply.prompt_logprobs], [None, *reply.prompt_top_logprobs], strict=True), *new]
            offsets = _offsets(pieces, 0) + offsets
        tops = []
        for token, value, top in new:
            shown = None if top is None else dict(list(top.items())[: self._order.logprobs]) | {token: value}
            tops.append(shown and {text_of(each): _finite(logprob) for each, logprob in shown.items()})
        return _made(
            Logprobs,
            tokens=[text_of(token) for token, _, _ in new],
            token_logprobs=[None if value is None else _finite(value) for _, value, _ in new],
            top_logprobs=tops if self._order.logprobs else None,
            text_offset=offsets,
        )

    def _chat_logprobs(self, delta: Delta, kind: type) -> whole.ChoiceLogprobs | chunk.ChoiceLogprobs | None:
        if self._order.logprobs is None:
            return None
        reply, first = delta.reply, delta.first
        content = []
        for token, value, top in zip(reply.token_ids[first:], reply.logprobs[first:], reply.top_logprobs[first:], strict=True):
            tops = [_made(TopLogprob, **self._entry(*each)) for each in list(top.items())[: self._order.logprobs]]
            content.append(_made(ChatCompletionTokenLogprob, **self._entry(token, value), top_logprobs=tops))
        return _made(kind, content=content, refusal=None)

    def _entry(self, token: int, logprob: float) -> dict:
        return {"token": self._tokens.text_of(token), "logprob": _finite(logprob), "bytes": list(self._tokens.bytes_of(token))}


def model_of(name: str, created: int, room: int) -> dict:
    """A line of `/v1/models`; room: tokens of prompt and reply at most, as vLLM says it."""
    return Model(id=name, created=created, object="model", owned_by="redrafter_jax").model_dump() | {"max_model_len": room}


def _ending(delta: Delta | None) -> dict:
    """Why a choice ended, if it has; ``stop_reason`` is no field of OpenAI's."""
    if delta is None or not delta.done:
        return {"finish_reason": None}
    return {"finish_reason": delta.reply.finish_reason, "stop_reason": delta.reply.stop_reason}


def _offsets(pieces: Sequence[str], before: int) -> list[int]:
    """Where each piece begins in a text."""
    return list(itertools.accumulate(map(len, pieces), initial=before))[:-1]


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _made(kind: type, **fields):
    """A response, unchecked, by pydantic's own `model_construct`: that of `openai` looks at every field, which takes longer than
    everything else about an event of a stream."""
    return pydantic.BaseModel.model_construct.__func__(kind, **fields)


def _dump(made) -> bytes:
    return made.model_dump_json(exclude_unset=True, warnings=False).encode()
