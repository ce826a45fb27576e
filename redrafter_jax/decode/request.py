"""What a request may ask for: how to sample, how long a reply may be, prompts and seeds; and how large a round may be.

One table of ranges and one sentence for each mistake, for commands (which put the option's name before it) and Python alike.
Nothing here starts JAX. Not here: which options exclude each other (`infer/generate/checks.py`)."""

import dataclasses
import numbers
from collections.abc import Iterable, Sequence

import numpy as np

from redrafter_jax.decode.rules import DEFAULT_RULE, RULES
from redrafter_jax.errors import BadInput, shown

MAX_SEED = 2**32 - 1
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0  # colder, logits over it leave float32; hotter, every text is noise
DRAFT_TOP_K = 10  # the likeliest tokens that a draft distribution is cut to by default (measured: docs/reports/benchmarks.md)
MIN_REPETITION, MAX_REPETITION = 0.01, 100.0  # logits times or over it stay in float32
MAX_PENALTY = 2.0  # of presence and frequency, as in OpenAI's interface
MAX_NODES = 4096  # a round holds an N x N mask and N rows of logits

# Smallest and largest value of whole numbers.
RANGES = {
    "beam_width": (1, MAX_NODES - 1),
    "beam_length": (1, 64),
    "node_budget": (2, MAX_NODES),
    "draft_top_k": (0, 10**6),
    "top_k": (0, 10**6),
    "seed": (0, MAX_SEED),
    "max_new_tokens": (1, 10**7),
    "min_new_tokens": (0, 10**7),
    "logprobs": (0, 100),
    "n": (1, 1024),
    "max_length": (2, 10**7),
    "batch_size": (1, 4096),
}


def require(subject: str, wrong: str | None) -> None:
    """Raises BadInput, `subject wrong`, where one of the functions below found something wrong."""
    if wrong is not None:
        raise BadInput(f"{subject} {wrong}")


def wrong_number(name: str, value: object, zero: str = "") -> str | None:
    """What is wrong with a number, by its name in ``RANGES``: "should be from 1 to 64, not 0".

    ``zero``: what 0 stands for, where it is fine too.
    """
    low, high = RANGES[name]
    if is_whole(value) and (low <= value <= high or (zero and value == 0)):
        return None
    return f"should be {f'0 ({zero}) or ' if zero else ''}from {low} to {high}, not {shown(value)}"


def wrong_temperature(value: object) -> str | None:
    """What is wrong with a temperature that is neither 0 nor in the range in which float32 can sample."""
    if _is_real(value) and (value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE):
        return None
    return f"should be 0 (greedy) or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:.0f}, not {shown(value)}"


def wrong_top_p(value: object) -> str | None:
    """What is wrong with a top-p outside (0, 1]."""
    return None if _is_real(value) and 0 < value <= 1 else f"should be above 0 and at most 1, not {shown(value)}"


def wrong_repetition(value: object) -> str | None:
    """A repetition penalty that no logit can be divided by in float32."""
    if _is_real(value) and MIN_REPETITION <= value <= MAX_REPETITION:
        return None
    return f"should be from {MIN_REPETITION} to {MAX_REPETITION:.0f}, not {shown(value)}"


def wrong_penalty(value: object) -> str | None:
    """A presence or frequency penalty out of its range."""
    if _is_real(value) and -MAX_PENALTY <= value <= MAX_PENALTY:
        return None
    return f"should be from -{MAX_PENALTY:.0f} to {MAX_PENALTY:.0f}, not {shown(value)}"


def wrong_rule(value: object) -> str | None:
    """What is wrong with an unknown acceptance rule."""
    *names, last = RULES
    if isinstance(value, str) and value in RULES:
        return None
    return f"should be {', '.join(names)} or {last}, not {shown(value)}"


def wrong_for_vocabulary(value: int, vocab_size: int, draft_vocab: int = 0, candidates: int = 0) -> str | None:
    """What is wrong with more tokens than the target's vocabulary, the head's draft vocabulary or its candidates are."""
    tokens, whose = (draft_vocab, "head's draft vocabulary of") if draft_vocab else (vocab_size, "target's vocabulary of")
    tokens, whose = (candidates, "number of the head's candidates,") if candidates else (tokens, whose)
    return f"should be at most the {whose} {tokens}, not {value}" if value > tokens else None


def wrong_for_context(value: int, context: int) -> str | None:
    """What is wrong with more tokens than the target's context has room for."""
    return f"should be at most the target's context of {context}, not {value}" if value > context else None


def is_whole(value: object) -> bool:
    """Whether it is an integer of Python's or NumPy's; True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose tokens; the request's ``seed`` alone decides its noise.

    temperature 0 is greedy; top_k 0 and top_p 1 are off. Penalties change logits before the temperature, for greedy rows too:
    repetition_penalty divides positive logits of tokens that prompt or reply have, and multiplies negative ones (1 is off; as in
    transformers and vLLM); presence_penalty is subtracted for a token that the reply has, and frequency_penalty for each time
    that the reply has it (0 is off; as in OpenAI's interface and vLLM).

    logprobs: of how many of the likeliest tokens the log-probability is reported, beside that of each token of the reply; 0
    reports none. They are of the model's own distribution, before penalties, temperature and filters (vLLM's raw_logprobs).

    Raises:
      BadInput: a number is out of its range, or there is no such rule.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    rule: str = DEFAULT_RULE
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int = 0

    def __post_init__(self):
        require("temperature", wrong_temperature(self.temperature))
        require("top_k", wrong_number("top_k", self.top_k))
        require("top_p", wrong_top_p(self.top_p))
        require("rule", wrong_rule(self.rule))
        require("repetition_penalty", wrong_repetition(self.repetition_penalty))
        for name in ("presence_penalty", "frequency_penalty"):
            require(name, wrong_penalty(getattr(self, name)))
        require("logprobs", wrong_number("logprobs", self.logprobs))

    @property
    def penalises(self) -> bool:
        """Whether a token depends on which tokens are in the text, beyond what the model makes of them."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def is_exact(self) -> bool:
        """Whether the text has the target's own distribution; greedy text has, whatever the rule."""
        return self.temperature == 0 or RULES[self.rule].exact

    @property
    def same_text(self) -> bool:
        """Whether the text is the same however it is drafted: that of plain decoding with this seed."""
        return self.is_exact and not self.draws

    @property
    def draws(self) -> bool:
        """Whether drafts have to be drawn (`Rule.drawn`)."""
        return self.temperature > 0 and RULES[self.rule].drawn

    @property
    def shows_noise(self) -> bool:
        """Whether the drafter sees the noise of the target; a greedy target has none."""
        return self.temperature > 0 and RULES[self.rule].shown


@dataclasses.dataclass(frozen=True)
class Limits:
    """new: new tokens of a reply at most; length: tokens of prompt and reply at most (0: the target's context); min_new: tokens
    of the reply that come before a stop id can (as min_new_tokens in transformers, and min_tokens in vLLM).

    ``length`` may be above the target's context, since rotary positions go on.

    Raises:
      BadInput: a number is out of its range.
    """

    new: int = 128
    length: int = 0
    min_new: int = 0

    def __post_init__(self):
        require("new", wrong_number("max_new_tokens", self.new))
        require("length", wrong_number("max_length", self.length, zero="the target's context"))
        require("min_new", wrong_number("min_new_tokens", self.min_new))
        if self.min_new > self.new:
            raise BadInput(f"min_new should be at most new, {self.new}, not {self.min_new}")


def check_seeds(seeds: Sequence[int], prompts: int) -> None:
    """Raises BadInput for another number of seeds than of prompts, and for a seed that is out of its range."""
    check_count("seeds", seeds, prompts)
    for seed in seeds:
        require("a seed", wrong_number("seed", seed))


def check_stop_ids(stop_ids: Iterable[int], vocab_size: int, subject: str = "stop_ids") -> list[int]:
    """The ids that end a reply, as a list. Raises BadInput for one that the target does not know."""
    ids, span = as_list(subject, stop_ids), f"from 0 to {vocab_size - 1}"
    for token in ids:
        if not is_whole(token) or not 0 <= token < vocab_size:
            raise BadInput(f"{subject} should be token ids of the target's vocabulary, {span}, not {shown(token)}")
    return [int(token) for token in ids]


def check_count(subject: str, items: Sequence, prompts: int) -> None:
    """Raises BadInput where there is not one item for each of so many prompts."""
    if len(items) != prompts:
        raise BadInput(f"{subject} should be {prompts}, one for each prompt, not {len(items)}")


def as_list(subject: str, values: object) -> list:
    """The items of an iterator, an array or the like. Raises BadInput for anything else, and for text."""
    if not is_list(values):
        raise BadInput(f"{subject} should be a list, not {shown(values)}")
    return list(values)


def is_list(values: object) -> bool:
    """Whether it can be iterated (a list, an array, an iterator) and is not text."""
    try:
        return not isinstance(values, str | bytes | bytearray | dict) and iter(values) is not None
    except TypeError:
        return False


def check_prompt(prompt: Sequence[int] | np.ndarray, vocab_size: int, context: int, where: str = "a prompt") -> None:
    """One prompt; ``where`` names it.

    Raises:
      BadInput: it is no list of token ids, is empty, leaves no room for a new token in ``context``, or has an id that
        the target does not know.
    """
    ids = np.asarray(prompt).tolist() if hasattr(prompt, "__array__") else prompt
    if not isinstance(ids, Sequence) or isinstance(ids, str | bytes | bytearray):
        raise BadInput(f"{where} should be a list of token ids, not {shown(prompt)}")
    if strange := [token for token in ids if not is_whole(token)]:
        raise BadInput(f"{where} should hold token ids, which are whole numbers, not {shown(strange[0])}")
    unknown = [token for token in ids if not 0 <= token < vocab_size]
    if unknown:
        raise BadInput(f"{where}: token id {shown(unknown[0])} is outside the target's vocabulary (0 to {vocab_size - 1})")
    if not ids:
        raise BadInput(f"{where} is empty; a prompt should have at least one token")
    if len(ids) >= context:
        raise BadInput(f"{where} has {len(ids)} tokens; at most {context - 1} fit in a context of {context} with a reply")
