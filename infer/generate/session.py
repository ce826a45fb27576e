"""What `infer.generate` does once its options are good: load the pair, decode the prompts, hand the replies to where
they go. Each way of decoding is one short function.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence

import jax
from tqdm import tqdm

from infer import failures, folders, pair, programs, prompts, room, terminal
from infer import replies as output
from infer.generate import chat, checks, compare
from redrafter_jax.decode.engine import Engine, Limits, Reply, Sampling
from redrafter_jax.decode.loop import Shape
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, config, fingerprint, lock

ALL_ROUNDS = 1 << 30
DECIDES_TEXT = ["temperature", "top_k", "top_p", "acceptance", "max_new_tokens", "max_length", "ignore_eos", "dtype", "decoding"]


def run(options, given: list[prompts.Prompt]) -> int:
    """Everything after the checks that need no model; returns the exit code."""
    programs.use_cache(options.cache_dir)
    options = dataclasses.replace(options, dtype=options.dtype or pair.default_dtype(jax.default_backend()))
    speculative, rows = options.decoding != "autoregressive", options.batch_size
    plan = pair.plan(options.target, options.drafter, speculative, options.dtype, options.mesh, rows, options.max_new_tokens)
    shape = shape_of(options, plan) if plan.drafter else None
    checks.against(options, plan.target_config, shape, plan.drafter_config)
    tokenizer = folders.tokenizer(plan.target)
    if options.interactive:
        return converse(options, plan, tokenizer, shape)
    vocabulary = plan.target_config.vocab_size
    ids = [prompts.encode(prompt, tokenizer, vocabulary, context(options, plan)) for prompt in given]
    seeds = checks.seeds(options, len(ids))
    runs = runs_of(options, plan, shape, tokenizer, ids, seeds)
    lines = output.begun(options.output, runs) if options.output is not None else None
    seen = json.dumps([runs, lines.done if lines else 0])
    processes.agree(seen, "--prompts, --output, the pair or an option is not the same in all processes")
    if lines is not None and lines.done:
        processes.say(f"{lines.done} of {len(ids)} replies are in {options.output} already", sys.stderr)
        if lines.done == len(ids):
            return exit_code(lines.failed, len(ids))
    if not is_exact(options):
        processes.say(f"note: --acceptance {options.acceptance} changes the distribution of the text", sys.stderr)
    room.check(plan, max(map(len, ids)), min(options.max_new_tokens, context(options, plan)), rows, shape.length if shape else 0)
    loaded = pair.fill(plan, tokenizer, shape or Shape(), options.ignore_eos)
    if plan.why is not None:
        processes.say(plan.why, sys.stderr)
    if options.decoding == "compare":
        return compare_both(options, loaded, ids, seeds, runs)
    session = Session(options, loaded, given, ids, seeds, runs, lines)
    if processes.count() > 1 and not loaded.engine.mesh.is_multi_process:
        return exit_code(share_out(session), len(ids))
    session.generate()
    code = exit_code(session.failed, len(ids))
    is_demonstration = given[0].where == "the default prompt" and options.decoding == "speculative"
    if is_demonstration and session.streams and code == 0:
        return compare_both(options, loaded, ids, seeds, runs)
    return code


def shape_of(options, plan: pair.Plan) -> Shape:
    default = pair.default_shape(jax.default_backend(), plan.target_config, plan.dtype)
    width, length = options.beam_width or default.width, options.beam_length or default.length
    checks.nodes(width, length, options.node_budget or 0)
    return Shape(width, length, options.node_budget or 0, options.tree, options.draft_top_k)


def is_exact(options) -> bool:
    """Whether the text has the target's own distribution."""
    return sampling_of(options).is_exact


def context(options, plan: pair.Plan) -> int:
    return options.max_length or plan.target_config.max_position_embeddings


def sampling_of(options) -> Sampling:
    return Sampling(options.temperature, options.top_k, options.top_p, options.acceptance)


def limits_of(options) -> Limits:
    return Limits(options.max_new_tokens, options.max_length or 0)


def exit_code(failed: int, count: int) -> int:
    """1 where some of the replies ended in an error, which is said in one sentence; else 0."""
    if failed:
        processes.say(f"error: {failures.sentence(failed, count)}", sys.stderr)
    return 1 if failed else 0


def runs_of(options, plan: pair.Plan, shape: Shape | None, tokenizer, ids: Sequence, seeds: list[int]) -> list[str]:
    """What each line of the output carries: all that decides the reply, and the head and shape that its figures are of."""
    if options.output is None and not options.json:
        return [""] * len(ids)  # there are no lines, and large files take long to read
    settings = {name: getattr(options, name) for name in DECIDES_TEXT}
    if options.dtype != "float32":  # it rounds differently in another batch, or on another mesh
        settings |= {"batch_size": options.batch_size, "mesh": list(plan.mesh)}
    stops = [] if options.ignore_eos else sorted(config.stop_ids(plan.target, tokenizer))
    models = [fingerprint.fingerprint(plan.target), fingerprint.fingerprint(plan.drafter), str(shape)]
    common = output.run_of(settings, stops, models)
    return [output.run_of(common, prompt, seed) for prompt, seed in zip(ids, seeds, strict=True)]


def share_out(session: "Session") -> int:
    """Decodes this process's share of the prompts, on its own devices, into a part of the output; the first process
    merges. Returns how many replies ended in an error, of all those that this process knows."""
    options, index, count = session.options, processes.index(), processes.count()
    shares = output.shares(len(session.ids), options.batch_size, count)
    kept, size = session.lines.done, options.batch_size
    session.numbers = [number for number in shares[index] if number >= kept - kept % size]  # whole batches
    own = [number for number in session.numbers if number >= kept]
    part = output.part(options.output, index, count)
    claims.check_file(part, "--output")
    with lock.file(part, "--output"):
        session.lines = output.Lines(part, [session.runs[number] for number in own])
        session.done = len(session.numbers) - len(own) + session.lines.done
        session.failed = session.lines.failed
        session.writes = True
        session.generate()
        processes.wait("the replies")
        if not processes.is_first():
            return session.failed
        output.merge(options.output, session.runs, shares)
    return output.Lines(options.output, session.runs).failed


class Session:
    """The prompts of one command, decoded batch by batch; ``generate`` is all there is to call."""

    def __init__(self, options, loaded: pair.Pair, given, ids, seeds, runs, lines: output.Lines | None):
        self.options, self.tokenizer, self.given, self.ids = options, loaded.tokenizer, given, ids
        self.seeds, self.runs, self.lines = seeds, runs, lines
        self.engine = loaded.engine if options.decoding == "speculative" else loaded.engine.autoregressive()
        self.shows_text = not options.json and lines is None
        self.streams = self.shows_text and options.batch_size == 1
        self.totals = terminal.Totals()
        self.numbers: Sequence[int] = range(len(ids))  # of the prompts that this session decodes
        self.writes = processes.is_first()
        self.done = lines.done if lines else 0  # of these, from the first on, those that are written already
        self.failed = lines.failed if lines else 0  # of the replies, those that ended in an error

    def generate(self) -> None:
        count, size, done = len(self.numbers), self.options.batch_size, self.done
        first = done - done % size if done < count else count  # a batch that was cut off is decoded as it was, whole
        hidden = self.shows_text or count == 1 or not sys.stderr.isatty() or not processes.is_first()
        with tqdm(total=count, initial=first, unit="prompt", disable=hidden, file=sys.stderr) as bar:
            for start in range(first, count, size):
                numbers = self.numbers[start : start + size]
                replies = self._batch(numbers)
                left = max(0, done - start)
                for index, reply in zip(numbers[left:], replies[left:], strict=True):
                    self._hand_out(index, reply)
                    self.failed += reply.finish_reason == "error"
                bar.update(len(numbers))
        self.totals.compile_seconds = self.engine.compile_seconds
        shared = count < len(self.ids)
        processes.say(f"{'process 0: ' if shared else ''}{self.totals}", sys.stderr)

    def _batch(self, numbers: Sequence[int]) -> list[Reply]:
        stream = self._open(numbers[0]) if self.streams else None
        ids, seeds = [self.ids[i] for i in numbers], [self.seeds[i] for i in numbers]
        replies = decode(self.engine, self.options, ids, seeds, stream)
        self.totals.add(replies)
        return replies

    def _hand_out(self, index: int, reply: Reply) -> None:
        if self.shows_text:
            if not self.streams:
                stream = self._open(index)
                stream.show(reply)
                stream.close()
            return
        text = terminal.text_of(self.tokenizer, self.ids[index], reply.token_ids)
        line = output.line(self.runs[index], index, text, reply)
        if self.lines is not None and self.writes:
            self.lines.write(line)
        if self.options.json:
            print(json.dumps(line), flush=True)

    def _open(self, index: int) -> terminal.Stream:
        """Writes what stands before a reply: its number among several, and the prompt where a person reads along."""
        prompt = self.given[index]
        if len(self.ids) > 1:
            print(f"--- {prompt.where}")
        if prompt.kind == "prompt" and (sys.stdout.isatty() or prompt.where == "the default prompt"):
            print(prompt.content, end="", flush=True)
        return terminal.Stream(self.tokenizer, self.ids[index], terminal.coloured(self.options.no_color))


def decode(engine: Engine, options, ids, seeds, stream: terminal.Stream | None) -> list[Reply]:
    """One batch; a batch of one can be watched while it grows."""
    rounds = ALL_ROUNDS if stream is None else None
    replies: list[Reply] = []
    for progress in engine.stream(ids, sampling_of(options), limits_of(options), seeds, options.batch_size, rounds):
        replies = progress.replies
        if stream is not None:
            stream.show(replies[0])
    if stream is not None:
        stream.close()
    return replies


def compare_both(options, loaded: pair.Pair, ids, seeds, runs) -> int:
    """Prints the comparison; the exit code is 1 where an exact rule's tokens differ in float32, or a reply ended in an error, with
    which there is nothing to compare."""
    result = compare.compare(loaded.engine, ids, sampling_of(options), limits_of(options), seeds, options.batch_size)
    failed = sum("error" in (fast.finish_reason, plain.finish_reason) for fast, plain in result.replies)
    if not failed:
        print(result.report(options.dtype), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        for index, (fast, plain) in enumerate(result.replies):
            line = output.line(runs[index], index, terminal.text_of(loaded.tokenizer, ids[index], fast.token_ids), fast)
            line |= {"identical": fast.token_ids == plain.token_ids, "autoregressive_seconds": round(plain.seconds, 6)}
            print(json.dumps(line))
    if failed:
        return exit_code(failed, len(ids))
    return int(result.first_difference is not None and is_exact(options) and options.dtype == "float32")


def converse(options, plan: pair.Plan, tokenizer, shape: Shape | None) -> int:
    """The conversation: each turn streams, and ends with its closing line."""
    if tokenizer is None:
        raise BadInput(f"--interactive needs text, but {plan.target} has no tokenizer; use --prompts with token_ids")
    loaded = pair.fill(plan, tokenizer, shape or Shape(), options.ignore_eos)
    engine = loaded.engine

    def answer(prompt: prompts.Prompt, turn: int) -> str:
        ids = prompts.encode(prompt, tokenizer, plan.target_config.vocab_size, context(options, plan))
        stream = terminal.Stream(tokenizer, ids, terminal.coloured(options.no_color))
        compiled = engine.compile_seconds
        replies = decode(engine, options, [ids], [(options.seed + turn) % 2**32], stream)
        totals = terminal.Totals()
        totals.add(replies)
        totals.compile_seconds = engine.compile_seconds - compiled
        print(totals, file=sys.stderr)
        exit_code(replies[0].finish_reason == "error", 1)
        return terminal.text_of(tokenizer, ids, replies[0].token_ids) or ""

    chat.converse(tokenizer, answer)
    return 0
