"""What a command may overwrite: only files that it wrote itself. Each command says how it recognises its own.

Nothing here writes. ``what`` is the option or argument that a path came from, for errors. Not here: that two processes
do not write at once (`lock.py`).
"""

import contextlib
import os
import pathlib
import struct
from collections.abc import Callable, Iterator

from etils import epath

from redrafter_jax.errors import BadInput
from redrafter_jax.files import json_files

MAX_SIGNATURE_BYTES = 4096  # read from the start of a file to tell whose it is
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CARD_SIGNATURE = "---\nlibrary_name: redrafter_jax\n"  # begins the README.md of every exported head
MERGED_SIGNATURE = "---\nlibrary_name: transformers\ntags: [redrafter_jax, merged]\n"  # the same of a merged target
ADAPTER_SIGNATURE = "---\nlibrary_name: peft\ntags: [redrafter_jax, adapter]\n"  # the same of an adapter
CARD_FILE = "README.md"
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.gguf")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def check_file(path: pathlib.Path, what: str) -> None:
    """Raises BadInput unless the path is a writable file, or one can be made there."""
    with _name_option(path, what):
        _check_file(path, what)


def _check_file(path: pathlib.Path, what: str) -> None:
    if path.exists() and not path.is_file() or path.is_symlink() and not path.exists():
        raise BadInput(f"{what}: {path} is not a file; it should be one, or one that can be made")
    if not path.exists() and not path.absolute().parent.is_dir():
        raise BadInput(f"{what}: there is no folder {path.absolute().parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise BadInput(f"{what}: {path} cannot be written")


def check_replaceable(path: pathlib.Path, what: str, is_ours: Callable[[bytes], bool], ours: str) -> None:
    """Raises BadInput where a file cannot be written, or was not written by the command.

    Args:
      is_ours: whether the command wrote a file that begins with these bytes, at most `MAX_SIGNATURE_BYTES`.
      ours: what the command writes, for the message.
    """
    check_file(path, what)
    if not path.exists():
        return
    with open(path, "rb") as opened:
        beginning = opened.read(MAX_SIGNATURE_BYTES)
    if beginning and not is_ours(beginning):
        raise BadInput(f"{what}: {path} is not {ours} and is kept; name another file, or remove this one")


def check_picture(path: pathlib.Path, what: str, software: str) -> None:
    """Raises BadInput unless a PNG file can be written there: a new one, or one whose text chunk `Software` says
    ``software``."""
    if path.suffix.lower() != ".png":
        raise BadInput(f"{what}: {path} should end in .png, which is the format of the picture")

    def is_ours(beginning: bytes) -> bool:
        return _read_software(beginning) == software

    check_replaceable(path, what, is_ours, f"a picture that {software} wrote")


def check_folder(folder: pathlib.Path, what: str) -> None:
    """Raises BadInput unless files can be written into the folder, which need not exist."""
    with _name_option(folder, what):
        _check_folder(folder, what)


def _check_folder(folder: pathlib.Path, what: str) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"{what}: {there} is a file; it should be a folder, or one that can be made")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{what}: {there} cannot be written")


def check_no_model(folder: epath.PathLike, what: str) -> None:
    """Raises BadInput where a folder contains a model or a draft head. It need not exist, and may be in a bucket."""
    found = describe_model(folder)
    if found is not None:
        raise BadInput(f"{what}: {folder} holds {found}, which is not overwritten; name another folder")


def describe_model(folder: epath.PathLike) -> str | None:
    """Which model a folder contains, for messages; None: it contains none."""
    folder = epath.Path(folder)
    if not folder.is_dir():
        return None
    config = json_files.find_object(folder / "config.json") or {}
    if _is_head_config(config):
        return "a draft head (config.json)"
    if "model_type" in config or "architectures" in config:
        return "a model (config.json)"
    names = [path.name for pattern in (*WEIGHT_PATTERNS, *TOKENIZER_FILES) for path in folder.glob(pattern)]
    return f"a model ({names[0]})" if names else None


def check_head(folder: pathlib.Path, what: str) -> None:
    """Raises BadInput unless a head can be exported to a folder: one without files of a head, or with an earlier
    export, which its card identifies and which may be unfinished."""
    check_folder(folder, what)
    taken = [name for name in ("config.json", "model.safetensors", "README.md") if (folder / name).exists()]
    found = describe_model(folder) or (taken[0] if taken else None)
    card, config = folder / "README.md", folder / "config.json"
    has_our_card = card.is_file() and card.read_bytes().startswith(CARD_SIGNATURE.encode())
    is_unfinished = not config.exists()
    is_ours = has_our_card and (is_unfinished or _is_head_config(json_files.find_object(config) or {}))
    if found is not None and not is_ours:
        raise BadInput(f"{what}: {folder} holds {found}, not of an earlier export of a head; name another folder")


def _is_head_config(config: dict) -> bool:
    from redrafter_jax.files.config import DRAFTER_TYPE  # imports JAX, which nothing else here needs

    return config.get("model_type") == DRAFTER_TYPE


def check_own(folder: pathlib.Path, what: str, signature: str) -> None:
    """Raises BadInput unless the folder has no file, or a card that begins with this signature, and files can be written there."""
    check_folder(folder, what)
    card = folder / CARD_FILE
    if not (card.is_file() and card.read_bytes().startswith(signature.encode())):
        check_empty(folder, what, "an earlier export")


def check_empty(folder: pathlib.Path, what: str, whose: str) -> None:
    """Raises BadInput where a folder, which need not exist, contains files that are not hidden.

    Args:
      whose: the command that did not write them, for the message.
    """
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if names:
        raise BadInput(f"{what}: {folder} holds files ({min(names)}) that are not of {whose}; name an empty folder")


def resolve_folder(folder: pathlib.Path | str) -> epath.Path:
    """The folder's absolute path. A bucket's stays as it is; `resolve` would turn it into a local folder."""
    return epath.Path(folder) if "://" in str(folder) else epath.Path(folder).resolve()


@contextlib.contextmanager
def _name_option(path: pathlib.Path, what: str) -> Iterator[None]:
    """Names the option whose path the file system refuses, such as a name that is too long."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{what}: {path} cannot be used ({error.strerror})") from None


def _read_software(beginning: bytes) -> str | None:
    """The text of a PNG file's chunk `Software`; None: it has none."""
    at, key = len(PNG_SIGNATURE), b"Software\0"
    while beginning.startswith(PNG_SIGNATURE) and at + 8 <= len(beginning):
        length, kind = struct.unpack_from(">I4s", beginning, at)
        text = beginning[at + 8 : at + 8 + length]
        if kind == b"tEXt" and text.startswith(key):
            return text.removeprefix(key).decode("latin-1")
        at += 12 + length
    return None
