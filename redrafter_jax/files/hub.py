"""Where a model is: the folder that a path or a name on the Hugging Face hub stands for. Nothing here starts JAX."""

import pathlib
import re

from redrafter_jax.errors import BadInput, shown

ALLOWED = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]  # of a hub repository; never pickled weights


def locate(name: str | pathlib.Path, option: str) -> pathlib.Path:
    """The folder that a path or a hub name (`owner/model`) stands for; downloaded where it is not here yet.

    Raises:
      BadInput: there is no such folder, and the hub does not give it.
    """
    name = str(name)
    try:
        folder = pathlib.Path(name).expanduser()
        if folder.is_dir():
            return folder
        is_there = folder.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home folder of nobody
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
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=ALLOWED))
    except Exception as error:  # the hub client raises the errors of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{option}: there is no folder {name}, and the hub did not give a model of that name ({reason})") from None
