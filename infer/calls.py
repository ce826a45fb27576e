"""What `Pair.complete` and `Pair.stream` are called with: checked, and in the types of the engine.

Not here: the checks of numbers (`redrafter_jax/decode/request.py`), loading (`pair.py`).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from infer import prompts, templates
from infer.options import read_seeds
from infer.stopping import Stops
from redrafter_jax.decode.request import (
    Limits,
    Sampling,
    check_prompt,
    require,
    wrong_for_context,
    wrong_for_vocabulary,
    wrong_number,
    wrong_rule,
)
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.model.target import TargetConfig

Messages = Sequence[dict[str, str]]
Prompt = str | Sequence[int] | Messages


@dataclasses.dataclass(frozen=True)
class Call:
    """How to reply: the arguments of `Pair.complete` besides the prompt, under their names.

    Raises:
      BadInput: a number or a rule is out of its range.
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    acceptance: str
    seed: int
    max_length: int | None
    ignore_eos: bool
    chat_template: str | None
    stop: str | Sequence[str] = ()
    include_stop: bool = False
    min_new_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int = 0
    n: int = 1
    chat_template_kwargs: Mapping[str, object] | None = None

    def __post_init__(self):
        if self.chat_template_kwargs is not None:
            templates.check_kwargs(self.chat_template_kwargs, "chat_template_kwargs")
        require("max_new_tokens", wrong_number("max_new_tokens", self.max_new_tokens))
        require("acceptance", wrong_rule(self.acceptance))
        require("seed", wrong_number("seed", self.seed))
        if self.max_length is not None:
            require("max_length", wrong_number("max_length", self.max_length))
        _ = self.sampling, self.stops
        require("n", wrong_number("n", self.n))
        if self.n > 1 and self.temperature == 0:
            raise BadInput(f"n should be 1 at temperature 0, where all replies are the same, not {self.n}")
        require("min_new_tokens", wrong_number("min_new_tokens", self.min_new_tokens))
        if self.min_new_tokens > self.max_new_tokens:
            raise BadInput(f"min_new_tokens should be at most max_new_tokens, {self.max_new_tokens}, not {self.min_new_tokens}")

    @property
    def sampling(self) -> Sampling:
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return Sampling(self.temperature, self.top_k, self.top_p, self.acceptance, *penalties, self.logprobs)

    @property
    def stops(self) -> Stops:
        if not isinstance(self.stop, str | Sequence):
            raise BadInput(f"stop should be a text or a list of texts, not {shown(self.stop)}")
        return Stops((self.stop,) if isinstance(self.stop, str) else tuple(self.stop), self.include_stop)

    @property
    def limits(self) -> Limits:
        return Limits(self.max_new_tokens, self.max_length or 0, self.min_new_tokens)

    @property
    def stop_ids(self) -> tuple[int, ...] | None:
        """Those of the call; None: the engine's."""
        return () if self.ignore_eos else None

    def check_against(self, target: TargetConfig) -> None:
        """Raises BadInput for numbers that the target has no room for."""
        for name in ("top_k", "logprobs"):
            require(name, wrong_for_vocabulary(getattr(self, name), target.vocab_size))
        for name in ("max_new_tokens", "max_length"):
            require(name, wrong_for_context(getattr(self, name) or 1, target.max_position_embeddings))

    def seeds(self, count: int) -> list[int]:
        """Of so many prompts: the call's and its number."""
        return read_seeds(self.seed, count)

    def ids_of(self, prompt: Prompt, tokenizer, target: TargetConfig, where: str = "prompt") -> list[int]:
        """The token ids of a text, of messages, or of ids.

        Raises:
          BadInput: it is none of these, does not fit the target, or needs a tokenizer that is not there.
        """
        context = self.max_length or target.max_position_embeddings
        if isinstance(prompt, str) or is_chat(prompt):
            if tokenizer is None:
                raise BadInput(f"{where}: the target's folder has no tokenizer; give token ids")
            kind = "prompt" if isinstance(prompt, str) else "messages"
            content = prompt if isinstance(prompt, str) else list(prompt)
            prompts.check_content(where, kind, content)
            given = prompts.Prompt(where, kind, content)
            return prompts.encode(given, tokenizer, target.vocab_size, context, self.chat_template, self.chat_template_kwargs)
        check_prompt(prompt, target.vocab_size, context, where)
        return [int(token) for token in prompt]


def is_chat(prompt: object) -> bool:
    """Whether a prompt is meant as messages."""
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], dict)


def are_many(prompt: object) -> bool:
    """Whether it is a list of prompts and not one prompt."""
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray)
    return is_list and bool(prompt) and all(isinstance(each, str | Sequence | np.ndarray) for each in prompt)
