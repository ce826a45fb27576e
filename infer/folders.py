"""Where a pair is on disk, and what its folders hold besides weights: the tokenizer, the ids that end a text.

Not here: weights and configs (`redrafter_jax`). Nothing here starts JAX, so a wrong name is reported at once.
"""

import hashlib
import json
import os
import pathlib
import re

from redrafter_jax.errors import BadInput

EMBEDDED = pathlib.Path(__file__).parent / "demo_pair"
ALLOWED = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]  # of a hub repository; never pickled weights
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
TAIL = 1 << 16


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


def stop_ids(folder: pathlib.Path, tokenizer) -> list[int]:
    """The ids that end a text: those that generation_config.json names, else config.json, else the tokenizer."""
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
        if found is not None:
            return [int(token) for token in (found if isinstance(found, list) else [found])]
    eos = getattr(tokenizer, "eos_token_id", None)
    return [] if eos is None else [eos]


def _json(path: pathlib.Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise BadInput(f"--target: {path} cannot be read as JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def fingerprint(folder: pathlib.Path | None) -> str:
    """Tells two models apart without reading all of them: config.json, and each weight file's name, size and last bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) + [folder / "config.json"] if folder else []:
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(size - TAIL, 0))
            digest.update(f"{path.name} {size} ".encode() + file.read())
    return digest.hexdigest()
