"""`train.distill --ray-workers`: the prompts in many workers (`infer/workers.py`), and the lines of one process in one file."""

import functools
from collections.abc import Callable, Iterator, Sequence

from tqdm.auto import tqdm

from infer import workers
from infer.replies import ReplyFile
from train.distill import answers, plan

BLOCK_BATCHES = 4  # batches in a block, so that rows are refilled, at most


def write(file: ReplyFile, options, numbers: Sequence[int]) -> None:
    """Writes the replies that are not done, each block as it becomes complete; ``numbers``: of all prompts. Errors as of
    `answers.write`."""
    left = [number for number in numbers if number not in file.done]
    size = max(1, min(BLOCK_BATCHES * options.batch_size, -(-len(left) // options.workers.ray_workers)))
    blocks = [left[first : first + size] for first in range(0, len(left), size)]
    file.begin()
    with tqdm(total=len(numbers), initial=len(numbers) - len(left), unit="prompt") as bar:
        for line in workers.spread(options.workers, functools.partial(_decoder, options), blocks):
            file.write([line])
            bar.update()


def _decoder(options) -> Callable[[Sequence[int]], Iterator[dict]]:
    """What answers the prompts with some numbers, with the pair in memory."""
    found = plan.make(options)
    answer = answers.Answerer(found.engine(), found.prompts, *found.how)
    return lambda numbers: (line for line in answer.lines(numbers))
