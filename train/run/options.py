"""The options of `train.main`, beside the recipe. Not here: their checks (`train/main.py`), the recipe (`recipe.py`)."""

import dataclasses
import pathlib
from typing import ClassVar, Literal

import tyro

from infer.distributed import Group
from infer.options import Weights
from train.run.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a ReDrafter head for a frozen target."""

    GROUPS: ClassVar = {
        "models_and_data": "target",
        "run": "output",
        "examples": "held_out",
        "machine": "dtype",
        "other": "profile",
    }
    VALUES: ClassVar = {
        "target": "MODEL", "lora": "FOLDER", "conversations": "FILE ...", "chat_template_kwargs": "JSON",
        "begin_with": "HEAD", "text": "PATH ...", "glob": "PATTERN ...", "token_ids": "FILE ...",
        "output": "FOLDER", "checkpoints": "FOLDER", "profile": "FOLDER", "mesh": "D M",
    }  # fmt: skip
    EXAMPLES: ClassVar = (
        "python -m train.main --target MODEL --conversations talk.json --output head-run",
        "python -m train.main --target MODEL --text docs --glob '*.md' --head slim --steps 600",
        "python -m train.main --target MODEL --token-ids replies.jsonl --preset vicuna-7b",
        "python -m train.plot --run head-run --output curves.png",
    )

    target: pathlib.Path
    """Folder or hub name (owner/model) of the target: config.json, safetensors, tokenizer."""
    lora: str | None = None
    """Folder or hub name of a low-rank adapter of the target in PEFT's format, which is merged into it: the head is for both."""
    conversations: tuple[pathlib.Path, ...] = ()
    """Files of conversations to train on: ShareGPT, `messages` or Alpaca records, as JSON or JSON Lines."""
    chat_template_kwargs: str | None = None
    """JSON object of further variables that the chat template of --conversations reads, such as '{"enable_thinking": false}'."""
    text: tuple[pathlib.Path, ...] = ()
    """Text files, or folders of them, to train on; binary files in folders are passed over."""
    glob: tuple[str, ...] = ()
    """With --text: which files of folders are read, such as '*.md' '*.py'; by default all."""
    token_ids: tuple[pathlib.Path, ...] = ()
    """JSON Lines of token ids, as `train.distill` writes them, to train on."""
    begin_with: pathlib.Path | None = None
    """Folder of a head whose weights the run begins with, instead of random ones. The head that is trained may have parts beyond
    it (--bigram, --gated, --depths)."""
    output: pathlib.Path = pathlib.Path("head-run")
    """Folder of the run: datasets, checkpoints, logs, and the finished head (`head/`, in Apple's format)."""
    checkpoints: str | None = None
    """Folder of the checkpoints of this run alone, one for all processes; it may be gs://BUCKET/FOLDER. By default
    OUTPUT/checkpoints."""
    resume: Literal["auto", "never"] = "auto"
    """auto: resume from the newest checkpoint, if there is one; never: refuse where there is one."""
    held_out: float = 0.02
    """Share of the examples that is never trained on, for the evaluations."""
    max_malformed: float = 0.01
    """Share of the records that may be malformed and skipped; above it the command fails."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The target's number format, by default float32 on a CPU and bfloat16 elsewhere; the head trains in float32."""
    weights: Weights | None = None
    """How the matrices of the target's layers are stored: int8 or fp8 (eight bits and a scale per output channel, made as they are
    read), or as --dtype; by default as --dtype, or as a quantised checkpoint has them. The head
    trains on what the target computes with them."""
    mesh: tuple[int, int] | None = None
    """Devices over which the batch (D) and the models (M) are split; by default chosen by the devices, their memory and
    the target's size."""
    shard_target: Literal["model", "data,model"] = "model"
    """data,model: shard the target, the head and the optimizer's state over all devices; weights are gathered when they
    are used, which takes time and leaves memory for a larger target."""
    profile: str | None = None
    """Folder, or gs:// path, for a trace by JAX's profiler of a few early updates, of every process."""
    config: bool = False
    """Print the configuration and stop."""
    preset: Literal["demo", "vicuna-7b"] | None = None
    """A recipe that the options below change."""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = Recipe()
    group: tyro.conf.OmitArgPrefixes[Group] = Group()
