"""What a run of `train.distill` is made of: the prompts, the settings that decide their replies, and the engine that gives them."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax

from infer import notes, pair, templates
from infer.options import name_formats
from infer.proposers import proposer_of
from infer.text import require_tokenizer
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.heads import fit_shape
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.request import MAX_NODES
from redrafter_jax.devices import memory, mesh_choice, placement
from redrafter_jax.devices import mesh as meshes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, fingerprint, heads, hub, weights
from redrafter_jax.files.heads import HeadConfig
from redrafter_jax.files.peft import StoredAdapter
from redrafter_jax.model.target import TargetConfig
from train.data import datasets, questions
from train.distill.answers import NumberedPrompt, share

KWARGS = "chat_template_kwargs"  # a field of the options, and of the settings beside a file of replies
QUESTION_TOKENS = 2048  # what a mesh leaves room for in the cache, before any question is known
FILES = (
    "output",
    "target",
    "lora",
    "conversations",
    "text",
    "glob",
    "drafter",
    "workers",
)  # compared by their contents, not by their names
SAME_REPLIES = ("batch_size", "beam", "mesh", "drafter")  # in float32; bfloat16 rounds differently in another batch


@dataclasses.dataclass(frozen=True)
class Outline:
    """What the file of replies has to know: the settings that decide them, and the prompts' numbers."""

    settings: dict
    numbers: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """options: of the command, with the target's folder and both number formats; no weight is read yet. formats: how a person calls
    both; why: a line about the mesh, if it was chosen."""

    options: object
    settings: dict
    prompts: Sequence[NumberedPrompt]
    stops: list[int]
    mesh: tuple[int, int]
    adapter: StoredAdapter | None
    formats: str
    why: str | None

    @property
    def outline(self) -> Outline:
        return Outline(self.settings, self.numbers)

    @property
    def numbers(self) -> list[int]:
        return [prompt.number for prompt in self.prompts]

    @property
    def how(self) -> tuple[Sampling, Limits, int, pathlib.Path]:
        """What `answers` takes besides the prompts: sampling, limits, prompts at a time, the target's folder."""
        options = self.options
        return Sampling(options.temperature), Limits(new=options.max_new_tokens), options.batch_size, options.target

    def engine(self) -> Engine:
        """The pair, read onto its mesh, which is set from now on."""
        options, kwargs = self.options, templates.read_kwargs(self.options.chat_template_kwargs)
        if self.why is not None:
            print(self.why, file=sys.stderr)
        variables = kwargs if options.conversations else None
        notes.say(options.target, [options.drafter], self.formats, self.adapter, variables=variables)
        jax.set_mesh(meshes.make_mesh(*self.mesh))
        target = weights.load_target(options.target, options.dtype, "--target", False, self.adapter, options.weights)
        head = None if options.drafter is None else heads.load_head(options.drafter, options.dtype, "--drafter")
        beams = Shape(*options.beam)
        return Engine(target, proposer_of(head, beams if head is None else fit_shape(head.config, beams)), self.stops)


def make(options) -> Plan:
    """The plan of the checked options.

    Raises:
      BadInput: whatever is wrong with the target, the head, the prompts or the machine.
    """
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
    prompts = share(found, options.seed, *options.shard)
    if not prompts:
        raise BadInput(f"there is no prompt of at most {room} tokens to answer")
    adapter = pair.read_adapter(options.lora)
    numbers = name_formats(dtype, target_config.weight_format)
    return Plan(options, settings_of(options, stops, shape, adapter), prompts, stops, shape, adapter, numbers, why)


def check_pair(options, target: TargetConfig, head: HeadConfig | None) -> int:
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


def load_of(options, target: TargetConfig, head: HeadConfig | None) -> placement.Footprint:
    """What the devices have to carry: both models' weights, and the cache of a batch."""
    prompt = options.prompt_tokens if options.text else QUESTION_TOKENS
    slots = min(target.max_position_embeddings, prompt + options.max_new_tokens)
    return placement.to_decode(target, head, options.dtype, options.batch_size, slots, "--batch-size", refills=True)


def settings_of(options, stops: list[int], shape: tuple[int, int], adapter: StoredAdapter | None = None) -> dict:
    """All that decides the replies, as JSON holds it: options, the ids that end one, the mesh, what is in the files."""
    kind = "conversations" if options.conversations else "text"
    data = datasets.Source(kind, options.conversations or options.text, str(options.target), patterns=options.glob)
    settings = {name: value for name, value in vars(options).items() if name not in FILES}
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
