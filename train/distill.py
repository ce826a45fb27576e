"""`python -m train.distill`: the target answers prompts itself, into token ids that `train.main --token-ids` reads.

Text that the target wrote is what a head will have to draft. Decoding is this project's own, in batches, speculative
where a head is given. Prompts come in whole batches, each written at once, so a run that was stopped goes on where it
stopped and leaves no half-written line. Not here: which prompts (`questions.py`), the file of replies (`replies.py`).
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
import tyro
from tqdm import tqdm

from infer import failures, pair
from infer.command import run_command
from infer.generate import checks
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.loop import Shape
from redrafter_jax.decode.request import MAX_NODES, MAX_SEED, require, wrong_number
from redrafter_jax.devices import memory, mesh, placement
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, fingerprint, hub, lock, weights
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.target import Target, TargetConfig
from train.data import datasets, questions, records, replies
from train.run import stop

BATCH = 64
MOST_TOKENS = 10**7  # of a prompt, and from one to the next
PROMPT = 2048  # tokens of a conversation's question; what a mesh leaves room for in the cache, before any prompt is known
FILES = ("output", "target", "conversations", "text", "drafter")  # compared by their contents, not by their names
SAME_REPLIES = ("batch_size", "beam", "mesh", "drafter")  # in float32; bfloat16 rounds differently in another batch


@dataclasses.dataclass(frozen=True)
class Options:
    """Let the target answer the prompts of conversations, or continue texts."""

    target: pathlib.Path
    """Folder or hub name (owner/model) of the target: config.json, safetensors, tokenizer."""
    output: pathlib.Path
    """JSON Lines file for the replies: `token_ids`, `prompt_tokens`, `number`."""
    conversations: tuple[pathlib.Path, ...] = ()
    """Conversations whose first question is asked."""
    text: tuple[pathlib.Path, ...] = ()
    """Text files, or folders of them; each is continued from --prompt-tokens tokens every --stride tokens."""
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
    batch_size: int = BATCH
    """Prompts decoded together."""
    shard: tuple[int, int] = (0, 1)
    """Which part of how many of the prompts to answer (0 1: all), for several machines; each writes a file of its own."""
    dtype: str | None = None
    """Number format of weights and cache, float32 or bfloat16; by default float32 on a CPU and bfloat16 elsewhere."""
    mesh: tuple[int, int] | None = None
    """Devices over which the batch (D) and the models (M) are split; by default what the devices, their memory and the
    target's size suggest."""


def greedy_rows(target: Target, prompts: Sequence[list[int]], length: int, batch: int = BATCH) -> np.ndarray:
    """``[n, length]``: prompts, all of the same length, with the target's greedy continuation."""
    new = length - len(prompts[0])
    decoded = Engine(target).generate(prompts, limits=Limits(new=new), batch=min(batch, len(prompts)))
    written = list(tqdm(decoded, "own text", len(prompts)))
    failures.check(written)
    return np.asarray([prompt + reply.token_ids for prompt, reply in zip(prompts, written, strict=True)], np.int32)


def main(options: Options) -> None:
    """Answers what is not answered yet.

    Raises:
      BadInput: whatever is wrong with the options, the target, the head, the prompts or the output file.
    """
    check(options)
    records.check_outside(options.output, options.conversations or options.text)
    records.files(options.conversations or options.text)
    with lock.file(options.output, "--output"):
        _main(options)


def _main(options: Options) -> None:
    dtype = options.dtype or pair.default_dtype(jax.default_backend())
    options = dataclasses.replace(options, target=hub.locate(options.target, "--target"), dtype=dtype)
    target_config = config.target_config(config.read_json(options.target, "--target"), "--target")
    head_config = None
    if options.drafter is not None:
        head_config = config.drafter_config(config.read_json(options.drafter, "--drafter"), "--drafter")
    room = check_pair(options, target_config, head_config)
    load = load_of(options, target_config, head_config)
    shape, why = placement.resolve(load, options.mesh, together=True)
    one = {"--batch-size 1": load_of(dataclasses.replace(options, batch_size=1), target_config, head_config)}
    memory.check(load, shape, "--target, with the cache of a batch,", one, "a smaller target or more devices")
    tokenizer = datasets.tokenizer(str(options.target))
    stops = config.stop_ids(options.target, tokenizer)
    pieces = questions.Pieces(options.prompt_tokens, options.stride)
    vocabulary_size = target_config.vocab_size
    prompts = list(questions.read(options.conversations, options.text, pieces, tokenizer, room, vocabulary_size))
    mine = list(enumerate(prompts))[options.shard[0] :: options.shard[1]]
    if not mine:
        raise BadInput(f"there is no prompt of at most {room} tokens to answer")
    if options.seed + len(prompts) - 1 > MAX_SEED:
        raise BadInput(f"--seed should be at most {MAX_SEED - len(prompts) + 1} for {len(prompts)} prompts, not {options.seed}")
    wanted = settings_of(options, stops, shape)
    done = replies.done(options.output, wanted, {number for number, _ in mine})
    if len(done) == len(mine):
        print(f"all {len(done)} replies are in {options.output} already")
        return
    if why is not None:
        print(why, file=sys.stderr)
    jax.set_mesh(mesh.make_mesh(*shape))
    engine = Engine(
        weights.load_target(options.target, options.dtype, "--target"),
        None if options.drafter is None else weights.load_drafter(options.drafter, options.dtype, "--drafter"),
        Shape(*options.beam),
        stops,
    )
    replies.claim(options.output, wanted)
    answer(options, engine, mine, done)


def check_pair(options: Options, target: TargetConfig, head: DrafterConfig | None) -> int:
    """The tokens that a prompt may have, so that the longest reply has room behind it.

    Raises:
      BadInput: there is no such room, the head is another target's, or the beams are too wide for it.
    """
    context = target.max_position_embeddings
    if options.max_new_tokens >= context:
        raise BadInput(f"--max-new-tokens should be below the target's context of {context}, not {options.max_new_tokens}")
    if head is not None:
        config.check_pair(target, head, "--drafter")
        width, length = options.beam
        words = head.draft_vocab or head.vocab_size
        if width > words or length >= context or 1 + width * length > MAX_NODES:
            raise BadInput(
                f"--beam should be at most {words} wide, the tokens that the head knows, shorter than the context of {context},"
                f" and at most {MAX_NODES} nodes in all, not {width} {length}"
            )
    return context - options.max_new_tokens


def load_of(options: Options, target: TargetConfig, head: DrafterConfig | None) -> placement.Footprint:
    """What the devices have to carry: both models' weights, and the cache of a batch."""
    slots = min(target.max_position_embeddings, (options.prompt_tokens if options.text else PROMPT) + options.max_new_tokens)
    return placement.to_decode(target, head, options.dtype, options.batch_size, slots)


def answer(options: Options, engine: Engine, mine: list[tuple[int, list[int]]], done: set[int]) -> None:
    """Writes the replies to the prompts whose numbers are not ``done``, in order. A batch of which some are done is decoded
    whole, for in bfloat16 another batch may give another text.

    Raises:
      BadInput: the target's logits are not finite. Nothing of that batch is written.
    """
    sampling, limits = Sampling(options.temperature), Limits(new=options.max_new_tokens)
    bar = tqdm(total=len(mine), initial=len(done), unit="prompt")
    with stop.says_how_to_go_on(options.output), open(options.output, "a") as file, bar:
        for batch in (mine[first : first + options.batch_size] for first in range(0, len(mine), options.batch_size)):
            left = {number for number, _ in batch} - done
            if not left:
                continue
            seeds = [options.seed + number for number, _ in batch]
            asked = [prompt for _, prompt in batch]
            answers = list(engine.generate(asked, sampling, limits, seeds, options.batch_size))
            for (number, _), reply in zip(batch, answers, strict=True):
                if reply.finish_reason == "error":
                    raise BadInput(
                        f"--target: the target's logits are not finite at prompt {number}; nothing of its batch was"
                        f" written; check the weights of {options.target}, and --dtype"
                    )
            lines = [
                {"token_ids": prompt + reply.token_ids, "prompt_tokens": len(prompt), "number": number}
                for (number, prompt), reply in zip(batch, answers, strict=True)
                if number in left
            ]
            replies.add(file, lines)
            bar.update(len(left))


def settings_of(options: Options, stops: list[int], shape: tuple[int, int]) -> dict:
    """All that decides the replies, as JSON holds it: options, the ids that end one, the mesh, what is in the files."""
    kind = "conversations" if options.conversations else "text"
    data = datasets.Source(kind, options.conversations or options.text, str(options.target))
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name not in FILES}
    settings |= {
        "eos_token_id": sorted(stops),
        "mesh": shape,
        "prompts": data.fingerprint(),
        "target": fingerprint.fingerprint(options.target),
        "drafter": fingerprint.fingerprint(options.drafter),
    }
    free = SAME_REPLIES if options.dtype == "float32" else ()
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in free}))


def check(options: Options) -> None:
    """Raises BadInput for options out of range or that leave something out."""
    if bool(options.conversations) == bool(options.text):
        raise BadInput("there is nothing to answer: give --conversations or --text, and one of them")
    for name in ("max_new_tokens", "batch_size", "seed"):
        require(f"--{name.replace('_', '-')}", wrong_number(name, getattr(options, name)))
    for name in ("prompt_tokens", "stride"):
        checks.within(options, name, 1, MOST_TOKENS)
    checks.temperature(options.temperature)
    width, length = options.beam
    require("--beam: its width", wrong_number("beam_width", width))
    require("--beam: its length", wrong_number("beam_length", length))
    part, parts = options.shard
    if not 0 <= part < parts:
        raise BadInput(f"--shard should be a part, counted from 0, of a number of parts, not {part} {parts}")
    if options.dtype not in (None, *pair.DTYPES):
        raise BadInput(f"--dtype should be {' or '.join(pair.DTYPES)}, not {options.dtype}")
    if options.output.is_dir():
        raise BadInput(f"--output: {options.output} is a folder; it should be a file")
    if not options.output.absolute().parent.is_dir():
        raise BadInput(f"--output: there is no folder {options.output.absolute().parent}")


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(
        lambda: main(tyro.cli(Options, args=arguments, prog="python -m train.distill", config=(tyro.conf.FlagCreatePairsOff,)))
    )


if __name__ == "__main__":
    sys.exit(command())
