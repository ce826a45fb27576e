"""Prompts, and what is given for all or for each of them -> requests, which are the rows of a batch."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from redrafter_jax.decode.request import (
    RANGES,
    Limits,
    Sampling,
    as_list,
    check_count,
    check_prompt,
    check_seeds,
    check_stop_ids,
    is_list,
    is_whole,
    require,
    wrong_for_vocabulary,
    wrong_number,
)
from redrafter_jax.errors import BadInput, shown

MAX_SAMPLES = RANGES["n"][1]
MIN_STOP_IDS = 4  # columns of the table of stop ids, so that a row may have none or a few in the same program


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt of token ids and how to continue it: what one row of a batch decodes. stop_ids: each ends the reply; sample:
    which of several replies with one seed it is; index: the number of the prompt in its call; scores_prompt: the reply has the
    log-probabilities of the prompt's tokens too, of which `Sampling.logprobs` says how many (a `Scheduler` whose room has them)."""

    prompt: Sequence[int] | np.ndarray
    sampling: Sampling
    limits: Limits
    seed: int
    stop_ids: tuple[int, ...]
    sample: int = 0
    index: int = 0
    scores_prompt: bool = False


def make_requests(
    prompts: Iterable,
    sampling: Sampling | Iterable[Sampling],
    limits: Limits | Iterable[Limits],
    seeds: Iterable[int] | None,
    stop_ids: Iterable[int] | Iterable[Iterable[int]],
    vocab_size: int,
    context: int,
    samples: Iterable[int] | None = None,
) -> list[Request]:
    """A request for each prompt. sampling, limits, stop_ids: one for all, or a list with one for each prompt; seeds: None for
    0, 1, 2 and so on; context: the target's, in tokens; samples: None for 0.

    Raises:
      BadInput: a prompt, or what is given for it, cannot be used.
    """
    prompts = as_list("prompts", prompts)
    count = len(prompts)
    samplings = one_for_each("sampling", sampling, count, Sampling, "a Sampling, such as Sampling(temperature=0.7)")
    limits = one_for_each("limits", limits, count, Limits, "Limits, such as Limits(new=128)")
    stops = stop_ids_for_each(stop_ids, count, vocab_size)
    seeds = list(range(count)) if seeds is None else as_list("seeds", seeds)
    for prompt, limit in zip(prompts, limits, strict=True):
        check_prompt(prompt, vocab_size, limit.length or context)
    check_seeds(seeds, count)
    samples = [0] * count if samples is None else as_list("samples", samples)
    check_count("samples", samples, count)
    for number in samples:
        if not is_whole(number) or not 0 <= number < MAX_SAMPLES:
            raise BadInput(f"a sample should be from 0 to {MAX_SAMPLES - 1}, not {shown(number)}")
    for way in samplings:
        require("logprobs", wrong_for_vocabulary(way.logprobs, vocab_size))
    rows = zip(prompts, samplings, limits, seeds, stops, samples, range(count), strict=True)
    return [Request(*fields) for fields in rows]


def repeat(requests: Sequence[Request], count: int) -> list[Request]:
    """``count`` replies to each: samples 0, 1, 2 and so on. Each is a row of its own, with a prefill of its own.

    Raises:
      BadInput: the count is out of its range, or would repeat a greedy reply, which has only one text.
    """
    require("n", wrong_number("n", count))
    if count > 1 and any(request.sampling.temperature == 0 for request in requests):
        raise BadInput(f"n should be 1 at temperature 0, where all replies are the same, not {count}")
    return [dataclasses.replace(request, sample=number) for request in requests for number in range(count)]


def one_for_each(subject: str, given: object, count: int, kind: type, right: str) -> list:
    """A list of ``count``: a single object of that kind is repeated, a list has to have one item for each. Raises BadInput
    for another number of items or another kind; ``right`` says what would be right."""
    if isinstance(given, kind):
        return [given] * count
    if not is_list(given):
        raise BadInput(f"{subject} should be {right}, not {shown(given)}")
    items = list(given)
    check_count(subject, items, count)
    for number, item in enumerate(items):
        if not isinstance(item, kind):
            raise BadInput(f"{subject}[{number}] should be {right}, not {shown(item)}")
    return items


def stop_ids_for_each(stop_ids: Iterable, count: int, vocab_size: int) -> list[tuple[int, ...]]:
    """For each of ``count`` prompts its stop ids: a list of ids is for all, a list of lists has one for each.

    Raises:
      BadInput: it is neither, or an id is none of the target's.
    """
    given = as_list("stop_ids", stop_ids)
    if not any(map(is_list, given)):
        return [tuple(check_stop_ids(given, vocab_size))] * count
    check_count("stop_ids", given, count)
    return [tuple(check_stop_ids(ids, vocab_size, f"stop_ids[{number}]")) for number, ids in enumerate(given)]


def stop_id_columns(stop_ids: Sequence[Sequence[int]]) -> int:
    """Columns of a table of these stop ids: a power of two, so that similar requests share a compiled program."""
    longest = max(map(len, stop_ids), default=0)
    return max(MIN_STOP_IDS, 1 << (longest - 1).bit_length() if longest else 0)


def stop_id_table(stop_ids: Sequence[Sequence[int]], rows: int, columns: int = 0) -> np.ndarray:
    """The stop ids of each row, ``[rows, X]`` int32, filled with -1; X: ``columns``, or as `stop_id_columns`."""
    table = np.full((rows, columns or stop_id_columns(stop_ids)), -1, np.int32)
    for row, ids in enumerate(stop_ids):
        table[row, : len(ids)] = ids
    return table
