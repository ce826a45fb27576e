"""A target, what drafts for it and its tokenizer, in memory: replies to prompts, whole or piece by piece.

Not here: loading one (`pair.py`), what a call may ask for (`calls.py`).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from infer import text
from infer.calls import Call, Prompt, are_many
from infer.display import markup
from infer.options import name_formats
from infer.stopping import Stopper
from redrafter_jax.decode.engine import Engine, Reply
from redrafter_jax.decode.request import require, wrong_number
from redrafter_jax.decode.rules import DEFAULT_RULE
from redrafter_jax.devices import placement
from redrafter_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Completion:
    """A text (None without a tokenizer) and the reply it was decoded from; pieces: the part of the text that each token made.
    Printed, it is its text, or its token ids; a notebook shows which tokens were accepted drafts."""

    text: str | None
    reply: Reply
    pieces: Sequence[str] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.reply.token_ids)) if self.text is None else self.text

    def _repr_html_(self) -> str:
        return markup.completion(self.text, self.reply, self.pieces)


@dataclasses.dataclass(frozen=True)
class Pair:
    """What `load` returns: an engine and, where the target's folder has one, a tokenizer."""

    engine: Engine
    tokenizer: object | None

    def complete(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        acceptance: str = DEFAULT_RULE,
        seed: int = 0,
        *,
        max_length: int | None = None,
        ignore_eos: bool = False,
        chat_template: str | None = None,
        stop: str | Sequence[str] = (),
        include_stop: bool = False,
        min_new_tokens: int = 0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logprobs: int = 0,
        n: int = 1,
        chat_template_kwargs: Mapping[str, object] | None = None,
        batch_size: int = 8,
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """The reply to a text, to token ids, or to messages (`[{"role": "user", "content": "..."}]`); to a list of any of these, a
        list of replies. With n above 1, a list of n in place of each reply.

        Args:
          acceptance: the rule `typical` changes the distribution.
          seed: prompt i of a list, counted from 0, has seed + i.
          max_length: tokens of prompt and reply at most; None: the target's context.
          ignore_eos: go on after an end-of-text token.
          chat_template: Jinja source for messages; None: the tokenizer's, or Vicuna's where it has none.
          chat_template_kwargs: further variables of the chat template, such as `{"enable_thinking": False}`.
          stop: texts that end a reply where they appear; the text ends before them, or behind with ``include_stop``.
          min_new_tokens: tokens before which nothing ends a reply.
          repetition_penalty: as of `Sampling`.
          presence_penalty: as of `Sampling`.
          frequency_penalty: as of `Sampling`.
          logprobs: as of `Sampling`.
          n: replies to each prompt, which differ in their noise; the first is that of n = 1.
          batch_size: replies that are decoded together.

        Raises:
          BadInput: a prompt is none of these, or does not fit the target; or a number or a rule is out of its range.
        """
        call = Call(max_new_tokens, temperature, top_k, top_p, acceptance, seed, max_length, ignore_eos, chat_template,
                    stop, include_stop, min_new_tokens, repetition_penalty, presence_penalty, frequency_penalty,
                    logprobs, n, chat_template_kwargs)  # fmt: skip
        require("batch_size", wrong_number("batch_size", batch_size))
        many = are_many(prompt)
        ids = self._encode(call, {f"prompt {i}": each for i, each in enumerate(prompt)} if many else {"prompt": prompt})
        replies = self._replies(call, ids, batch_size)
        found = [replies[first : first + n] if n > 1 else replies[first] for first in range(0, len(replies), n)]
        return found if many else found[0]

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        acceptance: str = DEFAULT_RULE,
        seed: int = 0,
        *,
        max_length: int | None = None,
        ignore_eos: bool = False,
        chat_template: str | None = None,
        stop: str | Sequence[str] = (),
        include_stop: bool = False,
        min_new_tokens: int = 0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> Iterator[str]:
        """Pieces of the text of the reply to one prompt, as they are decided; joined they are the text of `complete`. What may be
        the beginning of a stop string is kept back until it is known.

        Raises:
          BadInput: as `complete`, at once; or there is no tokenizer.
        """
        call = Call(max_new_tokens, temperature, top_k, top_p, acceptance, seed, max_length, ignore_eos, chat_template,
                    stop, include_stop, min_new_tokens, repetition_penalty, presence_penalty, frequency_penalty,
                    chat_template_kwargs=chat_template_kwargs)  # fmt: skip
        if self.tokenizer is None:
            raise BadInput("there is no text to stream: the target's folder has no tokenizer; use complete, or engine.stream")
        return self._pieces(call, self._encode(call, {"prompt": prompt}))

    def _replies(self, call: Call, ids: list[list[int]], batch_size: int) -> list[Completion]:
        """n replies to each prompt, in rows that are refilled as they end."""
        shards, stopper = self.engine.mesh.shape["data"], Stopper(self.tokenizer, call.stops)
        rows = -(-min(batch_size, len(ids) * call.n) // shards) * shards
        seeds = call.seeds(len(ids))
        asked = [(own, seed, sample) for own, seed in zip(ids, seeds, strict=True) for sample in range(call.n)]
        prompts, own_seeds, samples = zip(*asked, strict=True)
        given = (prompts, call.sampling, call.limits, own_seeds, rows, samples, call.stop_ids)
        replies = stopper.generate(self.engine, *given)
        return [self._completion(stopper, list(own), reply) for own, reply in zip(prompts, replies, strict=True)]

    def _completion(self, stopper: Stopper, prompt: list[int], reply: Reply) -> Completion:
        if self.tokenizer is None:
            return Completion(None, reply)
        pieces = text.pieces_of(self.tokenizer, prompt, reply.token_ids)
        return Completion(stopper.text_of(prompt, reply), reply, pieces)

    def _encode(self, call: Call, given: dict[str, Prompt]) -> list[list[int]]:
        target = self.engine.target.config
        call.check_against(target)
        return [call.ids_of(prompt, self.tokenizer, target, where) for where, prompt in given.items()]

    def _pieces(self, call: Call, ids: list[list[int]]) -> Iterator[str]:
        stopper, count = Stopper(self.tokenizer, call.stops), 0
        known = stopper.text(ids[0], call.min_new_tokens) if call.stops.strings else text.Detokenizer(self.tokenizer, ids[0])
        given = (ids, call.sampling, call.limits, [call.seed], self.engine.mesh.shape["data"])
        for progress in stopper.stream(self.engine, *given, stop_ids=call.stop_ids):
            tokens = progress.replies[0].token_ids
            piece = "".join(map(known.push, tokens[count:]))
            count = len(tokens)
            if piece:
                yield piece
        if rest := known.flush():
            yield rest

    def __repr__(self) -> str:
        """One line: sizes, what drafts, number format, mesh."""
        engine, mesh = self.engine, self.engine.mesh.shape
        millions = placement.parameters_of(engine.target) / 1e6
        numbers = name_formats(str(engine.target.norm[...].dtype), engine.target.config.weight_format)
        target = f"target of {millions:.1f} M parameters in {numbers}"
        drafts = f"{type(engine.proposer).__name__} with {engine.proposer.round.nodes} nodes"
        tokenizer = "a tokenizer" if self.tokenizer is not None else "no tokenizer"
        return f"Pair({target}, {drafts}, {tokenizer}, mesh {mesh['data']} x {mesh['model']})"
