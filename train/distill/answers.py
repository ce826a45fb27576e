"""The target's replies to prompts, decoded batch by batch. Not here: which prompts (`data/questions.py`)."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from tqdm.auto import tqdm

from infer.options import read_seeds
from infer.replies import ReplyFile
from redrafter_jax.decode.engine import Engine, Limits, Reply, Sampling
from redrafter_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class NumberedPrompt:
    """A prompt's ids, its number among those of all shards, and the seed that its reply is sampled with."""

    number: int
    ids: list[int]
    seed: int


def share(prompts: Sequence[list[int]], seed: int, part: int, parts: int) -> list[NumberedPrompt]:
    """Every prompt of one part of ``parts``. Raises BadInput where there are too few seeds for all."""
    seeds = read_seeds(seed, len(prompts)) if prompts else []
    numbered = [NumberedPrompt(number, ids, seeds[number]) for number, ids in enumerate(prompts)]
    return numbered[part::parts]


def write(
    file: ReplyFile,
    engine: Engine,
    prompts: Sequence[NumberedPrompt],
    sampling: Sampling,
    limits: Limits,
    size: int,
    target: pathlib.Path,
) -> None:
    """Writes the replies that are not done, in the order of the prompts, ``size`` of them decoded at a time. A batch of which some
    are done is decoded in full, for in bfloat16 another batch may give another text.

    Raises:
      BadInput: the logits of the ``target`` in this folder are not finite. Nothing of that batch is written.
    """
    with tqdm(total=len(prompts), initial=len(file.done), unit="prompt") as bar:
        for batch in (prompts[first : first + size] for first in range(0, len(prompts), size)):
            left = {prompt.number for prompt in batch} - file.done
            if not left:
                continue
            ids, seeds = [prompt.ids for prompt in batch], [prompt.seed for prompt in batch]
            replies = list(engine.generate(ids, sampling, limits, seeds, size))
            check_finite(batch, replies, target)
            pairs = zip(batch, replies, strict=True)
            file.write(line_of(prompt, reply) for prompt, reply in pairs if prompt.number in left)
            bar.update(len(left))


def line_of(prompt: NumberedPrompt, reply: Reply) -> dict:
    """One reply as a JSON object."""
    return {"token_ids": prompt.ids + reply.token_ids, "prompt_tokens": len(prompt.ids), "number": prompt.number}


def check_finite(prompts: Iterable[NumberedPrompt], replies: Iterable[Reply], target: pathlib.Path) -> None:
    """Raises BadInput where the reply to one of the prompts ended in an error."""
    for prompt, reply in zip(prompts, replies, strict=True):
        if reply.finish_reason == "error":
            raise BadInput(
                f"--target: the target's logits are not finite at prompt {prompt.number}; nothing of its batch was"
                f" written; check the weights of {target}, and --dtype"
            )
