"""Writes a head with its model card, at the end of a run and in `train.export`. A later export recognises its own head
by the card.

Not here: which checkpoint (`train/export.py`), the weights' format (`redrafter_jax/files/weights.py`).
"""

import dataclasses
import pathlib
import shlex

from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims
from redrafter_jax.files.atomic import replacing
from redrafter_jax.files.claims import CARD_FILE
from train.run.configuration import DATA_OPTIONS, NOT_COMPARED
from train.run.merged import ALWAYS
from train.run.options import Options
from train.run.recipe import DOES_NOT_CHANGE_WEIGHTS, PARTS, PRESETS, Recipe

SETTINGS_HEADER = "| setting | value |\n|---|---|\n"  # of the table at a card's end
NO_FIGURES = "None: there was no evaluation (`--held-out`, `--evaluate-every`)."
# in the card's command, beside the recipe's
CARD_OPTIONS = ("lora", "chat_template_kwargs", "glob", "held_out", "max_malformed", "mesh", "shard_target")
KINDS = {  # by the method: the title of a card, and what the head is
    "recurrent": (
        "A ReDrafter head",
        "A recurrent draft head (Recurrent Drafter, arXiv 2403.09919) in the format of apple/ml-recurrent-drafter",
    ),
    "medusa": ("Medusa heads", "Medusa's heads (arXiv 2401.10774) in their v0.1 format"),
}


def write(head, target, folder: pathlib.Path, content: str, trained_for: dict | None = None) -> None:
    """Writes the head and its card; with ``target`` in a form that Apple's code can read. ``trained_for``: the target that it was
    trained for (`provenance.describe`); None: it is not known."""
    from redrafter_jax.files import heads

    if processes.is_first():  # the card comes first: by it a later export recognises an unfinished one
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / CARD_FILE) as new:
            new.write_text(content)
    heads.save_head(head, folder, target, trained_for)


def compose(target: pathlib.Path, configuration: dict, figures: dict, step: int, merged: str | None = None) -> str:
    """The text of the model card: base model, data, steps, figures, command. Files are named without their folders.

    Args:
      merged: where the target was trained too, the fingerprint of the merged target, or that it was not written.
      configuration: as saved with the run.
      figures: of the last evaluation before the checkpoint, with its step.
      step: of the checkpoint.
    """
    options, compared = configuration.get(NOT_COMPARED), _settings(configuration)
    shown = {name: value for name, value in figures.items() if name.startswith("held_out_") and isinstance(value, int | float)}
    if "held_out_loss" in shown and "positions" in compared:
        shown = {"loss per drafted position": shown.pop("held_out_loss") / compared["positions"]} | shown
    measured = "\n".join(f"| {name.removeprefix('held_out_').replace('_', ' ')} | {value:.3f} |" for name, value in shown.items())
    table = f"| figure | value |\n|---|---|\n{measured}"
    after = f" after {figures['step']} updates" if shown else ""
    decoded = target.name if merged is None else "MERGED"
    decoded += f" --lora {_name(options['lora'])}" if options is not None and options.get("lora") else ""
    decoded += f" --weights {compared['weights']}" if "weights" in compared else ""
    title, kind = KINDS[compared.get("method", "recurrent")]
    if any(compared.get(name) for name in PARTS):
        kind = f"{kind.partition(' in the format')[0]}, with parts that Apple's format has no place for"
    begun = f"\n\n    {_command(target, compared, options)}\n\n" if options is not None else "\n\n"
    return (
        f"{claims.CARD_SIGNATURE}tags: [speculative-decoding, redrafter]\n---\n"
        f"# {title} for {target.name}\n\n"
        f"{kind}, trained by\n"
        f"`train.main` of redrafter_jax. {_whose(target, merged)}:\n\n"
        f"    python -m infer.generate --target {decoded} --drafter THIS_FOLDER --prompt ...\n\n"
        f"## Figures on held-out examples{after}\n\n{table if shown else NO_FIGURES}\n\n"
        f"## Training\n\n{step} updates of `train.main`:{begun}{SETTINGS_HEADER}{_table(compared)}"
    )


def _whose(target: pathlib.Path, merged: str | None) -> str:
    """Which target the head belongs to."""
    if merged is None:
        return f"It is of use only with the target it was trained for, `{target.name}`"
    return (
        f"It belongs to a *merged* target: `{target.name}` with the\nadapter that was trained beside it. Fingerprint of the merged"
        f" target: {merged}.\n{ALWAYS.format(f'`{target.name}`')}\nDecode with the merged target"
    )


def check_own(folder: pathlib.Path, configuration: dict, what: str) -> None:
    """Raises BadInput where a folder contains the head of another run, by the settings in its card. An export may
    replace a head of the same run, of another step or in another format, since that run can make it again.

    Args:
      configuration: as saved with the run.
      what: the option that names the folder.
    """
    file = folder / CARD_FILE
    if not file.exists():
        return
    before = file.read_text(errors="replace").partition(SETTINGS_HEADER)[2]
    changed = set(before.splitlines()) ^ set(_table(_settings(configuration)).splitlines())
    names = {line.removeprefix("| ").partition(" | ")[0] for line in changed} - {*DOES_NOT_CHANGE_WEIGHTS}
    if names:
        raise BadInput(f"{what}: {folder} holds a head of another run (another {min(names)}); name another folder")


def _settings(configuration: dict) -> dict:
    """The settings that decided the weights, with the names of the training files where they are known."""
    settings = {name: value for name, value in configuration.items() if name != NOT_COMPARED}
    options = configuration.get(NOT_COMPARED)
    if options is not None:
        settings["data"] = ", ".join(_name(path) for kind in DATA_OPTIONS for path in options.get(kind, ()))
    return settings


def _table(settings: dict) -> str:
    return "".join(f"| {name} | {value} |\n" for name, value in settings.items())


def _command(target: pathlib.Path, compared: dict, options: dict) -> str:
    """The command that trained the head, with the options that decide the weights."""
    preset = options.get("preset")
    usual = dataclasses.asdict(PRESETS[preset]() if preset in PRESETS else Recipe())
    usual |= {name: getattr(Options(target), name) for name in ("dtype", "weights", "preset", *CARD_OPTIONS)}
    given = {kind: [_name(path) for path in options.get(kind, ())] for kind in DATA_OPTIONS}
    given |= {name: options[name] for name in ("preset", *CARD_OPTIONS) if name in options}
    given |= {name: _name(options[name]) for name in ("lora", "begin_with") if options.get(name)}
    given |= {name: compared[name] for name in usual if name in compared and name not in DOES_NOT_CHANGE_WEIGHTS}
    words = ["python", "-m", "train.main", "--target", target.name]
    for name, value in given.items():
        option = name.replace("_", "-")
        if value == [] or value == usual.get(name):
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _name(path: str) -> str:
    return pathlib.PurePath(path).name or str(path)
