"""Decodes the prompts of one `infer.generate` batch by batch, and passes each reply to its destination."""

import functools
import json
import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

from infer import pair, prompts, terminal
from infer.generate.task import Decoding, Task
from infer.replies import ReplyFile, line_of
from infer.text import text_of
from redrafter_jax.decode import loop
from redrafter_jax.decode.engine import Engine, Reply
from redrafter_jax.devices import processes


class Batches:
    """The prompts of a task; ``generate`` decodes those whose replies are not in ``file``. ``failed``: replies that end in
    an error."""

    def __init__(
        self,
        task: Task,
        loaded: pair.Pair,
        given: Sequence[prompts.Prompt],
        ids: Sequence[list[int]],
        seeds: Sequence[int],
        runs: Sequence[str],
        file: ReplyFile | None,
    ):
        self.task, self.pair, self.given, self.ids = task, loaded, given, ids
        self.seeds, self.runs, self.file = seeds, runs, file
        self.engine = loaded.engine if task.decoding.kind == "speculative" else loaded.engine.autoregressive()
        self.streams = task.destination.shows_text and task.decoding.batch == 1
        self.totals = terminal.Totals()
        self.numbers: Sequence[int] = range(len(ids))  # of the prompts that this process decodes
        self.done = file.done if file else set()
        self.failed = file.failed if file else 0
        self.writes = processes.is_first()

    def begin_part(self, file: ReplyFile, numbers: Sequence[int]) -> None:
        """Restricts itself to these prompts, less those that are done, and writes their replies into a file of its own."""
        self.file, self.numbers, self.writes = file, numbers, True
        self.done, self.failed = self.done | file.done, file.failed

    def generate(self) -> None:
        """Decodes in full every batch with a prompt that is not done, because in bfloat16 another batch may give another
        text."""
        size, count = self.task.decoding.batch, len(self.numbers)
        batches = [self.numbers[start : start + size] for start in range(0, count, size)]
        left = [batch for batch in batches if not self.done.issuperset(batch)]
        hidden = self.task.destination.shows_text or count == 1 or not sys.stderr.isatty() or not processes.is_first()
        with tqdm(total=count, initial=count - sum(map(len, left)), unit="prompt", disable=hidden, file=sys.stderr) as bar:
            for numbers in left:
                replies = self._decode(numbers)
                for index, reply in zip(numbers, replies, strict=True):
                    if index not in self.done:
                        self._hand_out(index, reply)
                        self.failed += reply.finish_reason == "error"
                bar.update(len(numbers))
        self.totals.compile_seconds = self.engine.compile_seconds
        shared = count < len(self.ids)
        processes.say(f"{'process 0: ' if shared else ''}{self.totals}", sys.stderr)

    def _decode(self, numbers: Sequence[int]) -> list[Reply]:
        open_stream = functools.partial(self._open, numbers[0]) if self.streams else None
        ids, seeds = [self.ids[i] for i in numbers], [self.seeds[i] for i in numbers]
        replies = decode(self.engine, self.task.decoding, ids, seeds, open_stream)
        self.totals.add(replies)
        return replies

    def _hand_out(self, index: int, reply: Reply) -> None:
        if self.task.destination.shows_text:
            if not self.streams:
                stream = self._open(index)
                stream.show(reply)
                stream.close()
            return
        line = line_of(self.runs[index], index, text_of(self.pair.tokenizer, self.ids[index], reply.token_ids), reply)
        if self.file is not None and self.writes:
            self.file.write([line])
        if self.task.destination.json:
            print(json.dumps(line), flush=True)

    def _open(self, index: int) -> terminal.Stream:
        """Writes the heading of a reply: its number among several, and the prompt where a person reads along."""
        prompt = self.given[index]
        if len(self.ids) > 1:
            print(f"--- {prompt.where}")
        if prompt.kind == "prompt" and (sys.stdout.isatty() or prompt.is_default):
            print(prompt.content, end="", flush=True)
        return terminal.Stream(self.pair.tokenizer, self.ids[index], terminal.coloured(self.task.destination.no_color))


def decode(
    engine: Engine,
    decoding: Decoding,
    ids: Sequence[list[int]],
    seeds: Sequence[int],
    open_stream: Callable[[], terminal.Stream] | None,
) -> list[Reply]:
    """One batch; a batch of one can be watched while it grows, in a stream that is opened once its programs are compiled."""
    rounds, stream = loop.ALL_ROUNDS if open_stream is None else None, None
    replies: list[Reply] = []
    for progress in engine.stream(ids, decoding.sampling, decoding.limits, seeds, decoding.batch, rounds):
        replies = progress.replies
        if open_stream is not None:
            stream = stream or open_stream()
            stream.show(replies[0])
    if stream is not None:
        stream.close()
    return replies
