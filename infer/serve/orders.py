"""Bodies -> orders: requests of the library, checked against the server's room, and how their replies are wanted.

Not here: the fields (`bodies.py`), decoding (`worker.py`), replies (`responses.py`).
"""

import contextlib
import dataclasses
import math
import secrets
from collections.abc import Iterator, Mapping

from infer import prompts, templates
from infer.options import read_seeds
from infer.serve import bodies
from infer.serve.bodies import Body, ChatBody, CompletionBody
from infer.serve.refusal import Refusal, of_input
from infer.stopping import Stops
from redrafter_jax.decode.batch import Request, repeat
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.request import MAX_SEED, Limits, Sampling, require, wrong_for_vocabulary, wrong_number
from redrafter_jax.decode.room import Room
from redrafter_jax.errors import BadInput, shown

DEFAULT_NEW_TOKENS = 16  # of a completion, as OpenAI's interface has it; a chat's reply may fill its room
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1000  # stop strings of a request, and characters of one


@dataclasses.dataclass(frozen=True)
class Order:
    """What one HTTP request asks for: ``requests``, one for each choice, prompt by prompt.

    echoes: for each choice the text that stands before its reply; logprobs: likeliest tokens that are shown beside each token, None
    where no log-probabilities are; usage, metrics, drafts: whether the reply has them; silent: there is no reply, only its echo;
    seconds: that it may take, where the server gives more.
    """

    is_chat: bool
    requests: tuple[Request, ...]
    echoes: tuple[str, ...]
    stops: Stops
    seed: int
    streams: bool
    logprobs: int | None = None
    usage: bool = False
    metrics: bool = False
    drafts: bool = False
    silent: bool = False
    seconds: float | None = None

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once however many replies it has."""
        return sum(len(request.prompt) for request in self.requests if request.sample == 0)


class Orders:
    """Reads bodies for one pair and its room. name: how requests call the model; most: replies of one request; template: writes
    messages, in place of the tokenizer's own, with the variables ``kwargs``; metrics: whether every reply has them.

    Its methods raise Refusal for what cannot be served; they may be called from one thread at a time.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer,
        room: Room,
        name: str,
        most: int,
        template: str | None = None,
        metrics: bool = False,
        kwargs: Mapping[str, object] | None = None,
    ):
        self.name, self._most, self._metrics = name, most, metrics
        self._engine, self._tokenizer, self._room = engine, tokenizer, room
        self._template, self._kwargs = template, dict(kwargs or {})
        self._config = engine.target.config

    def completion(self, body: CompletionBody) -> Order:
        """The order of a `/v1/completions`."""
        with _checked(body):
            self._check(body)
            if body.echo and body.logprobs is not None and not self._room.scores:
                raise BadInput("echo with logprobs is off: the server was started without --prompt-logprobs")
            if body.logprobs is not None:
                require("logprobs", wrong_number("logprobs", body.logprobs))
            given = _each(body.prompt)
            self._check_count(len(given), body)
            ids = [self._encode("prompt", "prompt" if isinstance(one, str) else "token_ids", one) for one in given]
            new = _or(body.max_tokens, min(DEFAULT_NEW_TOKENS, self._room.bucket.new))
            echoes = [self._text(one) if body.echo else "" for one in given]
            silent = bool(body.echo) and new == 0  # a token is decoded for it and not shown
            order = self._order(body, ids, echoes, 1 if silent else new, body.logprobs)
            return dataclasses.replace(order, silent=silent)

    def chat(self, body: ChatBody) -> Order:
        """The order of a `/v1/chat/completions`."""
        with _checked(body):
            self._check(body)
            if foreign := bodies.foreign_parts(body):
                raise BadInput(f"messages should be text, and there are parts of another kind: {', '.join(map(shown, foreign))}")
            if body.top_logprobs is not None:
                require("top_logprobs", wrong_number("logprobs", body.top_logprobs))
                if not body.logprobs:
                    raise BadInput("top_logprobs goes with logprobs: true")
            self._check_count(1, body)
            own = body.chat_template_kwargs or {}
            kwargs = self._kwargs | templates.check_kwargs(own, "chat_template_kwargs")
            ids = self._encode("messages", "messages", bodies.messages_of(body), kwargs)
            asked = _or(body.max_completion_tokens, body.max_tokens)
            logprobs = (body.top_logprobs or 0) if body.logprobs else None
            return self._order(body, [ids], [""], _or(asked, self._room.bucket.new), logprobs)

    def _check(self, body: Body) -> None:
        if body.model not in (None, self.name):
            message = f"there is no model {shown(body.model)}; this server has {self.name}"
            raise Refusal(404, message, "model", "model_not_found")
        if names := body.unsupported():
            raise Refusal(400, f"not supported by this server: {', '.join(names)}", names[0], "unsupported_parameter")
        if body.stream_options is not None and not body.stream:
            raise BadInput("stream_options goes with stream: true")
        if body.max_seconds is not None and not 0 < body.max_seconds < math.inf:
            raise BadInput(f"max_seconds should be a number above 0, not {shown(body.max_seconds)}")

    def _check_count(self, prompts: int, body: Body) -> None:
        if not prompts:
            raise BadInput("prompt is empty; there should be at least one")
        require("n", wrong_number("n", _or(body.n, 1)))
        if prompts * _or(body.n, 1) > self._most:
            what = f"{prompts} prompts with {_or(body.n, 1)} replies each"
            raise BadInput(f"n: {what} are more than the {self._most} replies that this server takes at once")

    def _encode(self, where: str, kind: str, content: object, kwargs: Mapping[str, object] | None = None) -> list[int]:
        if kind != "token_ids" or content:
            prompts.check_content(where, kind, content)
        longest = self._room.bucket.prompt
        how = self._config.vocab_size, 1 << 30, self._template, kwargs
        ids = prompts.encode(prompts.Prompt(where, kind, content), self._tokenizer, *how)
        if len(ids) > longest:
            message = f"{where} has {len(ids)} tokens; this server has room for prompts of at most {longest}"
            raise Refusal(400, message, where, "context_length_exceeded")
        return ids

    def _text(self, prompt: str | list[int]) -> str:
        return (
            prompt
            if isinstance(prompt, str)
            else self._tokenizer.decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _order(self, body: Body, ids: list[list[int]], echoes: list[str], new: int, logprobs: int | None) -> Order:
        n = _or(body.n, 1)
        seed = secrets.randbelow(MAX_SEED - len(ids) + 2) if body.seed is None else body.seed
        require("seed", wrong_number("seed", seed))
        sampling, limits = self._sampling(body, logprobs), self._limits(body, new)
        requests = self._engine.requests(ids, sampling, limits, read_seeds(seed, len(ids)), self._stop_ids(body))
        if n != 1:
            requests = repeat(requests, n)
        if logprobs is not None and getattr(body, "echo", None):
            requests = [dataclasses.replace(request, scores_prompt=True) for request in requests]
        for request in requests:
            self._room.check(request)
        return Order(
            isinstance(body, ChatBody),
            tuple(requests),
            tuple(echo for echo in echoes for _ in range(n)),
            self._stops(body),
            seed,
            bool(body.stream),
            logprobs,
            bool(body.stream_options and body.stream_options.include_usage),
            self._metrics or bool(body.return_metrics),
            bool(body.return_drafts),
            seconds=body.max_seconds,
        )

    def _sampling(self, body: Body, logprobs: int | None) -> Sampling:
        asked, most = logprobs or 0, self._room.needs.logprobs
        if logprobs is not None and max(1, asked) > most:
            given = f"at most {most} (--logprobs)" if most else "left out: the server was started with --logprobs 0"
            raise BadInput(f"{'top_logprobs' if isinstance(body, ChatBody) and most else 'logprobs'} should be {given}")
        sampling = Sampling(
            temperature=_or(body.temperature, 1.0),
            top_k=0 if body.top_k == -1 else _or(body.top_k, 0),
            top_p=_or(body.top_p, 1.0),
            repetition_penalty=_or(body.repetition_penalty, 1.0),
            presence_penalty=_or(body.presence_penalty, 0.0),
            frequency_penalty=_or(body.frequency_penalty, 0.0),
            logprobs=0 if logprobs is None else max(1, asked),
        )
        require("top_k", wrong_for_vocabulary(sampling.top_k, self._config.vocab_size))
        if sampling.penalises and not self._room.needs.penalised:
            raise BadInput("penalties are off: the server was started with --no-penalties")
        return sampling

    def _limits(self, body: Body, new: int) -> Limits:
        field = "max_completion_tokens" if getattr(body, "max_completion_tokens", None) is not None else "max_tokens"
        least = _or(body.min_tokens, 0)
        require(field, wrong_number("max_new_tokens", new))
        require("min_tokens", wrong_number("min_new_tokens", least))
        if new > self._room.bucket.new:
            raise BadInput(f"{field} should be at most {self._room.bucket.new} (--max-tokens-limit), not {new}")
        if least and not self._room.needs.waits:
            raise BadInput("min_tokens is off: the server was started with --no-penalties")
        if least > new:
            raise BadInput(f"min_tokens should be at most {field}, {new}, not {least}")
        return Limits(new, min_new=least)

    def _stop_ids(self, body: Body) -> list[int] | None:
        """Those of the request; None: the engine's alone."""
        own = [] if body.ignore_eos else [int(token) for token in self._engine.stop_ids if token >= 0]
        most = self._room.stop_columns - len(own)
        asked = body.stop_token_ids or []
        if len(asked) > most:
            raise BadInput(f"stop_token_ids should be at most {most}, not {len(asked)}")
        return [*own, *asked]

    def _stops(self, body: Body) -> Stops:
        strings = () if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
        if len(strings) > MAX_STOPS or any(len(string) > MAX_STOP_CHARACTERS for string in strings):
            raise BadInput(f"stop should be at most {MAX_STOPS} texts of at most {MAX_STOP_CHARACTERS} characters")
        return Stops(strings, bool(body.include_stop_str_in_output))


@contextlib.contextmanager
def _checked(body: Body) -> Iterator[None]:
    """Makes a Refusal of what is wrong with a body."""
    try:
        yield
    except BadInput as error:
        raise of_input(error, set(type(body).model_fields)) from None


def _or(value, default):
    return default if value is None else value


def _each(prompt: str | list) -> list:
    """The prompts of a field that is one prompt or a list of several."""
    is_one = isinstance(prompt, str) or bool(prompt) and isinstance(prompt[0], int)
    return [prompt] if is_one else prompt
