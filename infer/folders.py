"""Where a pair is on disk, and what its folders hold besides weights: the tokenizer.

Not here: weights, configs and the ids that end a text (`redrafter_jax`). Nothing here starts JAX, so a wrong name is
reported at once.
"""

import os
import pathlib
import re

from redrafter_jax.errors import BadInput

EMBEDDED = pathlib.Path(__file__).parent / "demo_pair"
ALLOWED = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]  # of a hub repository; never pickled weights
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def embedded(part: str) -> pathlib.Path:
    """A folder of the embedded pair: target, drafter or drafter_slim.

    Raises:
      BadInput: the pair is not there.
    """
    folder = EMBEDDED / part
    if not (folder / "config.json").is_file():
        raise BadInput(f"the embedded pair lacks {folder}; give --target and --drafter, or train a pair with train.demo")
    return folder


def locate(name: str, option: str) -> pathlib.Path:
    """The folder that a path or a hub name (`owner/model`) stands for; downloaded where it is not here yet.

    Raises:
      BadInput: there is no such folder, and the hub does not give it.
    """
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise BadInput(f"{option}: {name} is a file; it should be the folder of a model, or a name on the hub (owner/model)")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise BadInput(f"{option}: there is no folder {name or repr(name)}, and it is not a name on the hub (owner/model)")
    return _download(name, option)


def _download(name: str, option: str) -> pathlib.Path:
    import huggingface_hub  # not needed where the pair is on disk

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=ALLOWED))
    except Exception as error:  # the hub client raises the errors of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{option}: there is no folder {name}, and the hub did not give a model of that name ({reason})") from None


def tokenizer(folder: pathlib.Path, option: str = "--target"):
    """The folder's tokenizer, or None where it has none.

    Raises:
      BadInput: there is one, and it is broken.
    """
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it says that it found no PyTorch, which nobody needs here
    import transformers  # takes seconds, and prompts of token ids do not need it

    transformers.logging.set_verbosity_error()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise BadInput(f"{option}: the tokenizer in {folder} cannot be read ({error})") from None
