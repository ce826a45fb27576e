"""The target's replies to prompts, decoded in a running batch. Not here: which prompts (`data/questions.py`)."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

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


class Answerer:
    """How an engine answers ``prompts``, ``size`` of them at a time; ``target``: the folder of the target. What a prompt gets
    depends on nothing beside it."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[NumberedPrompt],
        sampling: Sampling,
        limits: Limits,
        size: int,
        target: pathlib.Path,
    ):
        requests = engine.requests([prompt.ids for prompt in prompts], sampling, limits, [prompt.seed for prompt in prompts])
        self._asked = {prompt.number: (prompt, request) for prompt, request in zip(prompts, requests, strict=True)}
        self._scheduler, self._target = engine.scheduler(size, requests), target

    def lines(self, numbers: Sequence[int]) -> Iterator[dict]:
        """The lines of the replies to the prompts with these numbers, as they become complete.

        Raises:
          BadInput: the logits of the target are not finite.
        """
        asked = {self._scheduler.submit(self._asked[number][1]): self._asked[number][0] for number in numbers}
        while asked:
            for event in self._scheduler.step():
                if event.done:
                    prompt = asked.pop(event.ticket)
                    check_finite(prompt, event.reply, self._target)
                    yield line_of(prompt, event.reply)


def write(
    file: ReplyFile,
    engine: Engine,
    prompts: Sequence[NumberedPrompt],
    sampling: Sampling,
    limits: Limits,
    size: int,
    target: pathlib.Path,
) -> None:
    """Writes the replies that are not done, each as it becomes complete, with ``size`` prompts decoded at a time, so a run that is
    resumed writes what it would have written.

    Raises:
      BadInput: the logits of the ``target`` in this folder are not finite. That reply is not written.
    """
    left = [prompt.number for prompt in prompts if prompt.number not in file.done]
    if not left:
        return
    with tqdm(total=len(prompts), initial=len(prompts) - len(left), unit="prompt") as bar:
        for line in Answerer(engine, prompts, sampling, limits, size, target).lines(left):
            file.write([line])
            bar.update()


def line_of(prompt: NumberedPrompt, reply: Reply) -> dict:
    """One reply as a JSON object."""
    return {"token_ids": prompt.ids + reply.token_ids, "prompt_tokens": len(prompt.ids), "number": prompt.number}


def check_finite(prompt: NumberedPrompt, reply: Reply, target: pathlib.Path) -> None:
    """Raises BadInput where the reply to the prompt ended in an error."""
    if reply.finish_reason == "error":
        raise BadInput(
            f"--target: the target's logits are not finite at prompt {prompt.number}; its reply was not"
            f" written; check the weights of {target}, and --dtype"
        )
