"""What `infer.evaluate` does with methods and suites once its options are checked: load, prepare, compile, run; and the result."""

import sys
from collections.abc import Callable, Sequence

import jax

from infer import pair, prompts, text
from infer.evaluate import contest, entrants, figures, held_out, metrics
from infer.evaluate.checks import COMMAND, Asked
from infer.evaluate.contest import Heat, Terms
from infer.evaluate.entrants import Entrant
from infer.turns import Turns
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.request import Limits, require, wrong_for_context
from redrafter_jax.devices import placement


def run(options, asked: Asked) -> dict:
    """Measures; the whole result, as JSON can hold it.

    Raises:
      BadInput: the target, a method, a suite and the machine do not fit together.
    """
    dtype = options.dtype or pair.default_dtype(jax.default_backend())
    rows, new = options.batch_size, options.max_new_tokens
    entries = entrants.find(options.target, asked.methods, dtype, options.mesh, rows, new)
    first = entries[0].resolved
    context = first.target_config.max_position_embeddings
    require("--max-new-tokens", wrong_for_context(new, context))
    tokenizer = text.load_tokenizer(first.target)

    def encode(prompt: prompts.Prompt) -> list[int]:
        return prompts.encode(prompt, tokenizer, first.target_config.vocab_size, context, asked.template)

    longest = max(Turns(suite.given, encode).longest(new, context) for suite in asked.suites)
    entrants.check_room(entries, longest, new, rows)
    stream = None
    if options.text:
        stream = held_out.read_stream(held_out.files_of(options), first.target, first.target_config.vocab_size)
        held_out.check_memory(first.target_config, held_out.MIN_NEW_TOKENS, max(entry.length for entry in entries))
    _note_template(asked, tokenizer)
    field = entrants.fill(entries, tokenizer, options.ignore_eos)
    if first.why is not None:
        print(first.why, file=sys.stderr)
    terms = Terms(Limits(new), rows, options.seed, encode, lambda prompt, ids: text.text_of(tokenizer, prompt, ids))
    plain = next(entrant for entrant in field if entrant.method.is_plain)
    heats = [contest.prepare(suite, temperature, plain, terms) for suite in asked.suites for temperature in options.temperature]
    for sentence in _refused(heats):
        print(f"note: {sentence}; it and those behind it are left out", file=sys.stderr)
    contest.compile_all(field, heats, terms)
    contest.run(field, heats, terms)
    target = field[0].engine.target
    result = {
        "command": " ".join([COMMAND, *sys.argv[1:]]),  # stands first: `checks.check_output`
        "device": f"{jax.devices()[0].device_kind}, mesh {first.mesh[0]} x {first.mesh[1]}, jax {jax.__version__}",
        "dtype": dtype,
        "target": options.target or "the embedded target",
        "target_parameters": sum(leaf.size for leaf in jax.tree.leaves(target)),
        "target_bytes": placement.bytes_of_target(first.target_config, dtype),
        "max_new_tokens": new,
        "batch_size": rows,
        "seed": options.seed,
        "methods": [entrant.described() for entrant in field],
        "rows": [row for heat in heats for row in _rows(heat, field, plain)],
        "refused": _refused(heats),
        "differences": _differences(heats, field, plain, dtype),
        "replies": [line for heat in heats for entrant in field for line in _lines(heat, entrant, plain)],
    }
    if stream is not None:
        result["along_text"] = _along(stream, options.contexts, field)
    return result


def _note_template(asked: Asked, tokenizer) -> None:
    is_missing = asked.template is None and tokenizer is not None and not tokenizer.chat_template
    if is_missing and any(prompts.uses_template(prompt) for suite in asked.suites for prompt in suite.given):
        print("note: the tokenizer has no chat template; Vicuna's is used (--chat-template names another)", file=sys.stderr)


def _refused(heats: Sequence[Heat]) -> list[str]:
    """Why questions were left out, each said once."""
    return list(dict.fromkeys(sentence for heat in heats for sentence in heat.turns.refused.values()))


def _rows(heat: Heat, field: Sequence[Entrant], plain: Entrant) -> list[dict]:
    """A row of figures for each method, of each category and of all (None)."""
    categories: list[str | None] = [*heat.suite.distinct, None]
    found = []
    for category in categories:
        at = [place for place, group in enumerate(heat.groups) if category in (None, group.category)]
        theirs = [heat.works[plain.name][place] for place in at]
        for entrant in field:
            own = [heat.works[entrant.name][place] for place in at]
            sampling = entrant.sampling(heat.temperature)
            place = {"suite": heat.suite.name, "temperature": heat.temperature, "category": category}
            place |= {"method": entrant.name, "kind": entrant.method.kind}
            found.append(place | {"same_text": sampling.same_text, "exact": sampling.is_exact} | figures.row(own, theirs))
    return found


def _differences(heats: Sequence[Heat], field: Sequence[Entrant], plain: Entrant, dtype: str) -> list[str]:
    """A sentence for each method whose text has to be plain decoding's and is not."""
    found = []
    for heat, entrant in ((heat, entrant) for heat in heats for entrant in field):
        if entrant.sampling(heat.temperature).same_text:
            found += _first(heat, entrant, plain, lambda turn, at, name=entrant.name, t=heat.temperature: (
                f"{name} at temperature {t:g} differs from plain decoding at {turn.where} from new token {at} on ({dtype})"
            ))  # fmt: skip
    return found


def _first(heat: Heat, entrant: Entrant, plain: Entrant, sentence: Callable) -> list[str]:
    theirs = heat.replies[plain.name]
    for number, reply in sorted(heat.replies[entrant.name].items()):
        at = figures.first_difference(reply.token_ids, theirs[number].token_ids)
        if at is not None:
            return [sentence(heat.turns.all[number], at)]
    return []


def _lines(heat: Heat, entrant: Entrant, plain: Entrant) -> list[dict]:
    """A line for each reply of a method."""
    return [_line(heat, number, reply, entrant, plain) for number, reply in sorted(heat.replies[entrant.name].items())]


def _line(heat: Heat, number: int, reply: Reply, entrant: Entrant, plain: Entrant) -> dict:
    turn = heat.turns.all[number]
    line = {"suite": heat.suite.name, "temperature": heat.temperature, "method": entrant.name}
    line["category"] = heat.suite.categories[turn.index]
    return turn.label(line) | {
        "tokens": len(reply.token_ids),
        "finish_reason": reply.finish_reason,
        "rounds": reply.rounds,
        "tokens_per_step": reply.tokens_per_step,
        "accepted_histogram": reply.accepted_histogram,
        "metrics": reply.metrics,
        "seconds": round(reply.seconds, 6),
        "first_token_seconds": round(reply.first_token_seconds, 6),
        "seed": reply.seed,
        "identical": reply.token_ids == heat.replies[plain.name][number].token_ids,
    }


def _along(stream, contexts: int, field: Sequence[Entrant]) -> dict:
    """τ of each method along held-out text, greedy: one round from each of the contexts."""
    places = metrics.Prompts(stream, contexts)
    taus = {}
    for entrant in field:
        with jax.set_mesh(entrant.engine.mesh):
            taus[entrant.name] = metrics.tokens_per_step_along_text(entrant.engine, places)
    return {"tokens": len(stream), "contexts": contexts, "tokens_per_step": taus}
