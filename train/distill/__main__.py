"""`python -m train.distill`: the target answers prompts itself, into token ids that `train.main --token-ids` reads.

Text that the target wrote is what a head will have to draft. Decoding is this project's own, in rows that are refilled, speculative
where a head is given. Each reply is written when it is complete, and a run that was stopped goes on with the others. Not here:
which prompts (`data/questions.py`), decoding them (`answers.py`), the file of replies (`infer/replies.py`).
"""

import dataclasses
import json
import pathlib
import sys
from typing import ClassVar

import jax

from infer import notes, pair, templates, text_files
from infer.command import read_options, run_command
from infer.options import Weights, check_number, check_range, check_temperature, name_formats, wrong_dtype
from infer.proposers import proposer_of
from infer.replies import Owner, ReplyFile
from infer.terminal import counted
from infer.text import require_tokenizer
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.heads import fit_shape
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.request import MAX_NODES, require, wrong_number
from redrafter_jax.devices import memory, mesh_choice, placement
from redrafter_jax.devices import mesh as meshes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, fingerprint, heads, hub, lock, weights
from redrafter_jax.files.heads import HeadConfig
from redrafter_jax.files.peft import StoredAdapter
from redrafter_jax.model.target import TargetConfig
from train.data import datasets, questions, records
from train.distill import answers
from train.run import stop

MAX_TOKENS = 10**7  # of a prompt, and from one to the next
KWARGS = "chat_template_kwargs"  # a field of the options, and of the settings beside a file of replies
QUESTION_TOKENS = 2048  # what a mesh leaves room for in the cache, before any question is known
FILES = ("output", "target", "lora", "conversations", "text", "glob", "drafter")  # compared by their contents, not by their names
SAME_REPLIES = ("batch_size", "beam", "mesh", "drafter")  # in float32; bfloat16 rounds differently in another batch


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
    dtype, weight_format = pair.number_formats(options.dtype, options.weights)
    options = dataclasses.replace(options, target=hub.locate(options.target, "--target"), dtype=dtype, weights=weight_format)
    target_config = config.target_config(config.read_json(options.target, "--target"), "--target", weight_format)
    head_config = None if options.drafter is None else heads.read_config(options.drafter, "--drafter")
    room = check_pair(options, target_config, head_config)
    load = load_of(options, target_config, head_config)
    shape, why = mesh_choice.resolve(load, options.mesh, True, "--mesh", "--distributed")
    one = {"--batch-size 1": load_of(dataclasses.replace(options, batch_size=1), target_config, head_config)}
    one["--weights int8"] = load_of(options, dataclasses.replace(target_config, weight_format="int8"), head_config)
    memory.check(load, shape, "--target, with the cache of a batch,", one, "a smaller target or more devices")
    tokenizer = require_tokenizer(options.target, datasets.NEEDS_TOKENIZER)
    stops = config.stop_ids(options.target, tokenizer, "--target")
    pieces = questions.Pieces(options.prompt_tokens, options.stride, options.glob)
    files = (options.conversations, options.text)
    kwargs = templates.read_kwargs(options.chat_template_kwargs)
    found = list(questions.read(*files, pieces, tokenizer, room, target_config.vocab_size, options.turns, kwargs))
    prompts = answers.share(found, options.seed, *options.shard)
    if not prompts:
        raise BadInput(f"there is no prompt of at most {room} tokens to answer")
    adapter = pair.read_adapter(options.lora)
    settings = settings_of(options, stops, shape, adapter)
    file = ReplyFile(options.output, Owner.of_settings(settings, [prompt.number for prompt in prompts]))
    if len(file.done) == len(prompts):
        print(f"all {len(prompts)} replies are in {options.output} already")
        return
    if why is not None:
        print(why, file=sys.stderr)
    numbers, variables = name_formats(dtype, target_config.weight_format), kwargs if options.conversations else None
    notes.say(options.target, [options.drafter], numbers, adapter, variables=variables)
    jax.set_mesh(meshes.make_mesh(*shape))
    target = weights.load_target(options.target, options.dtype, "--target", False, adapter, weight_format)
    head = None if options.drafter is None else heads.load_head(options.drafter, options.dtype, "--drafter")
    beams = Shape(*options.beam)
    engine = Engine(target, proposer_of(head, beams if head is None else fit_shape(head.config, beams)), stops)
    file.begin()
    sampling, limits = Sampling(options.temperature), Limits(new=options.max_new_tokens)
    with stop.says_how_to_resume(options.output):
        answers.write(file, engine, prompts, sampling, limits, options.batch_size, options.target)
    file.sort()
    print(f"the replies to {counted(len(prompts), 'prompt')} are in {options.output}")


def check_pair(options: Options, target: TargetConfig, head: HeadConfig | None) -> int:
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


def load_of(options: Options, target: TargetConfig, head: HeadConfig | None) -> placement.Footprint:
    """What the devices have to carry: both models' weights, and the cache of a batch."""
    prompt = options.prompt_tokens if options.text else QUESTION_TOKENS
    slots = min(target.max_position_embeddings, prompt + options.max_new_tokens)
    return placement.to_decode(target, head, options.dtype, options.batch_size, slots, "--batch-size", refills=True)


def settings_of(options: Options, stops: list[int], shape: tuple[int, int], adapter: StoredAdapter | None = None) -> dict:
    """All that decides the replies, as JSON holds it: options, the ids that end one, the mesh, what is in the files."""
    kind = "conversations" if options.conversations else "text"
    data = datasets.Source(kind, options.conversations or options.text, str(options.target), patterns=options.glob)
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name not in FILES}
    if options.turns == 1:
        settings.pop("turns")  # a run of an earlier version has none
    settings[KWARGS] = templates.read_kwargs(settings[KWARGS])
    for name in (KWARGS, "weights"):
        if not settings[name]:
            settings.pop(name)  # the same
    settings |= {
        "eos_token_id": sorted(stops),
        "mesh": shape,
        "prompts": data.fingerprint(),
        "target": fingerprint.fingerprint(options.target, adapter.fingerprint if adapter else None),
        "drafter": fingerprint.fingerprint(options.drafter),
    }
    free = SAME_REPLIES if options.dtype == "float32" else ()
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in free}))


def check(options: Options) -> None:
    """Raises BadInput for options out of range or that leave something out."""
    if bool(options.conversations) == bool(options.text):
        raise BadInput("there is nothing to answer: give --conversations or --text, and one of them")
    for name in ("max_new_tokens", "batch_size", "seed"):
        check_number(name, getattr(options, name))
    if options.glob and not options.text:
        raise BadInput("--glob says which files of --text folders are read; give --text, or leave it out")
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
