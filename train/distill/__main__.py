"""`python -m train.distill`: the target answers prompts itself, into token ids that `train.main --token-ids` reads.

Text that the target wrote is what a head will have to draft. Decoding is this project's own, in rows that are refilled, speculative
where a head is given. Each reply is written when it is complete, and a run that was stopped goes on with the others. Not here:
which prompts, and the engine (`plan.py`), decoding them (`answers.py`, `spread.py`), the file of replies (`infer/replies.py`).
"""

import dataclasses
import functools
import pathlib
import sys
from typing import ClassVar

import tyro

from infer import templates, text_files, workers
from infer.command import read_options, run_command
from infer.options import Weights, check_number, check_range, check_temperature, wrong_dtype
from infer.replies import Owner, ReplyFile
from infer.terminal import counted
from infer.workers import Workers
from redrafter_jax.decode.request import require, wrong_number
from redrafter_jax.errors import BadInput
from redrafter_jax.files import lock
from train.data import records
from train.distill import answers, plan, spread
from train.run import stop

MAX_TOKENS = 10**7  # of a prompt, and from one to the next


@dataclasses.dataclass(frozen=True)
class Options:
    """Let the target answer the questions of conversations, or continue texts."""

    GROUPS: ClassVar = {"models_and_data": "target", "replies": "temperature", "machine": "batch_size"}
    VALUES: ClassVar = {
        "target": "MODEL", "lora": "FOLDER", "drafter": "HEAD", "output": "FILE", "conversations": "FILE ...",
        "text": "PATH ...", "glob": "PATTERN ...", "chat_template_kwargs": "JSON", "beam": "W L", "shard": "PART PARTS",
        "mesh": "D M", "temperature": "T",
    }  # fmt: skip
    EXAMPLES: ClassVar = (
        "python -m train.distill --target MODEL --conversations talk.json --output replies.jsonl",
        "python -m train.distill --target MODEL --conversations talk.json --output all.jsonl --turns 8",
        "python -m train.main --target MODEL --token-ids replies.jsonl",
    )

    target: pathlib.Path
    """Folder or hub name (owner/model) of the target: config.json, safetensors, tokenizer."""
    output: pathlib.Path
    """JSON Lines file for the replies: `token_ids`, `prompt_tokens`, `number`."""
    lora: str | None = None
    """Folder or hub name of a low-rank adapter of the target in PEFT's format, which is merged into it."""
    conversations: tuple[pathlib.Path, ...] = ()
    """Conversations whose first questions are asked (--turns)."""
    turns: int = 1
    """With --conversations: how many questions of each are asked, each behind the conversation as the file has it up to there."""
    chat_template_kwargs: str | None = None
    """With --conversations: JSON object of further variables that the chat template reads, such as '{"enable_thinking": false}'."""
    text: tuple[pathlib.Path, ...] = ()
    """Text files, or folders of them, less binary files; each is continued from --prompt-tokens tokens every --stride tokens."""
    glob: tuple[str, ...] = ()
    """With --text: which files of folders are read, such as '*.md' '*.py'; by default all."""
    prompt_tokens: int = 64
    """With --text: tokens of a prompt. (Questions of --conversations are asked whole; those that leave no room for
    --max-new-tokens are passed over.)"""
    stride: int = 512
    """With --text: tokens from one prompt to the next."""
    drafter: pathlib.Path | None = None
    """A head, so that decoding is speculative: the replies are the same, sooner."""
    beam: tuple[int, int] = (4, 4)
    """With --drafter: beam width and length."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Prompt i, counted from 0, is sampled with seed + i."""
    max_new_tokens: int = 192
    """New tokens per prompt at most."""
    batch_size: int = 64
    """Prompts decoded together."""
    shard: tuple[int, int] = (0, 1)
    """Which part of how many of the prompts to answer (0 1: all), for several machines; each writes a file of its own."""
    dtype: str | None = None
    """Number format of weights and cache, float32 or bfloat16; by default float32 on a CPU and bfloat16 elsewhere."""
    weights: Weights | None = None
    """How the matrices of the target's layers are stored: int8 or fp8 (eight bits and a scale per output channel, made as they are
    read), or as --dtype; by default as --dtype, or as a quantised checkpoint has them."""
    mesh: tuple[int, int] | None = None
    """Devices over which the batch (D) and the models (M) are split; by default what the devices, their memory and the
    target's size suggest."""
    workers: tyro.conf.OmitArgPrefixes[Workers] = Workers()


def main(options: Options) -> None:
    """Answers what is not answered yet.

    Raises:
      BadInput: whatever is wrong with the options, the target, the head, the prompts or the output file.
    """
    check(options)
    records.check_outside(options.output, options.conversations or options.text)
    text_files.files(options.conversations or options.text, options.glob)
    with lock.file(options.output, "--output"):
        _main(options)


def _main(options: Options) -> None:
    cluster = options.workers
    found = workers.ask(cluster, functools.partial(_outline, options)) if cluster.ray_workers else plan.make(options)
    file = ReplyFile(options.output, Owner.of_settings(found.settings, found.numbers))
    count = len(found.numbers)
    if len(file.done) == count:
        print(f"all {count} replies are in {options.output} already")
        return
    with stop.says_how_to_resume(options.output):
        if cluster.ray_workers:
            spread.write(file, options, found.numbers)
        else:
            engine = found.engine()
            file.begin()
            answers.write(file, engine, found.prompts, *found.how)
    file.sort()
    print(f"the replies to {counted(count, 'prompt')} are in {options.output}")


def _outline(options: Options) -> plan.Outline:
    return plan.make(options).outline


def check(options: Options) -> None:
    """Raises BadInput for options out of range or that leave something out."""
    if bool(options.conversations) == bool(options.text):
        raise BadInput("there is nothing to answer: give --conversations or --text, and one of them")
    for name in ("max_new_tokens", "batch_size", "seed"):
        check_number(name, getattr(options, name))
    if options.glob and not options.text:
        raise BadInput("--glob says which files of --text folders are read; give --text, or leave it out")
    options.workers.check()
    templates.read_kwargs(options.chat_template_kwargs)
    if options.chat_template_kwargs is not None and not options.conversations:
        raise BadInput("--chat-template-kwargs is for --conversations; give these, or leave it out")
    if options.turns > 1 and not options.conversations:
        raise BadInput("--turns counts the questions of --conversations; give these, or leave it out")
    for name in ("prompt_tokens", "stride", "turns"):
        check_range(name, getattr(options, name), 1, MAX_TOKENS)
    check_temperature(options.temperature)
    width, length = options.beam
    require("--beam: its width", wrong_number("beam_width", width))
    require("--beam: its length", wrong_number("beam_length", length))
    part, parts = options.shard
    if not 0 <= part < parts:
        raise BadInput(f"--shard should be a part, counted from 0, of a number of parts, not {part} {parts}")
    if options.dtype is not None:
        require("--dtype", wrong_dtype(options.dtype))
    if options.output.is_dir():
        raise BadInput(f"--output: {options.output} is a folder; it should be a file")
    if not options.output.absolute().parent.is_dir():
        raise BadInput(f"--output: there is no folder {options.output.absolute().parent}")


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.distill", arguments)))


if __name__ == "__main__":
    sys.exit(command())
