"""What `infer.generate` does after its options are checked: load the pair, decode the prompts, pass the replies on.

Not here: batch by batch (`batches.py`), the files of several processes (`parts.py`), a conversation's turns (`chat.py`).
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence

import jax

from infer import failures, pair, prompts, proposers, room, terminal
from infer.generate import chat, checks, compare, parts, tuning
from infer.generate.batches import Batches, decode
from infer.generate.task import Decoding, Task, WantedShape
from infer.options import check_tree, read_seeds
from infer.replies import Owner, ReplyFile, line_of, run_of
from infer.text import load_tokenizer, text_of
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, config, fingerprint, lock


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A task whose pair is found and fits it, before any weight is read. shape: of the head's search, None where no head drafts;
    lookup: None where nothing is looked up."""

    task: Task
    resolved: pair.Resolved
    shape: Shape | None
    lookup: Lookup | None
    tokenizer: object | None

    @property
    def context(self) -> int:
        """Tokens of prompt and reply together at most."""
        return self.task.decoding.limits.length or self.resolved.target_config.max_position_embeddings

    def encode(self, prompt: prompts.Prompt) -> list[int]:
        """The ids of a prompt. Raises BadInput as `prompts.encode`."""
        return prompts.encode(prompt, self.tokenizer, self.resolved.target_config.vocab_size, self.context)

    def fill(self) -> pair.Pair:
        """The pair with its weights."""
        loaded = pair.fill(self.resolved, self.tokenizer, self.shape or Shape(), self.task.decoding.ignore_eos, self.lookup)
        is_read_by_a_program = self.task.destination.json and not sys.stdout.isatty()
        loaded.engine.on_compile = functools.partial(terminal.compiling, not is_read_by_a_program)
        return loaded


def prepare(task: Task, tokenizer: object | None = None) -> Prepared:
    """Finds the pair, and checks it and the task against each other. The tokenizer is read where it is not given.

    Raises:
      BadInput: something is missing, broken, or does not fit together.
    """
    models, decoding = task.models, task.decoding
    dtype = models.dtype or pair.default_dtype(jax.default_backend())
    found = pair.find(models.target, models.drafter, models.has_head and decoding.kind != "autoregressive", dtype)
    lookup = proposers.lookup_of(decoding.lookup)
    shape = shape_of(decoding.beams, found, lookup) if found.drafter else None
    resolved = pair.plan(found, models.mesh, decoding.batch, decoding.limits.new, proposers.drafted_length(shape, lookup))
    checks.against(decoding, resolved.target_config, shape, resolved.drafter_config)
    return Prepared(task, resolved, shape, lookup, tokenizer or load_tokenizer(resolved.target))


def tune(prepared: Prepared, longest: int) -> Prepared:
    """With the settings that were measured for its pair, if there are any; ``longest``: tokens of the longest prompt."""
    task = tuning.apply(prepared.task, prepared.resolved, longest)
    return prepared if task is prepared.task else prepare(task, prepared.tokenizer)


def shape_of(beams: WantedShape, resolved: pair.Resolved, lookup: Lookup | None = None) -> Shape:
    """The shape that was asked for, completed by the device's defaults; its tree has room for a lookup's nodes."""
    default = pair.default_shape(jax.default_backend(), resolved.target_config, resolved.dtype)
    width, length = beams.width or default.width, beams.length or default.length
    check_tree(width, length, beams.budget, lookup.length if lookup else 0)
    return Shape(width, length, beams.budget, beams.tree, beams.draft_top_k)


def run(task: Task, given: Sequence[prompts.Prompt]) -> int:
    """Decodes the prompts; returns the exit code."""
    prepared = prepare(task)
    ids = list(map(prepared.encode, given))
    prepared = tune(prepared, max(map(len, ids)))
    task, decoding = prepared.task, prepared.task.decoding
    seeds = read_seeds(decoding.seed, len(ids))
    runs = runs_of(prepared, ids, seeds)
    file = None if task.destination.file is None else ReplyFile(task.destination.file, Owner.of_runs(dict(enumerate(runs))))
    seen = json.dumps([runs, sorted(file.done) if file else []])
    processes.check_same(seen, "--prompts, --output, the pair or an option is not the same in all processes")
    if file is not None and file.done:
        processes.say(f"{len(file.done)} of {len(ids)} replies are in {file.path} already", sys.stderr)
        if len(file.done) == len(ids):
            return finish(file, runs)
    if not decoding.is_exact:
        processes.say("note: --acceptance typical changes the distribution of the text", sys.stderr)
    check_room(prepared, ids)
    loaded = prepared.fill()
    if prepared.resolved.why is not None:
        processes.say(prepared.resolved.why, sys.stderr)
    batches = Batches(task, loaded, given, ids, seeds, runs, file)
    if decoding.kind == "compare":
        return compare_both(batches, prepared.resolved.dtype)
    if processes.count() > 1 and not loaded.engine.mesh.is_multi_process:
        return exit_code(share_out(batches), len(ids))
    batches.generate()
    code = exit_code(batches.failed, len(ids))
    is_demonstration = given[0].is_default and decoding.kind == "speculative"
    if is_demonstration and batches.streams and code == 0:
        return compare_both(batches, prepared.resolved.dtype)
    return code


def finish(file: ReplyFile, runs: Sequence[str]) -> int:
    """All replies are there: removes what several processes left; returns the exit code."""
    if processes.is_first():
        parts.remove_parts(file.path, runs)
        file.begin()
    return exit_code(file.failed, len(runs))


def check_room(prepared: Prepared, ids: Sequence[list[int]]) -> None:
    """Raises BadInput where the cache of a batch does not fit beside the weights."""
    decoding, length = prepared.task.decoding, proposers.drafted_length(prepared.shape, prepared.lookup)
    new = min(decoding.limits.new, prepared.context)
    room.check(prepared.resolved, max(map(len, ids)), new, decoding.batch, length)


def exit_code(failed: int, count: int) -> int:
    """1 where some of the replies ended in an error, which is said in one sentence; else 0."""
    if failed:
        processes.say(f"error: {failures.sentence(failed, count)}", sys.stderr)
    return 1 if failed else 0


def runs_of(prepared: Prepared, ids: Sequence[list[int]], seeds: Sequence[int]) -> list[str]:
    """The hash that each line of the output carries: of all that decides the reply, and of the head and shape behind its
    figures."""
    destination, resolved = prepared.task.destination, prepared.resolved
    if destination.shows_text:
        return [""] * len(ids)  # there are no lines, and large files take long to read
    decoding = prepared.task.decoding
    stops = [] if decoding.ignore_eos else sorted(config.stop_ids(resolved.target, prepared.tokenizer, "--target"))
    models = [fingerprint.fingerprint(resolved.target), fingerprint.fingerprint(resolved.drafter), str(prepared.shape)]
    models += [] if prepared.lookup is None else [str(prepared.lookup)]  # as in lines of earlier versions
    common = run_of(decides_text(decoding, resolved), stops, models)
    return [run_of(common, prompt, seed) for prompt, seed in zip(ids, seeds, strict=True)]


def decides_text(decoding: Decoding, resolved: pair.Resolved) -> dict:
    """The settings that decide a text, by the names of their options: they are part of a line's hash."""
    sampling, limits = decoding.sampling, decoding.limits
    settings = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "acceptance": sampling.rule,
        "max_new_tokens": limits.new,
        "max_length": limits.length or None,
        "ignore_eos": decoding.ignore_eos,
        "dtype": resolved.dtype,
        "decoding": decoding.kind,
    }
    if resolved.dtype != "float32":  # it rounds differently in another batch, or on another mesh
        settings |= {"batch_size": decoding.batch, "mesh": list(resolved.mesh)}
    return settings


def share_out(batches: Batches) -> int:
    """Decodes this process's share of the prompts, on its own devices, into a part of the output; the first process
    merges. Returns how many replies ended in an error, of all those that this process knows."""
    output, runs, index, count = batches.file, batches.runs, processes.index(), processes.count()
    shares = parts.shares(len(batches.ids), batches.task.decoding.batch, count)
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


def compare_both(batches: Batches, dtype: str) -> int:
    """Prints the comparison; the exit code is 1 where an exact rule's tokens differ in float32, or a reply ended in an error, with
    which there is nothing to compare."""
    ids, decoding, as_json = batches.ids, batches.task.decoding, batches.task.destination.json
    result = compare.compare(batches.pair.engine, ids, decoding.sampling, decoding.limits, batches.seeds, decoding.batch)
    failed = sum("error" in (fast.finish_reason, plain.finish_reason) for fast, plain in result.replies)
    if not failed:
        print(result.report(dtype), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        for index, (fast, plain) in enumerate(result.replies):
            line = line_of(batches.runs[index], index, text_of(batches.pair.tokenizer, ids[index], fast.token_ids), fast)
            line |= {"identical": fast.token_ids == plain.token_ids, "autoregressive_seconds": round(plain.seconds, 6)}
            print(json.dumps(line))
    if failed:
        return exit_code(failed, len(ids))
    return int(result.first_difference is not None and decoding.is_exact and dtype == "float32")


def converse(task: Task) -> int:
    """The conversation: each turn streams, and ends with its closing line."""
    prepared = tune(prepare(task), longest=0)
    task = prepared.task
    if prepared.tokenizer is None:
        raise BadInput(f"--interactive needs text, but {prepared.resolved.target} has no tokenizer; use --prompts with token_ids")
    engine, tokenizer = prepared.fill().engine, prepared.tokenizer

    def answer(prompt: prompts.Prompt, turn: int) -> str:
        ids = prepared.encode(prompt)
        compiled, coloured = engine.compile_seconds, terminal.coloured(task.destination.no_color)
        open_stream = functools.partial(terminal.Stream, tokenizer, ids, coloured)
        replies = decode(engine, task.decoding, [ids], [(task.decoding.seed + turn) % 2**32], open_stream)
        totals = terminal.Totals()
        totals.add(replies)
        totals.compile_seconds = engine.compile_seconds - compiled
        print(totals, file=sys.stderr)
        exit_code(replies[0].finish_reason == "error", 1)
        return text_of(tokenizer, ids, replies[0].token_ids) or ""

    chat.converse(tokenizer, answer)
    return 0
