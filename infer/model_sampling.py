"""How a model's own generation_config.json would sample, for `--sampling model`. Nothing here starts JAX."""

import dataclasses
import pathlib
from collections.abc import Sequence

from redrafter_jax.decode.request import Sampling
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.files import json_files

FILE = "generation_config.json"
SUBJECT = "--sampling model"
INSTEAD = "give --temperature, --top-k and --top-p yourself"
TOP_K = 50  # of transformers 5 (`GenerationConfig._get_default_generation_params`), where the file says nothing of it, or null
# Settings of transformers that change which token is chosen, and the values that leave it alone.
NEUTRAL = {
    "temperature": (1, None),
    "top_k": (0, -1, None),
    "top_p": (1, None),
    "repetition_penalty": (1, None),
    "min_p": (0, None),
    "typical_p": (1, None),
    "epsilon_cutoff": (0, None),
    "eta_cutoff": (0, None),
    "no_repeat_ngram_size": (0, None),
    "encoder_no_repeat_ngram_size": (0, None),
    "encoder_repetition_penalty": (1, None),
    "num_beams": (1, None),
    "penalty_alpha": (0, None),
    "guidance_scale": (1, None),
    "bad_words_ids": ([], None),
    "sequence_bias": ({}, None),
    "suppress_tokens": ([], None),
    "begin_suppress_tokens": ([], None),
    "exponential_decay_length_penalty": (None,),
}


def read(folder: pathlib.Path, vocab_size: int, given: Sampling, own: Sequence[str]) -> Sampling:
    """The sampling that the target's folder names, as transformers reads it: greedy where it does not set `do_sample`, and where it
    does among the 50 likeliest tokens unless it sets `top_k` (0 is off), of a smaller vocabulary among all.

    Args:
      given: what the options say, whose rule is taken, and of whose other fields those in ``own``.

    Raises:
      BadInput: there is no such file, or it asks for what this package does not do.
    """
    found = json_files.find_object(folder / FILE)
    if found is None:
        raise BadInput(f"{SUBJECT}: {folder} has no {FILE}; {INSTEAD}")
    asked = {name: found[name] for name, neutral in NEUTRAL.items() if found.get(name) not in neutral}
    known = {field.name for field in dataclasses.fields(Sampling)}
    strange = [name for name in asked if name not in known]
    if strange:
        what = f"{strange[0]} {shown(asked[strange[0]])}"
        raise BadInput(f"{SUBJECT}: {FILE} asks for {what}, which is not supported; {INSTEAD}")
    if not found.get("do_sample"):
        asked = {name: value for name, value in asked.items() if name not in ("temperature", "top_k", "top_p")}
    else:
        unsaid = {"top_k": TOP_K} if found.get("top_k") is None else {}
        asked = {"temperature": 1.0} | unsaid | asked
    try:
        sampling = dataclasses.replace(given, **{name: value for name, value in asked.items() if name not in own})
    except BadInput as error:
        raise BadInput(f"{SUBJECT}: {FILE}: {error}") from None
    return sampling if "top_k" in own else dataclasses.replace(sampling, top_k=min(sampling.top_k, vocab_size))


def describe(sampling: Sampling, own: Sequence[str] = ()) -> str:
    """What is said of it on the screen; ``own``: as of `read`."""
    fields = {field.name: getattr(sampling, field.name) for field in dataclasses.fields(sampling) if field.name in NEUTRAL}
    fields.pop("temperature")
    named = [f"{name.replace('_', '-')} {value:g}" for name, value in fields.items() if value not in NEUTRAL[name]]
    greedy = "greedy" if "temperature" in own else "greedy (no do_sample)"
    first = f"temperature {sampling.temperature:g}" if sampling.temperature else greedy
    return f"sampling by the model's {FILE}: {', '.join([first, *named])}"
