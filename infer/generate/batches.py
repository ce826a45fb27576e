"""Decodes the prompts of one `infer.generate` batch by batch, and passes each reply to its destination."""

import collections
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from tqdm.auto import tqdm

from infer import pair, terminal
from infer.generate import refill
from infer.generate.task import Decoding, Task
from infer.replies import ReplyFile, line_of
from infer.stopping import Stopper, StopScheduler
from infer.turns import Turns
from redrafter_jax.decode import loop
from redrafter_jax.decode.batch import Request
from redrafter_jax.decode.engine import Engine, Reply
from redrafter_jax.devices import processes

ADAPTS_FROM = 16  # replies to each row, from which on it pays to compile and time several ways to draft


class Batches:
    """The replies of a task, n to each prompt: number r is reply r % n to prompt r // n. ``generate`` decodes those that are not in
    ``file``. ``failed``: replies that end in an error."""

    def __init__(
        self,
        task: Task,
        loaded: pair.Pair,
        turns: Turns,
        seeds: Sequence[int],
        runs: Sequence[str],
        file: ReplyFile | None,
    ):
        self.task, self.pair, self.turns = task, loaded, turns
        self.seeds, self.runs, self.file = seeds, runs, file
        self.n, self.stopper = task.decoding.n, Stopper(loaded.tokenizer, task.decoding.stops, "--stop")
        self.engine = loaded.engine if task.decoding.kind == "speculative" else loaded.engine.autoregressive()
        self.streams = task.destination.shows_text and task.decoding.batch == 1
        self.totals, self.legend = terminal.Totals(), terminal.Legend(terminal.coloured(task.destination.no_color))
        self.numbers: Sequence[int] = range(len(turns))  # of the replies that this process decodes
        self.done = file.done if file else set()
        self.failed = file.failed if file else 0
        self.output: ReplyFile | None = None  # that the part of one of several processes will be merged into
        self.writes = processes.is_first()
        self._noted: set[int] = set()

    def begin_part(self, file: ReplyFile, numbers: Sequence[int]) -> None:
        """Restricts itself to these replies, less those that are done, and writes them into a file of its own."""
        self.output, self.file, self.numbers, self.writes = self.file, file, numbers, True
        self.done, self.failed = self.done | file.done, file.failed

    def generate(self) -> None:
        """Decodes every reply that is not done."""
        self._remember()
        left = [number for number in self.numbers if number not in self.done]
        count = len(self.numbers)
        hidden = self.task.destination.shows_text or count == 1 or not sys.stderr.isatty() or not processes.is_first()
        unit = "prompt" if self.n == 1 else "reply"
        with tqdm(total=count, initial=count - len(left), unit=unit, disable=hidden, file=sys.stderr) as bar:
            complete, unshown = {}, collections.deque(left)
            for number, reply in self._decoded(left):
                if self.file is not None and self.writes:
                    self.file.write([self.line_of(number, reply)])
                complete[number] = reply
                while unshown and unshown[0] in complete:
                    self._show(unshown[0], complete.pop(unshown.popleft()))
                self.failed += reply.finish_reason == "error"
                bar.update()
        if self.file is not None and self.writes:
            self.file.sort()
        if self.streams:
            self.legend.print()
        shared = count < len(self.turns)
        processes.say(f"{'process 0: ' if shared else ''}{self.totals}", sys.stderr)

    def lines(self, numbers: Sequence[int]) -> Iterator[dict]:
        """The lines of replies that are not done, as they become complete; nothing is written or shown."""
        return (self.line_of(number, reply) for number, reply in self._decoded(numbers))

    def _decoded(self, left: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        return self._one_by_one(left) if self.task.decoding.batch == 1 else self._in_rows(left)

    def _one_by_one(self, left: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        for batch in self.turns.batches(left, 1):
            open_stream = functools.partial(self._open, batch[0]) if self.streams else None
            replies = self.decode(self.engine, batch, open_stream)
            self.totals.add(replies)
            self.legend.see(replies)
            self.turns.answer(batch[0], self.text_of(batch[0], replies[0]))
            yield batch[0], replies[0]

    def _in_rows(self, left: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        """Each reply as it becomes complete. What a request gets depends on nothing beside it, so a run that is resumed gives
        what it would have given."""
        if not left:
            return
        turns, decoding = self.turns, self.task.decoding
        firsts = [self._request(turn.number) for turn in turns.all if not turn.question]
        longest = turns.longest(decoding.limits.new, self.engine.runner.context)
        adapts = len(left) >= ADAPTS_FROM * decoding.batch
        rows = StopScheduler(self.stopper, self.engine.scheduler(decoding.batch, firsts, longest, adapts=adapts))
        rows.scheduler.prepare()
        began, replies = time.perf_counter(), []
        for number, reply in refill.decode(rows, turns, left, self._request):
            self._note([number])
            replies.append(reply or self._empty(self.engine, number))
            turns.answer(number, self.text_of(number, replies[-1]))
            yield number, replies[-1]
        self.legend.see(replies)
        self.totals.add(replies, time.perf_counter() - began)

    def _request(self, number: int) -> Request:
        decoding, sample = self.task.decoding, self.turns.all[number].sample
        given = decoding.sampling, decoding.limits, [self.seeds[number]]
        return self.engine.requests([self.turns[number]], *given, samples=[sample])[0]

    def decode(
        self, engine: Engine, numbers: Sequence[int], open_stream: Callable[[], terminal.Stream] | None = None
    ) -> list[Reply]:
        """The replies with these numbers, as one batch. A question that cannot be asked any more gets an empty one."""
        asked = [number for number in numbers if self.turns[number]]
        self._note(numbers)
        ids, seeds = [self.turns[number] for number in asked], [self.seeds[number] for number in asked]
        samples = [self.turns.all[number].sample for number in asked]
        replies = decode(engine, self.task.decoding, self.stopper, ids, seeds, open_stream, samples) if asked else []
        found = dict(zip(asked, replies, strict=True))
        return [found[number] if number in found else self._empty(engine, number) for number in numbers]

    def _empty(self, engine: Engine, number: int) -> Reply:
        none = [0] * (engine.proposer.round.length + 1)
        return Reply([], [], "length", 0, none, 0.0, self.seeds[number], sample=self.turns.all[number].sample)

    def _note(self, numbers: Sequence[int]) -> None:
        """Says once where a conversation ends before its last question."""
        for number in self.turns.refused.keys() & set(numbers) - self._noted if self.writes else ():
            turn = self.turns.all[number]
            empty = "its reply and those to later turns are" if turn.question + 1 < len(turn.prompt.content) else "its reply is"
            print(f"note: {self.turns.refused[number]}; {empty} empty", file=sys.stderr)
            self._noted.add(number)

    def text_of(self, number: int, reply: Reply) -> str | None:
        """The text of the reply with this number; None without a tokenizer."""
        return self.stopper.text_of(self.turns[number], reply)

    def _show(self, number: int, reply: Reply) -> None:
        """On the screen, or as JSON."""
        if self.task.destination.json:
            print(json.dumps(self.line_of(number, reply)), flush=True)
        elif self.task.destination.shows_text and not self.streams:
            stream = self._open(number)
            stream.show(reply)
            stream.close()

    def line_of(self, number: int, reply: Reply) -> dict:
        """A reply as a JSON object."""
        return self.turns.all[number].label(line_of(self.runs[number], number, self.text_of(number, reply), reply))

    def _remember(self) -> None:
        """Of conversations that go on, the replies that are in files already."""
        for file in (self.file, self.output):
            for number, line in file.lines().items() if file is not None and self.turns.has_turns else ():
                self.turns.answer(number, line.get("text"))

    def _open(self, number: int) -> terminal.Stream:
        """Writes what stands before a reply: its number among several, and the prompt where a person reads along."""
        turn = self.turns.all[number]
        prompt = turn.prompt
        if len(self.turns) > 1:
            print(f"--- {turn.where}")
        if prompt.kind == "prompt" and (sys.stdout.isatty() or prompt.is_default):
            print(prompt.content, end="", flush=True)
        return open_stream(self.task, self.stopper, self.turns[number], self.legend.coloured)


def open_stream(task: Task, stopper: Stopper, prompt: list[int], coloured: bool) -> terminal.Stream:
    """Where a reply to this prompt is shown."""
    text = stopper.text(prompt, task.decoding.limits.min_new) if stopper.stops.strings else None
    return terminal.Stream(stopper.tokenizer, prompt, coloured, text)


def decode(
    engine: Engine,
    decoding: Decoding,
    stopper: Stopper,
    ids: Sequence[list[int]],
    seeds: Sequence[int],
    open_stream: Callable[[], terminal.Stream] | None,
    samples: Sequence[int] | None = None,
) -> list[Reply]:
    """One batch; a batch of one can be watched while it grows, in a stream that is opened once its programs are compiled."""
    rounds, stream = loop.ALL_ROUNDS if open_stream is None else None, None
    replies: list[Reply] = []
    given = (ids, decoding.sampling, decoding.limits, seeds, decoding.batch, rounds, samples)
    for progress in stopper.stream(engine, *given):
        replies = progress.replies
        if open_stream is not None:
            stream = stream or open_stream()
            stream.show(replies[0])
    if stream is not None:
        stream.close()
    return replies
