"""What `infer.evaluate` does with methods and suites once its options are checked: load, prepare, compile, run.

Not here: decoding (`contest.py`), the result (`results.py`).
"""

import os
import sys
from collections.abc import Sequence

import jax

from infer import notes, pair, prompts, text, text_files
from infer.evaluate import contest, entrants, held_out, metrics, results
from infer.evaluate.checks import COMMAND, Asked
from infer.evaluate.contest import Terms
from infer.evaluate.entrants import Entrant, Nominee
from infer.terminal import counted
from infer.turns import Turns
from redrafter_jax.decode.request import Limits, require, wrong_for_context
from redrafter_jax.devices import placement

BUSY_SHARE = 0.5  # of the cores, that other processes keep busy before the command begins


def run(options, asked: Asked) -> dict:
    """Measures; the whole result, as JSON can hold it.

    Raises:
      BadInput: the target, a method, a suite and the machine do not fit together.
    """
    load = os.getloadavg()[0]
    formats = pair.number_formats(options.dtype, options.weights)
    sizes = options.mesh, options.batch_size, options.max_new_tokens
    entries = entrants.find(options.target, asked.methods, formats, *sizes, options.lora)
    first = entries[0].resolved
    tokenizer = text.load_tokenizer(first.target)
    terms = _terms(options, asked, entries, tokenizer)
    stream = None
    if options.text:
        stream = text_files.read_stream(held_out.files_of(options), first.target, first.target_config.vocab_size)
        held_out.check_memory(first.target_config, held_out.MIN_NEW_TOKENS, max(entry.length for entry in entries))
    _note(asked, tokenizer, first.why, load)
    is_chat = any(prompts.uses_template(prompt) for suite in asked.suites for prompt in suite.given)
    how = first.adapter, asked.template, asked.template_kwargs if is_chat else None
    notes.say(first.target, [entry.resolved.drafter for entry in entries], first.numbers, *how)
    field = entrants.fill(entries, tokenizer, options.ignore_eos)
    plain = next(entrant for entrant in field if entrant.method.is_plain)
    heats = [contest.prepare(suite, temperature, plain, terms) for suite in asked.suites for temperature in options.temperature]
    for sentence in results.refused(heats):
        print(f"note: {sentence}; it and those behind it are left out", file=sys.stderr)
    replies = counted(sum(len(batch) for heat in heats for batch in heat.batches), "reply")
    print(f"compiling for {counted(len(field), 'method')}, then {replies} of each in turn ...", file=sys.stderr, flush=True)
    contest.compile_all(field, heats, terms)
    contest.run(field, heats, terms)
    result = {
        "command": " ".join([COMMAND, *sys.argv[1:]]),  # stands first: `checks.check_output`
        "device": f"{jax.devices()[0].device_kind}, mesh {first.mesh[0]} x {first.mesh[1]}, jax {jax.__version__}",
        "load_average": round(load, 2),
        "dtype": first.dtype,
        "weights": first.target_config.weight_format,
        "target": (options.target or "the embedded target") + (f" with {options.lora}" if options.lora else ""),
        "target_parameters": placement.parameters_of(field[0].engine.target),
        "target_bytes": placement.bytes_of_target(first.target_config, first.dtype),
        "max_new_tokens": options.max_new_tokens,
        "batch_size": options.batch_size,
        "seed": options.seed,
    } | results.of(heats, field, plain, first.numbers)
    return result if stream is None else result | {"along_text": _along(stream, options.contexts, field)}


def _terms(options, asked: Asked, entries: Sequence[Nominee], tokenizer) -> Terms:
    """What is the same for all methods. Raises BadInput where a prompt or the limits do not fit the target, or memory."""
    target, new = entries[0].resolved.target_config, options.max_new_tokens
    context = target.max_position_embeddings
    require("--max-new-tokens", wrong_for_context(new, context))

    def encode(prompt: prompts.Prompt) -> list[int]:
        return prompts.encode(prompt, tokenizer, target.vocab_size, context, asked.template, asked.template_kwargs)

    longest = max(Turns(suite.given, encode).longest(new, context) for suite in asked.suites)
    entrants.check_room(entries, longest, new, options.batch_size)
    return Terms(Limits(new), options.batch_size, options.seed, encode, lambda prompt, ids: text.text_of(tokenizer, prompt, ids))


def _note(asked: Asked, tokenizer, why_mesh: str | None, load: float) -> None:
    """What a reader of the tables should know, on standard error."""
    is_missing = asked.template is None and tokenizer is not None and not tokenizer.chat_template
    if is_missing and any(prompts.uses_template(prompt) for suite in asked.suites for prompt in suite.given):
        print("note: the tokenizer has no chat template; Vicuna's is used (--chat-template names another)", file=sys.stderr)
    if why_mesh is not None:
        print(why_mesh, file=sys.stderr)
    if load > os.cpu_count() * BUSY_SHARE:
        print(f"note: this machine is busy (load average {load:.1f}), so times and speed-ups say little", file=sys.stderr)


def _along(stream, contexts: int, field: Sequence[Entrant]) -> dict:
    """τ of each method along held-out text, greedy: one round from each of the contexts."""
    places = metrics.Prompts(stream, contexts)
    taus = {}
    for entrant in field:
        with jax.set_mesh(entrant.engine.mesh):
            taus[entrant.name] = metrics.tokens_per_step_along_text(entrant.engine, places)
    return {"tokens": len(stream), "contexts": contexts, "tokens_per_step": taus}
