"""Rows of tokens for training: what a step reads is a function of (seed, step), so a resumed run reads what it would have."""

import pathlib
from collections.abc import Iterator

import grain
import numpy as np

from redrafter_jax.errors import BadInput


def read_text(paths: tuple[pathlib.Path, ...], tokenizer) -> np.ndarray:
    """The token ids ``[n]`` of text files, and of the text files in folders, each closed by the end-of-text id.

    Raises:
      BadInput: a path is missing, or not text, or there is nothing to read.
    """
    files = [file for path in paths for file in _files(path)]
    texts = [_text(file) for file in files]
    if not any(texts):
        raise BadInput(f"--text: there is no text in {', '.join(map(str, paths)) or 'no files'}")
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return np.concatenate([np.asarray(ids + end, np.int32) for ids in encoded])


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if not path.is_file():
        raise BadInput(f"--text: there is no file or folder {path}")
    return [path]


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise BadInput(f"--text: {file} cannot be read as UTF-8 text ({error})") from None


def rows(stream: np.ndarray, length: int, batch: int, seed: int, first: int, last: int) -> Iterator[np.ndarray]:
    """The batches ``[batch, length]`` of steps first..last-1: the stream cut into rows, shuffled anew in every epoch.

    Raises:
      BadInput: the stream does not fill one batch.
    """
    count = len(stream) // length
    if count < batch:
        raise BadInput(f"--text: {len(stream)} tokens do not fill a batch of {batch} rows of {length}")
    cut = [stream[i * length : (i + 1) * length] for i in range(count)]
    batches = grain.MapDataset.source(cut).shuffle(seed).repeat().batch(batch)
    for step in range(first, last):
        yield batches[step]
