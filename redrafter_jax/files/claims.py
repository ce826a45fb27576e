"""What a command may write over: nothing but what it wrote itself. Commands say by what they know their own.

Nothing here writes. ``what`` names, in errors, the option or argument that a path came from. Not here: that two
processes do not write at once (`lock.py`).
"""

import contextlib
import os
import pathlib
import struct
from collections.abc import Callable, Iterator

from etils import epath

from redrafter_jax.errors import BadInput
from redrafter_jax.files import json_files

BEGINNING = 4096  # bytes of a file that are read to tell whose it is
PNG = b"\x89PNG\r\n\x1a\n"
CARD_BEGINS = "---\nlibrary_name: redrafter_jax\n"  # the README.md of every head that was exported
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.gguf")
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def check_file(path: pathlib.Path, what: str) -> None:
    """Raises BadInput unless a file is there that can be written, or can be made."""
    with _named(path, what):
        _check_file(path, what)


def _check_file(path: pathlib.Path, what: str) -> None:
    if path.exists() and not path.is_file() or path.is_symlink() and not path.exists():
        raise BadInput(f"{what}: {path} is not a file; it should be one, or one that can be made")
    if not path.exists() and not path.absolute().parent.is_dir():
        raise BadInput(f"{what}: there is no folder {path.absolute().parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise BadInput(f"{what}: {path} cannot be written")


def check_replaceable(path: pathlib.Path, what: str, is_ours: Callable[[bytes], bool], ours: str) -> None:
    """Raises BadInput where a file cannot be written, or holds something that is not the command's own.

    Args:
      is_ours: whether a file that begins with these bytes (`BEGINNING` of them at most) was written by the command.
      ours: what the command writes, for the message.
    """
    check_file(path, what)
    if not path.exists():
        return
    with open(path, "rb") as opened:
        beginning = opened.read(BEGINNING)
    if beginning and not is_ours(beginning):
        raise BadInput(f"{what}: {path} is not {ours} and is kept; name another file, or remove this one")


def check_picture(path: pathlib.Path, what: str, software: str) -> None:
    """Raises BadInput unless a picture can be written there: a PNG file that is not there yet, or one of ours, whose
    text chunk `Software` says ``software``."""
    if path.suffix.lower() != ".png":
        raise BadInput(f"{what}: {path} should end in .png, which is the format of the picture")

    def is_ours(beginning: bytes) -> bool:
        return _software(beginning) == software

    check_replaceable(path, what, is_ours, f"a picture that {software} wrote")


def check_folder(folder: pathlib.Path, what: str) -> None:
    """Raises BadInput unless files can be written into the folder, which need not be there yet."""
    with _named(folder, what):
        _check_folder(folder, what)


def _check_folder(folder: pathlib.Path, what: str) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"{what}: {there} is a file; it should be a folder, or one that can be made")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{what}: {there} cannot be written")


def check_no_model(folder: epath.PathLike, what: str) -> None:
    """Raises BadInput where a folder, which need not be there and may be in a bucket, holds a model or a draft head."""
    found = model_in(folder)
    if found is not None:
        raise BadInput(f"{what}: {folder} holds {found}, which is not written over; name another folder")


def model_in(folder: epath.PathLike) -> str | None:
    """What model a folder holds, for messages; None where it holds none."""
    folder = epath.Path(folder)
    if not folder.is_dir():
        return None
    config = json_files.find_object(folder / "config.json") or {}
    if _is_of_a_head(config):
        return "a draft head (config.json)"
    if "model_type" in config or "architectures" in config:
        return "a model (config.json)"
    names = [path.name for pattern in (*WEIGHTS, *TOKENIZER) for path in folder.glob(pattern)]
    return f"a model ({names[0]})" if names else None


def check_head(folder: pathlib.Path, what: str) -> None:
    """Raises BadInput unless a head can be exported to a folder: one that holds none of the files of a head, or an
    earlier export, which is known by its card and may be unfinished."""
    check_folder(folder, what)
    taken = [name for name in ("config.json", "model.safetensors", "README.md") if (folder / name).exists()]
    found = model_in(folder) or (taken[0] if taken else None)
    card, config = folder / "README.md", folder / "config.json"
    has_our_card = card.is_file() and card.read_bytes().startswith(CARD_BEGINS.encode())
    is_unfinished = not config.exists()
    is_ours = has_our_card and (is_unfinished or _is_of_a_head(json_files.find_object(config) or {}))
    if found is not None and not is_ours:
        raise BadInput(f"{what}: {folder} holds {found}, not of an earlier export of a head; name another folder")


def _is_of_a_head(config: dict) -> bool:
    from redrafter_jax.files.config import DRAFTER_TYPE  # imports JAX, which files do not need

    return config.get("model_type") == DRAFTER_TYPE


def check_empty(folder: pathlib.Path, what: str, whose: str) -> None:
    """Raises BadInput where a folder, which need not be there, holds anything but hidden files; ``whose`` it is not."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if names:
        raise BadInput(f"{what}: {folder} holds files ({min(names)}) that are not of {whose}; name an empty folder")


def located(folder: pathlib.Path | str) -> epath.Path:
    """The folder by its full name. A bucket's is full already; `resolve` would make a local folder of it."""
    return epath.Path(folder) if "://" in str(folder) else epath.Path(folder).resolve()


@contextlib.contextmanager
def _named(path: pathlib.Path, what: str) -> Iterator[None]:
    """Says which option's path the file system has no use for (a name that is too long)."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{what}: {path} cannot be used ({error.strerror})") from None


def _software(beginning: bytes) -> str | None:
    """What a PNG file's text chunk `Software` says."""
    at, key = len(PNG), b"Software\0"
    while beginning.startswith(PNG) and at + 8 <= len(beginning):
        length, kind = struct.unpack_from(">I4s", beginning, at)
        text = beginning[at + 8 : at + 8 + length]
        if kind == b"tEXt" and text.startswith(key):
            return text.removeprefix(key).decode("latin-1")
        at += 12 + length
    return None
