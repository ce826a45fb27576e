"""Heads that are made of trained ones without training (`train.calibrate`, `train.candidates`): where they may be written, and with
which card.

By its card a later run of the same command recognises what it made of the same head, and replaces that alone. Nothing else of the
head's folder is copied. Not here: what is changed.
"""

import pathlib
from collections.abc import Mapping

from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims

STORED = ("bfloat16", "float16")  # number formats, as a config.json calls them


def check(command: str, drafter: pathlib.Path, output: pathlib.Path) -> None:
    """Raises BadInput where a command may not write what it makes of a head: into that head's folder, or over anything but what it
    made of that head before."""
    if output.exists() and drafter.exists() and output.samefile(drafter):
        raise BadInput("--output is the folder of --drafter, which is kept; name another folder")
    claims.check_head(output, "--output")
    card = output / claims.CARD_FILE
    if card.is_file() and not card.read_text(errors="replace").endswith(_ending(command, drafter)):
        raise BadInput(f"--output: {output} holds a head that {command} did not make of this one; name another folder")


def load(drafter: pathlib.Path):
    """The head of a folder with its weights as they are stored, which are then written again bit by bit."""
    from redrafter_jax.files import config, weights

    return weights.load_drafter(drafter, stored_as(config.read_json(drafter, "--drafter")), "--drafter")


def stored_as(fields: Mapping[str, object]) -> str:
    """The number format of weights, as their folder's config.json says."""
    found = fields.get("torch_dtype", fields.get("dtype"))
    return found if found in STORED else "float32"


def write(head, command: str, has: str, target: pathlib.Path, drafter: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the head with its card. has: what it has now, in a few words; target: as the command was given it."""
    from redrafter_jax.files import lock, provenance
    from train.run import card

    content = (
        f"{claims.CARD_SIGNATURE}tags: [speculative-decoding, redrafter]\n---\n"
        f"# A ReDrafter head for {target.name}, with {has}\n\n"
        f"`{command}` of redrafter_jax made it of the head in `{drafter.name}`, whose weights it has.\n"
        "It is of use only with that head's target:\n\n"
        f"    python -m infer.generate --target {target.name} --drafter THIS_FOLDER --prompt ...\n\n{_ending(command, drafter)}"
    )
    with lock.folder(output, "--output"):
        (output / "config.json").unlink(missing_ok=True)  # so that half of an earlier one and half of this are no head
        card.write(head, None, output, content, provenance.read(drafter))


def _ending(command: str, drafter: pathlib.Path) -> str:
    """The end of a card, which tells what was made of which head."""
    from redrafter_jax.files import fingerprint

    return f"| made by | of the weights |\n|---|---|\n| {command} | {fingerprint.sample_weights(drafter, '--drafter')} |\n"
