"""Writes what a run that trained its target leaves beside the head: the merged target, and the adapter by itself.

Both folders have a README by which a later run or export recognises its own. Not here: the files (`files/adapters.py`).
"""

import pathlib

from redrafter_jax.devices import processes
from redrafter_jax.files import adapters, claims, fingerprint
from redrafter_jax.files.atomic import replacing
from redrafter_jax.model.lora import Adapter

MERGED_FOLDER, ADAPTER_FOLDER = "merged", "adapter"  # in a run's folder
ALWAYS = "Decoding with this head reproduces exactly the text of the merged target, and not that of {}."


def check(merged: pathlib.Path | None, adapter: pathlib.Path | None, what: tuple[str, str]) -> None:
    """Raises BadInput where a folder has files that no earlier export of these kinds wrote.

    Args:
      what: the options that the two folders come from.
    """
    for folder, option, signature in zip((merged, adapter), what, (claims.MERGED_SIGNATURE, claims.ADAPTER_SIGNATURE), strict=True):
        if folder is not None:
            claims.check_own(folder, option, signature)


def write(
    adapter: Adapter, source: pathlib.Path, base: str, step: int, merged: pathlib.Path | None, alone: pathlib.Path | None
) -> str | None:
    """Writes the merged target and the adapter into those folders that are given, and says where they are.

    Args:
      source, base: the folder of the original target, and what it is called.

    Returns:
      The fingerprint of the merged target; None: it is not written, or another process does.
    """
    found = None
    if alone is not None:
        _card(alone, claims.ADAPTER_SIGNATURE, f"# A LoRA adapter of {base}", base, step)
        adapters.save_peft(adapter, alone, source, base, "--target")
        processes.say(f"the adapter is in {alone}, in PEFT's format")
    if merged is not None:
        _card(merged, claims.MERGED_SIGNATURE, f"# {base}, merged with a LoRA adapter", base, step)
        adapters.save_merged(adapter, merged, source, base, "--target")
        found = fingerprint.fingerprint(merged) if processes.is_first() else None
        processes.say(f"the merged target is in {merged}")
    processes.say(ALWAYS.format(base))
    return found


def _card(folder: pathlib.Path, signature: str, title: str, base: str, step: int) -> None:
    if not processes.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / claims.CARD_FILE) as new:
        new.write_text(
            f"{signature}base_model: {base}\n---\n{title}\n\n"
            f"Trained for {step} updates together with a draft head by `train.main --train-target lora` of redrafter_jax, to be\n"
            "easier to draft for. This is another model than the original: the head that was trained beside it belongs to\n"
            "the merged target, and speculative decoding reproduces exactly the merged target's text, not the original's. How\n"
            "far the two are apart: `python -m train.drift --target MERGED --against ORIGINAL --text PATH`.\n"
        )
