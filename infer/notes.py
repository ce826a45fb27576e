"""What a person should know of a target before it decodes: that it is not the original, or not the one a head was trained for.

One line each, on standard error. Not here: how targets are compared (`redrafter_jax/files/provenance.py`).
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence

from redrafter_jax.devices import processes
from redrafter_jax.errors import shown
from redrafter_jax.files import adapters, provenance
from redrafter_jax.files.peft import StoredAdapter


def say(
    target: pathlib.Path,
    heads: Sequence[pathlib.Path | None],
    dtype: str,
    adapter: StoredAdapter | None = None,
    template: str | None = None,
    variables: Mapping[str, object] | None = None,
) -> None:
    """Says what is to be said of a target and of the folders that draft for it (None: nothing there).

    Args:
      template, variables: that messages are written with (`provenance.compare`); None: the target's own, or no messages.
    """
    say_adapted(target, adapter)
    for head in dict.fromkeys(heads):
        found = None if head is None else provenance.compare(head, target, dtype, "--target", adapter, template, variables)
        if found is not None:
            processes.say(f"note: {found}", sys.stderr)


def say_adapted(target: pathlib.Path, adapter: StoredAdapter | None = None) -> None:
    """Says of a merged target (`train.main --train-target lora`), or of one with an adapter, that its text is its own."""
    original = adapters.original_of(target)
    if original is not None:
        text_is = "its text is exactly that of the merged target, not the original's"
        processes.say(f"note: the target is {shown(original)} merged with an adapter; {text_is}", sys.stderr)
    if adapter is not None:
        text_is = "its text is exactly that of the adapted target"
        processes.say(f"note: the adapter in {adapter.folder} is merged into the target; {text_is}", sys.stderr)
