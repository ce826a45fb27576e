"""The fingerprint of a model's folder: a hash of every byte that decides what the model writes; and hashes of its parts.

To hash large weights takes as long as to read them (2.0 GB/s on one core, AMD EPYC with SHA instructions; files are
hashed in parallel). So the hash of a weight file is cached in the user's cache folder, with the file's size, inode and
times, and a later start reads these only. Not here: what the files mean (`config.py`, `weights.py`).
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
import time

from redrafter_jax.devices import processes
from redrafter_jax.files import json_files, weight_files
from redrafter_jax.files.weight_files import WEIGHT_INDEX

VERSION_PREFIX = "2:"  # begins a fingerprint; it changes when other bytes are hashed, to recognise earlier versions
CACHE_FILE = pathlib.Path("~/.cache/redrafter_jax/fingerprints.json")
MIN_AGE_SECONDS = 2.0  # a younger file may change again within the same tick of its file system's clock
MAX_HASH_THREADS = 4  # hashing releases Python's lock; more threads read no faster from one disk
SAMPLE_BYTES, MAX_SAMPLED_TENSORS = 4096, 1024  # of each tensor, and of how many of them (`sample_weights`)
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    WEIGHT_INDEX,
    "tokenizer*",
    "*.model",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "*.jinja",
    "additional_chat_templates/*",
)


def fingerprint(folder: pathlib.Path | None, adapter: str | None = None) -> str:
    """`VERSION_PREFIX` and the SHA-256 of the names and contents of a model's files: configuration, generation
    configuration, tokenizer, chat templates, index, and weights. Other files of the folder do not count. ``None``: no
    model.

    Args:
      adapter: the fingerprint of what is added to the weights.

    Any changed byte changes it, with one exception: a weight file that was hashed before, and then changed in place by
    a program that restored its size and both its times (of content and of inode), counts as unchanged.

    Raises:
      OSError: a file cannot be read.
    """
    small = list_small_files(folder) if folder else []
    large = _list_weights(folder) if folder else []
    digest = hashlib.sha256()
    for path, found in [(path, _hash(path)) for path in small] + list(zip(large, _hash_or_recall(large), strict=True)):
        digest.update(f"{os.path.relpath(path, folder)} {found}\n".encode())
    if adapter is not None:
        digest.update(f"adapter {adapter}\n".encode())
    return VERSION_PREFIX + digest.hexdigest()


def list_small_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a model besides its weights."""
    return [path for path in _match(folder, SMALL_FILES) if path.is_file()]


def sample_weights(folder: pathlib.Path, what: str) -> str:
    """The SHA-256 of the names, number formats and shapes of a model's tensors, and of some bytes from the middle of each, or of
    enough of them. Other weights have another; it does not depend on how they are divided into files, and reads a few megabytes.

    Raises:
      BadInput: the weights are missing or broken; ``what`` is the option that named the folder.
    """
    files = sorted(set(weight_files.files_of_tensors(folder, what).values()))
    places = dict(sorted((name, place) for file in files for name, place in weight_files.places(file).items()))
    digest = hashlib.sha256(repr([(name, place.dtype, place.shape) for name, place in places.items()]).encode())
    for place in list(places.values())[:: -(-len(places) // MAX_SAMPLED_TENSORS) or 1]:
        digest.update(place.read_middle(SAMPLE_BYTES))
    return digest.hexdigest()


def hash_tokenizer(folder: pathlib.Path) -> str | None:
    """The SHA-256 of what decides which token is which; None: the folder has no tokenizer."""
    for names in (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt")):
        paths = [folder / name for name in names if (folder / name).is_file()]
        if paths:
            return hash_text(" ".join(map(_hash, paths)))
    return None


def read_chat_template(folder: pathlib.Path) -> str | None:
    """The source of a tokenizer's chat template, in whichever file it is; None: there is none."""
    source = folder / "chat_template.jinja"
    if source.is_file():
        return source.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = (json_files.find_object(folder / name) or {}).get("chat_template")
        if isinstance(found, list):  # several, by their names
            named = (each for each in found if isinstance(each, dict))
            found = next((each.get("template") for each in named if each.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_current(found: object) -> bool:
    """Whether a stored fingerprint can be compared with those of this version. Those of earlier versions cannot: they
    did not cover every byte."""
    return isinstance(found, str) and found.startswith(VERSION_PREFIX)


def _match(folder: pathlib.Path, patterns: tuple[str, ...]) -> list[pathlib.Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _list_weights(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that `weights.load_target` reads; it also refuses a broken index and missing files."""
    try:
        names = set(json.loads((folder / WEIGHT_INDEX).read_text())["weight_map"].values())
        named = [folder / name for name in sorted(names)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        named = [folder / "model.safetensors"]
    return [path for path in named if path.is_file()]


def _hash_or_recall(paths: list[pathlib.Path]) -> list[str]:
    """The hash of each file, from the cache where the file has not changed since."""
    file = CACHE_FILE.expanduser()
    known, places = _read_cache(file), [path.resolve() for path in paths]
    states = {place: _read_state(place) for place in places}
    found = {place: known[str(place)][-1] for place in places if known.get(str(place), [])[:-1] == states[place]}
    unknown = [place for place in states if place not in found]
    if unknown:
        latest = time.time_ns() - int(MIN_AGE_SECONDS * 1e9)
        with concurrent.futures.ThreadPoolExecutor(min(MAX_HASH_THREADS, processes.count_cores(), len(unknown))) as pool:
            found |= dict(zip(unknown, pool.map(_hash, unknown), strict=True))
        is_settled = {place: states[place] == _read_state(place) and max(states[place][-2:]) < latest for place in unknown}
        new = {str(place): [*states[place], found[place]] for place in unknown if is_settled[place]}
        with contextlib.suppress(OSError):  # the cache only saves time
            _add_to_cache(file, new)
    return [found[place] for place in places]


def _read_state(path: pathlib.Path) -> list[int]:
    """Numbers of the file system that change whenever the file does."""
    found = path.stat()
    return [found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _hash(path: pathlib.Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_cache(file: pathlib.Path) -> dict[str, list]:
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: entry for name, entry in known.items() if isinstance(entry, list)} if isinstance(known, dict) else {}


def _add_to_cache(file: pathlib.Path, new: dict[str, list]) -> None:
    """Adds entries to the cache and drops those of deleted files; replaces the cache file in one step."""
    if not new:
        return
    known = {name: entry for name, entry in _read_cache(file).items() if os.path.exists(name)} | new
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f"{file.name}.", delete=False) as draft:
        draft.write(json.dumps(known, indent=1) + "\n")
    os.replace(draft.name, file)
