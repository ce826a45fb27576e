"""A target, what drafts for it and its tokenizer, in memory: replies to prompts, whole or piece by piece.

Not here: loading one (`pair.py`), what a call may ask for (`calls.py`).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax

from infer import text
from infer.calls import Call, Prompt, are_many
from infer.display import markup
from redrafter_jax.decode.engine import Engine, Reply
from redrafter_jax.decode.request import require, wrong_number
from redrafter_jax.decode.rules import DEFAULT_RULE
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
        batch_size: int = 8,
    ) -> Completion | list[Completion]:
        """The reply to a text, to token ids, or to messages (`[{"role": "user", "content": "..."}]`); to a list of any of these, a
        list of replies.

        Args:
          acceptance: the rule `typical` changes the distribution.
          seed: prompt i of a list, counted from 0, has seed + i.
          max_length: tokens of prompt and reply at most; None: the target's context.
          ignore_eos: go on after an end-of-text token.
          chat_template: Jinja source for messages; None: the tokenizer's, or Vicuna's where it has none.
          batch_size: prompts of a list that are decoded together.

        Raises:
          BadInput: a prompt is none of these, or does not fit the target; or a number or a rule is out of its range.
        """
        call = Call(max_new_tokens, temperature, top_k, top_p, acceptance, seed, max_length, ignore_eos, chat_template)
        require("batch_size", wrong_number("batch_size", batch_size))
        many = are_many(prompt)
        ids = self._encode(call, {f"prompt {i}": each for i, each in enumerate(prompt)} if many else {"prompt": prompt})
        shards = self.engine.mesh.shape["data"]
        rows = -(-min(batch_size, len(ids)) // shards) * shards
        replies = self.engine.generate(ids, call.sampling, call.limits, call.seeds(len(ids)), batch=rows, stop_ids=call.stop_ids)
        found = [self._completion(own, reply) for own, reply in zip(ids, replies, strict=True)]
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
    ) -> Iterator[str]:
        """Pieces of the text of the reply to one prompt, as they are decided; joined they are the text of `complete`.

        Raises:
          BadInput: as `complete`, at once; or there is no tokenizer.
        """
        call = Call(max_new_tokens, temperature, top_k, top_p, acceptance, seed, max_length, ignore_eos, chat_template)
        if self.tokenizer is None:
            raise BadInput("there is no text to stream: the target's folder has no tokenizer; use complete, or engine.stream")
        return self._pieces(call, self._encode(call, {"prompt": prompt}))

    def _completion(self, prompt: list[int], reply: Reply) -> Completion:
        pieces = [] if self.tokenizer is None else text.pieces_of(self.tokenizer, prompt, reply.token_ids)
        return Completion(None if self.tokenizer is None else "".join(pieces), reply, pieces)

    def _encode(self, call: Call, given: dict[str, Prompt]) -> list[list[int]]:
        target = self.engine.target.config
        call.check_against(target)
        return [call.ids_of(prompt, self.tokenizer, target, where) for where, prompt in given.items()]

    def _pieces(self, call: Call, ids: list[list[int]]) -> Iterator[str]:
        detokenizer, count = text.Detokenizer(self.tokenizer, ids[0]), 0
        rows = self.engine.mesh.shape["data"]
        for progress in self.engine.stream(ids, call.sampling, call.limits, [call.seed], rows, stop_ids=call.stop_ids):
            tokens = progress.replies[0].token_ids
            piece = "".join(map(detokenizer.push, tokens[count:]))
            count = len(tokens)
            if piece:
                yield piece
        if rest := detokenizer.flush():
            yield rest

    def __repr__(self) -> str:
        """One line: sizes, what drafts, number format, mesh."""
        engine, mesh = self.engine, self.engine.mesh.shape
        millions = sum(leaf.size for leaf in jax.tree.leaves(engine.target)) / 1e6
        target = f"target of {millions:.1f} M parameters in {engine.target.norm[...].dtype}"
        drafts = f"{type(engine.proposer).__name__} with {engine.proposer.round.nodes} nodes"
        tokenizer = "a tokenizer" if self.tokenizer is not None else "no tokenizer"
        return f"Pair({target}, {drafts}, {tokenizer}, mesh {mesh['data']} x {mesh['model']})"
