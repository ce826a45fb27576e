"""The tokenised corpus in the folder of `train.demo`: written once; what cannot be read is refused."""

import dataclasses
import json
import pathlib

import numpy as np

from redrafter_jax.errors import BadInput
from redrafter_jax.files import json_files
from train.demo import corpus, tokenizer
from train.demo.options import CORPUS_FILE, RECORD_FILE, Options


def prepare(options: Options) -> None:
    """Writes the tokenizer, the token streams and a record of the text's origins, unless they exist."""
    if (options.work / CORPUS_FILE).exists():
        return
    text = corpus.read(options.packages)
    trained = tokenizer.train(text.train, options.vocab)
    (options.work / RECORD_FILE).write_text(json.dumps(dataclasses.asdict(options), default=str, indent=1) + "\n")
    trained.save_pretrained(options.work / "tokenizer")
    record = {"origins": text.origins, "held_out": [source.name for source in text.held_out]}
    for name, sources in (("train", text.train), ("held_out", text.held_out)):
        files = tokenizer.encode(trained, sources)
        np.save(options.work / f"{name}.npy", np.concatenate(files).astype(np.uint16))
        record[f"{name}_tokens"] = sum(map(len, files))
        record[f"{name}_bytes"] = sum(len(source.text.encode()) for source in sources)
    (options.work / CORPUS_FILE).write_text(json.dumps(record, indent=1))
    print(f"corpus: {record['train_tokens']:,} tokens to train on, {record['held_out_tokens']:,} held out")


def read_stream(options: Options, name: str) -> np.ndarray:
    """The tokens of a part of the corpus.

    Raises:
      BadInput: they cannot be read, or their vocabulary is larger than --vocab.
    """
    found = read_tokens(options.work / f"{name}.npy")
    if found.max(initial=0) >= options.vocab:
        raise BadInput(f"--vocab {options.vocab}: {options.work} holds a corpus of a larger vocabulary; give another --work")
    return found


def read_record(options: Options) -> dict:
    """The record that `prepare` wrote.

    Raises:
      BadInput: it cannot be read.
    """
    record = json_files.find_object(options.work / CORPUS_FILE)
    if record is None:
        raise _broken(options.work / CORPUS_FILE)
    return record


def read_tokens(file: pathlib.Path) -> np.ndarray:
    """The token ids in a file of --work.

    Raises:
      BadInput: it cannot be read.
    """
    try:
        return np.load(file).astype(np.int32)
    except (ValueError, EOFError, FileNotFoundError):
        raise _broken(file) from None


def _broken(file: pathlib.Path) -> BadInput:
    made_with = CORPUS_FILE if file.name != "own_text.npy" else file.name
    return BadInput(f"--work: {file} is not as train.demo wrote it; remove {file.parent / made_with}, and it is made again")
