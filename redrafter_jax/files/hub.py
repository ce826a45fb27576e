"""Finds a model: a folder by its path, or by its name on the Hugging Face hub. Nothing here starts JAX.

Of a repository on the hub the small files of a model are downloaded, and then the weights that these name, in safetensors. What
else there is stays there: pickled weights, copies in other formats (`consolidated*.safetensors`, `original/`), images. What the
hub's own client offers holds here too: a download that was interrupted is resumed; HF_TOKEN gives access to models that are not
open to all; HF_HUB_OFFLINE takes what the cache has.
"""

import pathlib
import re

from redrafter_jax.errors import BadInput, as_bad_input, shown
from redrafter_jax.files import json_files
from redrafter_jax.files.fingerprint import SMALL_FILES, WEIGHT_INDEX

ADAPTER_CONFIG = "adapter_config.json"
SMALL_PATTERNS = [*SMALL_FILES, ADAPTER_CONFIG]  # downloaded first
LEFT_OUT_PATTERNS = ["original/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx"]  # even where one above matches
WEIGHT_FILES = ["model.safetensors", "medusa_lm_head.safetensors", "adapter_model.safetensors"]  # where no index names them


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
        patterns = {"allow_patterns": SMALL_PATTERNS, "ignore_patterns": LEFT_OUT_PATTERNS}
        folder = pathlib.Path(huggingface_hub.snapshot_download(name, **patterns))
        files = _weight_files(folder)
        huggingface_hub.snapshot_download(name, allow_patterns=files, revision=folder.name)  # a snapshot is called by its commit
    except Exception as error:  # the hub client passes on errors of several libraries
        raise as_bad_input(error) or BadInput(_say(error, name, option)) from None
    here = [file for file in files if (folder / file).exists()]
    lacks = sorted(set(files) - set(here)) if (folder / WEIGHT_INDEX).is_file() else [] if here else files[:1]
    if lacks and huggingface_hub.constants.HF_HUB_OFFLINE:
        raise BadInput(f"{option}: the hub's cache has no {lacks[0]} of {name}, and {_say_offline(name)}")
    return folder


def _weight_files(folder: pathlib.Path) -> list[str]:
    """The weights of a model, as its small files name them. Which names are safe to read, `weight_files.py` checks."""
    found = (json_files.find_object(folder / WEIGHT_INDEX) or {}).get("weight_map")
    names = {name for name in found.values() if isinstance(name, str)} if isinstance(found, dict) else set()
    return sorted(re.sub(r"([*?[])", r"[\1]", name) for name in names) or WEIGHT_FILES


def _say_offline(name: str) -> str:
    return f"HF_HUB_OFFLINE is set; unset it, or run `hf download {name}` where the hub can be reached, and copy its cache"


def _say(error: Exception, name: str, option: str) -> str:
    """One sentence about what the hub's client raised."""
    import huggingface_hub

    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, huggingface_hub.errors.GatedRepoError):
        page = f"https://huggingface.co/{name}"
        return f"{option}: {name} is for those who accept its terms: do so on {page}, and set HF_TOKEN to a token of yours"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return f"{option}: there is no folder {name}, and {_say_offline(name)}"
    return f"{option}: there is no folder {name}, and the hub did not give a model of that name ({reason})"
