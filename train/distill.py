"""`python -m train.distill`: the target answers prompts itself, into token ids that `train.main --token-ids` reads.

Text that the target wrote is what a head will have to draft. Decoding is this project's own, in batches, speculative
where a head is given. Prompts come in whole batches, each written at once, so a run that was stopped goes on where it
stopped and leaves no half-written line.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import tyro
from tqdm import tqdm

from redrafter_jax import weights
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.loop import Shape
from redrafter_jax.errors import BadInput
from redrafter_jax.mesh import make_mesh
from redrafter_jax.model.target import Target
from train import builders, examples

BATCH = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """Let the target answer the prompts of conversations, or continue texts."""

    target: pathlib.Path
    """Folder of the target: config.json, safetensors, tokenizer."""
    output: pathlib.Path
    """JSON Lines file for the replies: `token_ids`, `prompt_tokens`, `number`."""
    conversations: tuple[pathlib.Path, ...] = ()
    """Conversations whose first question is asked."""
    text: tuple[pathlib.Path, ...] = ()
    """Text files, or folders of them; each is continued from --prompt-tokens tokens every --stride tokens."""
    prompt_tokens: int = 64
    """With --text: tokens of a prompt; with --conversations: longer prompts are passed over."""
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
    batch_size: int = BATCH
    """Prompts decoded together."""
    shard: tuple[int, int] = (0, 1)
    """Which part of how many of the prompts to answer (0 1: all), for several machines; each writes a file of its own."""
    dtype: str = "float32"
    """Number format of weights and cache: float32 or bfloat16."""


def greedy_rows(target: Target, prompts: Sequence[list[int]], length: int, batch: int = BATCH) -> np.ndarray:
    """``[n, length]``: prompts, all of the same length, with the target's greedy continuation."""
    new = length - len(prompts[0])
    replies = Engine(target).generate(prompts, limits=Limits(new=new), batch=min(batch, len(prompts)))
    rows = [prompt + reply.token_ids for prompt, reply in zip(prompts, tqdm(replies, "own text", len(prompts)), strict=True)]
    return np.asarray(rows, np.int32)


def main(options: Options) -> None:
    """Answers what is not answered yet.

    Raises:
      BadInput: whatever is wrong with the options, the target, the head, the prompts or the output file.
    """
    check(options)
    if options.conversations:
        examples.files(options.conversations)
    target_config = weights.configs.target_config(weights.configs.read_json(options.target, "--target"), "--target")
    tokenizer = builders.tokenizer(str(options.target))
    room = target_config.max_position_embeddings - options.max_new_tokens
    prompts = list(read_prompts(options, tokenizer, min(room, options.prompt_tokens) if options.text else room))
    part, parts = options.shard
    mine = list(enumerate(prompts))[part::parts]
    done = already(options)
    if not mine:
        raise BadInput(f"there is no prompt of at most {room} tokens to answer")
    if done == len(mine):
        print(f"all {done} replies are in {options.output} already")
        return
    jax.set_mesh(make_mesh())
    engine = Engine(
        weights.load_target(options.target, options.dtype, "--target"),
        None if options.drafter is None else weights.load_drafter(options.drafter, options.dtype, "--drafter"),
        Shape(*options.beam),
        [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id],
    )
    answer(options, engine, mine, done)


def answer(options: Options, engine: Engine, mine: list[tuple[int, list[int]]], done: int) -> None:
    """Writes the replies from number ``done`` on."""
    sampling, limits = Sampling(options.temperature), Limits(new=options.max_new_tokens)
    with open(options.output, "a") as file, tqdm(total=len(mine), initial=done, unit="prompt") as bar:
        while done < len(mine):
            batch = mine[done : done + options.batch_size]
            seeds = [options.seed + number for number, _ in batch]
            replies = engine.generate([prompt for _, prompt in batch], sampling, limits, seeds, options.batch_size)
            lines = [
                json.dumps({"token_ids": prompt + reply.token_ids, "prompt_tokens": len(prompt), "number": number})
                for (number, prompt), reply in zip(batch, replies, strict=True)
            ]
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
            done += len(batch)
            bar.update(len(batch))


def already(options: Options) -> int:
    """How many replies the output holds; a line that was cut off is removed.

    Raises:
      BadInput: it is not the output of such a run, or cannot be written.
    """
    file, settings = options.output, options.output.with_suffix(".settings.json")
    wanted = {
        name: str(value) for name, value in dataclasses.asdict(options).items() if name not in ("output", "batch_size", "beam")
    }
    try:
        if settings.exists() and json.loads(settings.read_text()) != wanted:
            before = json.loads(settings.read_text())
            names = ", ".join(f"{name} was {before.get(name)}" for name in wanted if before.get(name) != wanted[name])
            raise BadInput(f"--output: {file} belongs to another run ({names}); give another file")
        if file.exists() and not settings.exists():
            raise BadInput(f"--output: {file} exists and is not of this command; give another file")
        settings.write_text(json.dumps(wanted, indent=1) + "\n")
        with open(file, "ab+") as opened:
            opened.seek(0)
            content = opened.read()
            whole = content[: content.rfind(b"\n") + 1]
            opened.truncate(len(whole))
    except OSError as error:
        raise BadInput(f"--output: {file} cannot be written ({error.strerror})") from None
    return whole.count(b"\n")


def read_prompts(options: Options, tokenizer, longest: int) -> Iterator[list[int]]:
    """The prompts as token ids, none longer than ``longest``."""
    template = None if tokenizer.chat_template else examples.VICUNA
    for record in (record for path in examples.files(options.conversations) for record in examples.records(path)):
        try:
            turns = examples.messages(record.content)
        except examples.Malformed:
            continue
        first = next(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
        text = tokenizer.apply_chat_template(turns[:first], chat_template=template, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if 0 < len(ids) <= longest:
            yield ids
    skips = examples.Skips(1.0)
    for example in examples.text(examples.files(options.text), tokenizer, skips) if options.text else ():
        for start in range(0, len(example.tokens) - longest, options.stride):
            yield example.tokens[start : start + longest].tolist()


def check(options: Options) -> None:
    """Raises BadInput for options out of range or that leave something out."""
    if bool(options.conversations) == bool(options.text):
        raise BadInput("there is nothing to answer: give --conversations or --text, and one of them")
    for name in ("prompt_tokens", "stride", "max_new_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} should be 1 or more, not {getattr(options, name)}")
    if not (options.temperature == 0 or 0.01 <= options.temperature <= 100):
        raise BadInput(f"--temperature should be 0 (greedy) or from 0.01 to 100, not {options.temperature}")
    part, parts = options.shard
    if not 0 <= part < parts:
        raise BadInput(f"--shard should be a part, counted from 0, of a number of parts, not {part} {parts}")
    if options.dtype not in ("float32", "bfloat16"):
        raise BadInput(f"--dtype should be float32 or bfloat16, not {options.dtype}")
    if not options.output.absolute().parent.is_dir():
        raise BadInput(f"--output: there is no folder {options.output.absolute().parent}")


def command(arguments: list[str] | None = None) -> int:
    """The command: errors of the user's making end in one sentence and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        main(tyro.cli(Options, args=arguments, prog="python -m train.distill", config=(tyro.conf.FlagCreatePairsOff,)))
    except BadInput as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(command())
