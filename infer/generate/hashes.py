"""The hash that each line of an output carries: by it a run that is resumed knows which replies are its own.

Everything that decides a reply is in it, and the head and shape behind its figures.
"""

from collections.abc import Sequence

from infer import pair
from infer.generate.task import Decoding
from infer.replies import run_of
from infer.turns import Turns
from redrafter_jax.files import config, fingerprint


def runs_of(prepared, turns: Turns, seeds: Sequence[int]) -> list[str]:
    """The hash of each turn's line; ``prepared``: the task and its pair (`session.Prepared`)."""
    destination, resolved = prepared.task.destination, prepared.resolved
    if destination.shows_text:
        return [""] * len(turns)  # there are no lines, and large files take long to read
    decoding = prepared.task.decoding
    stops = [] if decoding.ignore_eos else sorted(config.stop_ids(resolved.target, prepared.tokenizer, "--target"))
    models = [resolved.target_fingerprint, fingerprint.fingerprint(resolved.drafter), str(prepared.shape)]
    models += [] if prepared.lookup is None else [str(prepared.lookup)]  # as in lines of earlier versions
    common = run_of(decides_text(decoding, resolved), stops, models)
    return [run_of(common, *turns.name(turn, prepared.template), *turns.seed_and_sample(turn, seeds)) for turn in turns.all]


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
    settings |= {name: value for name, value in later_settings(decoding).items() if value}
    settings |= {"weights": resolved.target_config.weight_format} if resolved.target_config.weight_format else {}
    if resolved.dtype != "float32":  # it rounds differently in another batch, or on another mesh
        settings |= {"batch_size": decoding.batch, "mesh": list(resolved.mesh)}
        settings |= {"n": decoding.n} if decoding.n > 1 else {}
    return settings


def later_settings(decoding: Decoding) -> dict:
    """Those that earlier versions did not know: an output of theirs, for which they are off, can still be resumed."""
    sampling, stops = decoding.sampling, decoding.stops
    return {
        "min_new_tokens": decoding.limits.min_new,
        "stop": list(stops.strings),
        "include_stop": stops.include,
        "repetition_penalty": sampling.repetition_penalty if sampling.repetition_penalty != 1 else None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": sampling.logprobs,
        "chat_template_kwargs": dict(decoding.chat_template_kwargs),
    }
