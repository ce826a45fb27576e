"""tensorflow-datasets builders: examples on disk in array_record, tokenised once. No TensorFlow.

Each can be used by itself; the folder that `build` returns can be opened with `tfds.data_source` anywhere:

    folder = build(Source("text", (pathlib.Path("notes"),), "models/vicuna"), pathlib.Path("datasets"))
    tfds.builder_from_directory(folder).as_data_source(split="train")[0]["tokens"]

An interrupted build leaves nothing that looks complete: tfds writes beside the final folder and renames at the end.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds
from tqdm.auto import tqdm

from infer import text, text_files
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, quantisation
from train.data import examples

logging.getLogger("absl").addFilter(lambda record: not record.getMessage().startswith("Variant folder"))  # of a new dataset
Kind = Literal["conversations", "text", "token_ids"]
RELEASE = "1.1.0"  # raised when examples are made in another way, so that older datasets are not read
NEEDS_TOKENIZER = "training data"  # in the sentence for a target without one
HELD_OUT_PARTS = 1000  # the share that is held out is counted in parts of this


@dataclasses.dataclass(frozen=True)
class Source:
    """What a dataset is made of. ``tokenizer`` is a folder (of the target); ``held_out``: the share of examples in the
    split `validation`, chosen by a hash of their tokens; ``malformed``: the share of records that may be skipped; ``patterns``: of
    the files that are read in folders (none: all); ``template_kwargs``: further variables of the chat template."""

    kind: Kind
    paths: tuple[pathlib.Path, ...]
    tokenizer: str
    held_out: float = 0.02
    malformed: float = 0.01
    patterns: tuple[str, ...] = ()
    template_kwargs: examples.Kwargs = None

    def vocabulary(self) -> int:
        """How many token ids the target knows.

        Raises:
          BadInput: it has no config.json, or is not Llama-like.
        """
        fields = config.read_json(pathlib.Path(self.tokenizer), "--target")
        return config.target_config({**fields, quantisation.KEY: None}, "--target").vocab_size

    def fingerprint(self) -> str:
        """Changes with whatever decides the examples: the files, the tokenizer, the numbers."""
        digest = hashlib.sha256(f"{RELEASE} {self.kind} {self.held_out} {self.malformed}".encode())
        if self.template_kwargs:
            digest.update(json.dumps(dict(self.template_kwargs), sort_keys=True).encode())
        tokenizer = pathlib.Path(self.tokenizer)
        names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "config.json")
        for file in [*text_files.files(self.paths, self.patterns), *(tokenizer / name for name in names)]:
            if file.is_file():
                digest.update(f"{file.name} {file.stat().st_size} ".encode())
                with open(file, "rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()[:16]


class _Builder(tfds.core.GeneratorBasedBuilder):
    """The three builders differ in how examples come from files, and in nothing else."""

    VERSION = tfds.core.Version(RELEASE)
    RELEASE_NOTES = {RELEASE: "tokens, labelled, where"}
    pkg_dir_path = pathlib.Path(__file__).parent  # read by tfds, which otherwise looks for files of its own beside a builder

    def __init__(self, *, source: Source, **kwargs):
        self.source = source
        self.skips = examples.Skips(source.malformed)
        self.note: str | None = None  # said once the dataset is built
        super().__init__(file_format="array_record", config=source.fingerprint(), **kwargs)

    def _create_builder_config(self, builder_config, **_):
        return tfds.core.BuilderConfig(name=builder_config)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "labelled": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
            "where": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download_manager) -> dict[str, Iterator]:
        splits: dict[str, list] = {"train": [], "validation": []}
        bar = tqdm(self._read(), "building the dataset", unit=" examples", disable=not processes.is_first())
        for number, example in enumerate(bar):
            split = "validation" if is_held_out(example.tokens, self.source.held_out) else "train"
            splits[split].append((number, dataclasses.asdict(example)))
        return {name: iter(made) for name, made in splits.items() if made}  # tfds refuses an empty split, so it is left out

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("the splits are made together, so that every record is tokenised once")

    def _read(self) -> Iterator[examples.Example]:
        raise NotImplementedError

    def _tokenizer(self):
        return text.require_tokenizer(pathlib.Path(self.source.tokenizer), NEEDS_TOKENIZER)


class ConversationsBuilder(_Builder):
    """ShareGPT, messages or Alpaca records, written out by the tokenizer's chat template."""

    name = "conversations"  # of the dataset on disk

    def _read(self) -> Iterator[examples.Example]:
        files, kwargs = text_files.files(self.source.paths), self.source.template_kwargs
        found = examples.conversations(files, self._tokenizer(), self.skips, kwargs)
        return examples.known(found, self.source.vocabulary())


class TextBuilder(_Builder):
    """Plain files."""

    name = "text"  # of the dataset on disk

    def _read(self) -> Iterator[examples.Example]:
        chosen = text_files.texts(self.source.paths, self.source.patterns)
        self.note = chosen.note()
        found = examples.text(chosen.files, self._tokenizer(), self.skips)
        return examples.known(found, self.source.vocabulary())


class TokenIdsBuilder(_Builder):
    """Token ids as they stand, such as `train.distill` writes."""

    name = "token_ids"  # of the dataset on disk

    def _read(self) -> Iterator[examples.Example]:
        return examples.token_ids(text_files.files(self.source.paths), self.source.vocabulary(), self.skips)


BUILDERS = {"conversations": ConversationsBuilder, "text": TextBuilder, "token_ids": TokenIdsBuilder}


def build(source: Source, folder: pathlib.Path) -> pathlib.Path:
    """The folder of the dataset, below ``folder``; built if it is not there yet. The first process builds and the others
    wait. Then each process that still does not see the dataset builds it, as where hosts share no folder.

    Raises:
      BadInput: a path or the tokenizer is missing, a file is empty or unreadable, or too many records are malformed.
    """
    if not processes.is_first():
        processes.wait(f"dataset {source.kind}")
    builder = _builder(source, folder)
    if not builder.is_prepared():
        _prepare(builder, source, folder)
    if processes.is_first():
        processes.wait(f"dataset {source.kind}")
    return pathlib.Path(builder.data_path)


def _builder(source: Source, folder: pathlib.Path) -> _Builder:
    return BUILDERS[source.kind](source=source, data_dir=str(folder))


def _prepare(builder: _Builder, source: Source, folder: pathlib.Path) -> None:
    tfds.disable_progress_bar()  # one bar is enough, and tfds's bars would stay on the screen below an error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # tfds prints there that it downloads, and nothing is downloaded
            builder.download_and_prepare()
    except Exception as error:  # tfds wraps what a generator raises
        mistake = _mistake(error)
        if mistake is not None:
            raise mistake from error
        if not _builder(source, folder).is_prepared():  # else another process of this host built it first
            raise
    for said in (builder.note, *(f"skipped {reason}" for reason in builder.skips.reasons)):
        if said is not None:
            processes.say(said)


def open_split(folder: pathlib.Path, split: str):
    """A split of a dataset on disk: a sequence of `tokens`, `labelled` and `where`.

    Raises:
      BadInput: there is no such dataset, or it has no such split.
    """
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:
        raise BadInput(f"{folder} is not a finished dataset ({' '.join(str(error).split())[:200]})") from None
    if split not in builder.info.splits:
        raise BadInput(f"{folder} has no example in its split {split}; it has {', '.join(builder.info.splits) or 'none'}")
    return builder.as_data_source(split=split)


class Joined:
    """Several datasets as one sequence."""

    def __init__(self, parts: list):
        self.parts, self.ends = parts, list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict:
        part = bisect.bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]


def join(folders: list[pathlib.Path], split: str) -> Joined | None:
    """A split of several datasets, of those that have it; None if none has."""
    parts = [open_split(folder, split) for folder in folders if split in tfds.builder_from_directory(folder).info.splits]
    return Joined(parts) if parts else None


def is_held_out(tokens: np.ndarray, share: float) -> bool:
    """Whether an example belongs to `validation`: a function of its tokens, so that copies of it land together."""
    digest = hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_PARTS < share * HELD_OUT_PARTS


def _mistake(error: BaseException) -> BadInput | None:
    """The BadInput that tfds's error wraps, if there is one."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, BadInput):
        link = link.__cause__ or link.__context__
    return link
