"""Finds a model: a folder by its path, or by its name on the Hugging Face hub. Nothing here starts JAX."""

import pathlib
import re

from redrafter_jax.errors import BadInput, shown

DOWNLOADED_PATTERNS = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]  # from a hub repository; never pickled weights


def locate(name: str | pathlib.Path, option: str) -> pathlib.Path:
    """The folder of a model, by its path or by its hub name (`owner/model`); downloads it where it is not in the cache.

    Args:
      option: what the name came from, for errors.

    Raises:
      BadInput: there is no such folder, and the hub has no such model.
    """
    name = str(name)
    try:
        folder = pathlib.Path(name).expanduser()
        if folder.is_dir():
            return folder
        is_there = folder.exists()
    except (OSError, RuntimeError) as error:  # too long a name, or the home folder of an unknown user
        why = getattr(error, "strerror", None) or error
        should = "should be the folder of a model, or a name on the hub"
        raise BadInput(f"{option}: {shown(name)} {should} ({why})") from None
    if is_there:
        raise BadInput(f"{option}: {name} is a file; it should be the folder of a model, or a name on the hub (owner/model)")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise BadInput(f"{option}: there is no folder {name or repr(name)}, and it is not a name on the hub (owner/model)")
    return _download(name, option)


def _download(name: str, option: str) -> pathlib.Path:
    import huggingface_hub  # not needed where the model is on disk

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=DOWNLOADED_PATTERNS))
    except Exception as error:  # the hub client passes on errors of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{option}: there is no folder {name}, and the hub did not give a model of that name ({reason})") from None
