"""Which target a head was trained for: written into the head's config.json, and compared where the head is loaded with a target.

A head drafts what its target says, so with another target of the same shapes it still loads, and its drafts are refused one by
one. The description is cheap to make: of the weights it has a sample (`fingerprint.sample_weights`). Heads of other programs and
of earlier versions have none. Not here: shapes that do not fit (`config.check_pair`).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from redrafter_jax import families
from redrafter_jax.files import config as configs
from redrafter_jax.files import fingerprint, json_files, peft
from redrafter_jax.files.peft import StoredAdapter

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim")  # fmt: skip
TEMPLATE, VARIABLES = "chat_template", "chat_template_kwargs"


def describe(
    folder: pathlib.Path,
    dtype: str,
    what: str = "target",
    adapter: StoredAdapter | None = None,
    variables: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """A target, as the config.json of its head describes it.

    Args:
      dtype: the number format that its weights are used in, in words.
      adapter: what is added to its weights.
      variables: of the chat template, where conversations were written with it; None: there were none.

    Raises:
      BadInput: the folder is broken.
    """
    fields = configs.read_json(folder, what)
    sizes = families.read(fields, what)[1]
    found = {"model_type": fields["model_type"]} | {name: getattr(sizes, name) for name in SIZES}
    found |= {
        "tokenizer": fingerprint.hash_tokenizer(folder),
        "weights": [_weights(folder, adapter, what)],
        "dtype": dtype,
        TEMPLATE: _hash(fingerprint.read_chat_template(folder)),
    }
    return found | ({} if variables is None else {VARIABLES: dict(variables)})


def of_merged(description: dict[str, Any], source: pathlib.Path, merged: pathlib.Path | None, adapter: pathlib.Path | None) -> dict:
    """The description of a target that was trained beside its head: merged in one folder, or ``source`` with the adapter of
    another, which is the same; None: it is not written there."""
    weights = [fingerprint.sample_weights(merged, "target")] if merged is not None else []
    weights += [_weights(source, peft.read(adapter, "adapter"), "target")] if adapter is not None else []
    return {name: value for name, value in description.items() if name != "weights"} | ({"weights": weights} if weights else {})


def read(head: pathlib.Path) -> dict[str, Any] | None:
    """What a head says of its target; None: nothing."""
    found = (json_files.find_object(head / "config.json") or {}).get(configs.TRAINED_FOR_KEY)
    return found if isinstance(found, dict) else None


def compare(
    head: pathlib.Path,
    folder: pathlib.Path,
    dtype: str,
    what: str = "target",
    adapter: StoredAdapter | None = None,
    template: str | None = None,
    variables: Mapping[str, object] | None = None,
) -> str | None:
    """A sentence about how a target differs from the one that a head was trained for; None: in nothing, as far as the head says.

    Args:
      template: the source that messages are written with; None: the target's own chat template.
      variables: of the chat template; None: nothing is written with it, and it is not compared.
    """
    then = read(head)
    if then is None:
        return None
    now = describe(folder, dtype, what, adapter, variables) | ({} if template is None else {TEMPLATE: _hash(template)})
    differ = {name for name in then.keys() & now.keys() if then[name] != now[name]}
    differ -= {TEMPLATE, VARIABLES} if variables is None else set()
    parts = [f"{name} {then[name]} (this has {now[name]})" for name in ("model_type", *SIZES) if name in differ]
    parts += ["another tokenizer"] if "tokenizer" in differ else []
    is_listed = isinstance(then.get("weights"), list) and now["weights"][0] in then["weights"]
    parts += ["other weights"] if "weights" in differ and not is_listed else []
    is_stored_so = _stored(then.get("dtype")) == _stored(dtype)
    parts += [f"{then['dtype']} (this is {dtype})"] if "dtype" in differ and not is_stored_so else []
    parts += ["another chat template"] if TEMPLATE in differ else []
    if VARIABLES in differ:
        parts.append(f"{VARIABLES} {json.dumps(then[VARIABLES])} (these are {json.dumps(now[VARIABLES])})")
    if not parts:
        return None
    listed = ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"the head in {head} was trained for {listed}; acceptance may be low"


def _weights(folder: pathlib.Path, adapter: StoredAdapter | None, what: str) -> str:
    sample = fingerprint.sample_weights(folder, what)
    return sample if adapter is None else f"{sample}+{adapter.fingerprint}"


def _stored(numbers: object) -> str:
    """The eight bits that matrices are stored in, by a number format in words (`describe`); "" of floating-point numbers, whose
    width does not tell targets apart: bfloat16 rounds a state by less than eight bits do, and heads draft as well from those
    (docs/reports/quantised.md)."""
    return str(numbers).rpartition(" weights, ")[0]


def _hash(template: str | None) -> str | None:
    return None if template is None else fingerprint.hash_text(template)
