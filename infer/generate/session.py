"""What `infer.generate` does after its options are checked: load the pair, decode the prompts, pass the replies on.

Not here: batch by batch (`batches.py`), the files of several processes (`parts.py`), a conversation's turns (`chat.py`).
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence

import jax

from infer import adapting, failures, model_sampling, notes, pair, prompts, proposers, room, templates, terminal
from infer.generate import chat, checks, compare, hashes, parts, tuning
from infer.generate.batches import Batches, decode, open_stream
from infer.generate.task import Task
from infer.options import read_seeds
from infer.replies import Owner, ReplyFile
from infer.stopping import Stopper
from infer.text import load_tokenizer
from infer.turns import Turns
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, lock


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A task whose pair is found and fits it, before any weight is read. shape: of the head's search, None where no head drafts;
    lookup: None where nothing is looked up."""

    task: Task
    resolved: pair.Resolved
    shape: Shape | None
    lookup: Lookup | None
    tokenizer: object | None
    template: str | None = None  # that messages are written with; None: the tokenizer's, or Vicuna's where it has none

    @property
    def context(self) -> int:
        """Tokens of prompt and reply together at most."""
        return self.task.decoding.limits.length or self.resolved.target_config.max_position_embeddings

    def encode(self, prompt: prompts.Prompt) -> list[int]:
        """The ids of a prompt. Raises BadInput as `prompts.encode`."""
        how = self.template, self.task.decoding.chat_template_kwargs
        return prompts.encode(prompt, self.tokenizer, self.resolved.target_config.vocab_size, self.context, *how)

    def fill(self) -> pair.Pair:
        """The pair with its weights."""
        others = adapting.others(self.shape) if self.task.tuning.may_be_plain else ()
        ignore_eos = self.task.decoding.ignore_eos
        loaded = pair.fill(self.resolved, self.tokenizer, self.shape or Shape(), ignore_eos, self.lookup, others)
        is_read_by_a_program = self.task.destination.json and not sys.stdout.isatty()
        kept_in = jax.config.jax_compilation_cache_dir
        loaded.engine.runner.on_compile = functools.partial(terminal.compiling, not is_read_by_a_program, kept_in)
        return loaded


def prepare(task: Task, tokenizer: object | None = None) -> Prepared:
    """Finds the pair, and checks it and the task against each other. The tokenizer is read where it is not given.

    Raises:
      BadInput: something is missing, broken, or does not fit together.
    """
    models, decoding = task.models, task.decoding
    template = None if decoding.chat_template is None else templates.read(decoding.chat_template)
    formats = pair.number_formats(models.dtype, models.weights)
    with_head = models.has_head and decoding.kind != "autoregressive"
    found = pair.find(models.target, models.drafter, with_head, *formats, models.lora)
    lookup = proposers.lookup_of(decoding.lookup)
    shape = tuning.shape_of(decoding.beams, found, lookup, decoding.sampling.draws) if found.drafter else None
    resolved = pair.plan(found, models.mesh, decoding.batch, decoding.limits.new, proposers.drafted_length(shape, lookup))
    if decoding.own_sampling is not None:
        own, vocab_size = decoding.own_sampling, resolved.target_config.vocab_size
        sampling = model_sampling.read(resolved.target, vocab_size, decoding.sampling, own)
        processes.say(model_sampling.describe(sampling, own), sys.stderr)
        decoding = dataclasses.replace(decoding, sampling=sampling, own_sampling=None)
        task = dataclasses.replace(task, decoding=decoding)
    checks.against(decoding, resolved.target_config, shape, resolved.drafter_config)
    tokenizer = tokenizer or load_tokenizer(resolved.target)
    Stopper(tokenizer, decoding.stops, "--stop")
    return Prepared(task, resolved, shape, lookup, tokenizer, template)


def tune(prepared: Prepared, longest: int) -> Prepared:
    """With the settings that were measured for its pair, if there are any; ``longest``: tokens of the longest prompt."""
    task = tuning.apply(prepared.task, prepared.resolved, longest)
    return prepared if task is prepared.task else prepare(task, prepared.tokenizer)


def plan(task: Task, given: Sequence[prompts.Prompt]) -> tuple[Prepared, Turns, list[int], list[str]]:
    """The task with its pair and the settings that were measured for it, the replies that are asked for, of each prompt its seed,
    and the hash of each reply's line. Raises BadInput as `prepare` and `Turns`."""
    prepared = prepare(task)
    decoding = prepared.task.decoding
    turns = Turns(given, prepared.encode, decoding.n)
    prepared = tune(prepared, turns.longest(decoding.limits.new, prepared.context))
    seeds = read_seeds(prepared.task.decoding.seed, len(given))
    return prepared, turns, seeds, hashes.runs_of(prepared, turns, seeds)


def run(task: Task, given: Sequence[prompts.Prompt]) -> int:
    """Decodes the prompts; returns the exit code."""
    prepared, turns, seeds, runs = plan(task, given)
    task, decoding = prepared.task, prepared.task.decoding
    file = None if task.destination.file is None else ReplyFile(task.destination.file, Owner.of_runs(dict(enumerate(runs))))
    seen = json.dumps([runs, sorted(file.done) if file else []])
    what = "--prompts, --output, --settings (or infer.tune's file, which each host has; --settings none reads none), the pair"
    processes.check_same(seen, f"{what} or an option is not the same in all processes")
    if file is not None and file.done:
        processes.say(f"{len(file.done)} of {len(turns)} replies are in {file.path} already", sys.stderr)
        if len(file.done) == len(turns):
            return finish(file, runs)
    if not decoding.is_exact:
        processes.say("note: --acceptance typical changes the distribution of the text", sys.stderr)
    if decoding.kind == "compare" and decoding.is_exact and not decoding.sampling.same_text:
        processes.say("note: with --acceptance rejection the distribution is the target's, but drafts change the text", sys.stderr)
    note(prepared, any(map(prompts.uses_template, given)))
    check_room(prepared, turns)
    loaded = prepared.fill()
    if prepared.resolved.why is not None:
        processes.say(prepared.resolved.why, sys.stderr)
    batches = Batches(task, loaded, turns, [seeds[turn.index] for turn in turns.all], runs, file)
    if decoding.kind == "compare":
        return compare_both(batches, prepared.resolved)
    if processes.count() > 1 and not loaded.engine.mesh.is_multi_process:
        return exit_code(share_out(batches), len(turns))
    batches.generate()
    code = exit_code(batches.failed, len(turns))
    is_demonstration = given[0].is_default and decoding.kind == "speculative" and decoding.n == 1
    if is_demonstration and batches.streams and code == 0:
        processes.say("\nThe same without drafting, and both in turn for their speed:", sys.stderr)
        return compare_both(batches, prepared.resolved)
    return code


def finish(file: ReplyFile, runs: Sequence[str]) -> int:
    """All replies are there: removes what several processes left; returns the exit code."""
    if processes.is_first():
        parts.remove_parts(file.path, runs)
        file.begin()
    return exit_code(file.failed, len(runs))


def note(prepared: Prepared, uses_template: bool) -> None:
    """Says what a person should know of the pair, and where Vicuna's template stands in for one that is missing."""
    found = prepared.resolved
    variables = prepared.task.decoding.chat_template_kwargs if uses_template else None
    notes.say(found.target, [found.drafter], found.numbers, found.adapter, prepared.template, variables)
    is_missing = prepared.template is None and prepared.tokenizer is not None and not prepared.tokenizer.chat_template
    if is_missing and uses_template:
        processes.say("note: the tokenizer has no chat template; Vicuna's is used (--chat-template names another)", sys.stderr)


def check_room(prepared: Prepared, turns: Turns) -> None:
    """Raises BadInput where the cache of a batch does not fit beside the weights."""
    decoding, length = prepared.task.decoding, proposers.drafted_length(prepared.shape, prepared.lookup)
    new = min(decoding.limits.new, prepared.context)
    room.check(prepared.resolved, turns.longest(new, prepared.context), new, decoding.batch, length, refills=True)


def exit_code(failed: int, count: int) -> int:
    """1 where some of the replies ended in an error, which is said in one sentence; else 0."""
    if failed:
        processes.say(f"error: {failures.sentence(failed, count)}", sys.stderr)
    return 1 if failed else 0


def share_out(batches: Batches) -> int:
    """Decodes this process's share of the prompts, on its own devices, into a part of the output; the first process
    merges. Returns how many replies ended in an error, of all those that this process knows."""
    output, runs, index, count = batches.file, batches.runs, processes.index(), processes.count()
    shares = batches.turns.shares(batches.task.decoding.batch, count)
    own = [number for number in shares[index] if number not in output.done]
    part = parts.part(output.path, index, count)
    claims.check_file(part, "--output")
    with lock.file(part, "--output"):
        batches.begin_part(ReplyFile(part, Owner.of_runs(parts.runs_of(runs, own))), shares[index])
        batches.generate()
        processes.wait("the replies")
        if not processes.is_first():
            return batches.failed
        parts.merge(output.path, runs, shares)
    return ReplyFile(output.path, output.owner).failed


def compare_both(batches: Batches, resolved: pair.Resolved) -> int:
    """Prints the comparison; the exit code is 1 where an exact rule's tokens differ in float32, or a reply ended in an error, with
    which there is nothing to compare."""
    turns, decoding, as_json = batches.turns, batches.task.decoding, batches.task.destination.json
    result = compare.compare(batches.pair.engine, batches.decode, turns, decoding.batch, batches.text_of)
    failed = sum("error" in (fast.finish_reason, plain.finish_reason) for fast, plain in result.replies)
    if not failed:
        print(result.report(resolved.numbers), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        for index, (fast, plain) in enumerate(result.replies):
            line = batches.line_of(index, fast)
            line |= {"identical": fast.token_ids == plain.token_ids, "autoregressive_seconds": round(plain.seconds, 6)}
            print(json.dumps(line))
    if failed:
        return exit_code(failed, len(turns))
    return int(result.first_difference is not None and decoding.sampling.same_text and resolved.dtype == "float32")


def converse(task: Task) -> int:
    """The conversation: each turn streams, and ends with its closing line."""
    prepared = tune(prepare(task), longest=0)
    task = prepared.task
    if prepared.tokenizer is None:
        raise BadInput(f"--interactive needs text, but {prepared.resolved.target} has no tokenizer; use --prompts with token_ids")
    is_chat = bool(prepared.template or prepared.tokenizer.chat_template)
    note(prepared, is_chat)
    engine, tokenizer, coloured = prepared.fill().engine, prepared.tokenizer, terminal.coloured(task.destination.no_color)
    stopper, legend = Stopper(tokenizer, task.decoding.stops), terminal.Legend(coloured)

    def answer(prompt: prompts.Prompt, turn: int) -> str:
        ids, seed = prepared.encode(prompt), (task.decoding.seed + turn) % 2**32
        stream = functools.partial(open_stream, task, stopper, ids, coloured)
        replies = decode(engine, task.decoding, stopper, [ids], [seed], stream)
        totals = terminal.Totals()
        totals.add(replies)
        legend.see(replies)
        legend.print()
        print(totals, file=sys.stderr)
        exit_code(replies[0].finish_reason == "error", 1)
        return stopper.text_of(ids, replies[0]) or ""

    chat.converse(is_chat, answer)
    return 0
