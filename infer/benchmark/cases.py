"""What `infer.benchmark` measures: a pair, its prompts in batches, and how to sample. From disk, or random at a known shape."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from infer import notes, pair, prompts, room, stages, synthetic, text
from infer.benchmark.task import BenchmarkTask, Files, Random, Way
from infer.options import check_drafted
from redrafter_jax.decode import prefill
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.request import DRAFT_TOP_K
from redrafter_jax.devices import memory, mesh_choice, placement
from redrafter_jax.devices import mesh as meshes
from redrafter_jax.errors import BadInput
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.shapes import SHAPES
from redrafter_jax.model.target import Target, TargetConfig

MAX_RANDOM_COPIES = 4  # float32 copies of a matrix, at most, while it is initialised (3.4 were measured at llama-7b's width)


@dataclasses.dataclass(frozen=True)
class BenchmarkPair:
    """What is measured. drafter: the head, if one drafts; batches: of prompts, the last one perhaps smaller; prompts: in words,
    which they are; folder: of the target, None for random weights; mesh_because: why this mesh, if it was not asked for."""

    name: str
    target: Target
    drafter: Drafter | None
    batches: list[list[list[int]]]
    sampling: Sampling
    limits: Limits
    folder: pathlib.Path | None
    prompts: str
    mesh_because: str | None

    @property
    def config(self):
        return self.target.config

    def prepare(self, proposer: Proposer) -> tuple[list[tuple], prefill.Bucket]:
        """Every batch as `loop.start` takes it, all in the bucket of the longest prompt: one program serves them all."""
        engine = Engine(self.target, proposer)
        rows, longest = len(self.batches[0]), max((prompt for batch in self.batches for prompt in batch), key=len)
        _, bucket = engine.prepare([longest], self.sampling, self.limits, [0], rows)
        inputs = []
        for number, batch in enumerate(self.batches):
            seeds = [number * rows + row for row in range(len(batch))]
            (tokens, *rest), _ = engine.prepare(batch, self.sampling, self.limits, seeds, rows)
            inputs.append((stages.pad_prompts(tokens, bucket.prompt), *rest))
        return inputs, bucket


def subject_of(task: BenchmarkTask) -> BenchmarkPair:
    """The pair and its prompts, ready to be measured."""
    models = task.models
    return at_shape(task, models) if isinstance(models, Random) else on_disk(task, models)


def on_disk(task: BenchmarkTask, files: Files) -> BenchmarkPair:
    """The embedded pair, or the one that is named; end-of-text tokens are ignored, so that all replies are equally long."""
    head = files.drafter
    if head is None and files.head is not None:
        head = str(pair.embedded(pair.HEADS[files.head]))
    found = pair.find(files.target, head, files.has_head, task.dtype, task.weight_format, files.lora)
    if isinstance(found.drafter_config, TargetConfig):
        other = f"python -m infer.evaluate --method small:{head} measures how it drafts"
        raise BadInput(f"--drafter: {head} is a model, and infer.benchmark times the stages of a head; {other}")
    plan = pair.plan(found, task.mesh, task.batch, task.limits.new, task.length)
    _check_drafts(task.ways, plan.target_config, plan.drafter_config)
    tokenizer, new = text.load_tokenizer(plan.target), task.limits.new
    longest = plan.target_config.max_position_embeddings - new
    if longest < 1:
        raise BadInput(f"--max-new-tokens should leave room for a prompt in the context of {longest + new}")
    given = prompts.read((), files.prompts or str(pair.EMBEDDED / "prompts.jsonl"))
    which = files.prompts or "infer/demo_pair/prompts.jsonl, starts of Python code (--prompts measures others)"
    which += ", the first questions alone" if any(each.kind == "turns" and len(each.content) > 1 for each in given) else ""
    ids = [prompts.encode(prompt, tokenizer, plan.target_config.vocab_size, longest + 1) for prompt in given]
    room.check(plan, max(map(len, ids)), new, task.batch, task.length)
    notes.say(plan.target, [plan.drafter], plan.numbers, plan.adapter)
    loaded = pair.fill(plan, tokenizer, Shape(), ignore_eos=True).engine
    jax.set_mesh(loaded.mesh)
    drafter = loaded.proposer.head if files.has_head else None
    name, which = " and ".join(_called(each) for each in (plan.target, plan.drafter) if each), f"{len(ids)} of {which}"
    return BenchmarkPair(
        name, loaded.target, drafter, _batches(ids, task.batch), task.sampling, task.limits, plan.target, which, plan.why
    )


def _called(folder: pathlib.Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def at_shape(task: BenchmarkTask, asked: Random) -> BenchmarkPair:
    """Random weights and random prompts."""
    config, new = SHAPES[asked.shape], task.limits.new
    name = f"random weights of shape {asked.shape}"
    if asked.layers is not None and asked.layers != config.num_hidden_layers:
        config = dataclasses.replace(config, num_hidden_layers=asked.layers)
        name += f" with {asked.layers} layers only"
    config = dataclasses.replace(config, weight_format=task.weight_format)
    if asked.prompt_length + new > config.max_position_embeddings:
        raise BadInput(f"--prompt-length plus --max-new-tokens should be at most the context of {config.max_position_embeddings}")
    if not 0 <= asked.head_vocab <= config.vocab_size:
        raise BadInput(f"--head-vocab should be from 0 (all) to the vocabulary of {config.vocab_size}, not {asked.head_vocab}")
    kind, dtype = asked.head or ("slim" if jax.default_backend() == "cpu" else "best"), jnp.dtype(task.dtype)
    head = synthetic.head_config(config, kind, asked.head_vocab)
    _check_drafts(task.ways, config, head)
    load = _load(config, head, task, asked.prompt_length)
    mesh, because = mesh_choice.resolve(load, task.mesh, False, "--mesh", "--distributed")
    what = f"--shape {asked.shape}, with its weights, its head and its cache,"
    memory.check(load, mesh, what, _smaller(config, head, task, asked, mesh), "a smaller --shape or more devices")
    jax.set_mesh(meshes.make_mesh(*mesh))
    config = placement.repeat_kv_heads(config, mesh[1])
    target = synthetic.random_target(jax.random.key(0), config, dtype)
    drafter = vocabulary.as_decoded(synthetic.random_head(jax.random.key(1), head, dtype), target)
    name += f" and a draft vocabulary of {asked.head_vocab}" if asked.head_vocab else ""
    count = asked.prompt_count * task.batch
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (count, asked.prompt_length)).tolist()
    which, batches = f"{count} of {asked.prompt_length} random ids", _batches(ids, task.batch)
    return BenchmarkPair(f"{name}, {kind} head", target, drafter, batches, task.sampling, task.limits, None, which, because)


def _check_drafts(ways: Sequence[Way], target: TargetConfig, head: DrafterConfig | None) -> None:
    for way in ways:
        if way.shape is None:
            continue
        if way.shape.draft_top_k > DRAFT_TOP_K:
            check_drafted("--draft-top-k", way.shape.draft_top_k, target.vocab_size, head.draft_vocab)
        check_drafted(f"--beams {way.name}: its width", way.shape.width, target.vocab_size, head.draft_vocab)


def _load(config: TargetConfig, head: DrafterConfig, task: BenchmarkTask, prompt: int) -> placement.Footprint:
    """The load of the devices: the pair, the cache of the longest rounds, and the largest matrix while it is initialised;
    ``prompt``: tokens of each prompt."""
    making = MAX_RANDOM_COPIES * 4 * config.vocab_size * (config.hidden_size if head.tied else head.exit_size)
    slots = prefill.bucket(prompt, task.limits.new, task.length).slots
    pair = placement.to_decode(config, head, task.dtype, task.batch, slots, "--batch-size")
    return dataclasses.replace(pair, size=pair.size + making)


def _smaller(
    config: TargetConfig, head: DrafterConfig, task: BenchmarkTask, asked: Random, mesh: tuple[int, int]
) -> dict[str, placement.Footprint]:
    """Options with which this shape needs less: the most layers that fit, and the other number format."""

    def of_layers(layers: int) -> placement.Footprint:
        return _load(dataclasses.replace(config, num_hidden_layers=layers), head, task, asked.prompt_length)

    fewer = {layers: of_layers(layers) for layers in range(config.num_hidden_layers - 1, 0, -1)}
    most = next((layers for layers, load in fewer.items() if memory.shortage(load, mesh) is None), 1)
    halved = _load(config, head, dataclasses.replace(task, dtype="bfloat16"), asked.prompt_length)
    quantised = _load(dataclasses.replace(config, weight_format="int8"), head, task, asked.prompt_length)
    return {f"--layers {most}": of_layers(most), "--dtype bfloat16": halved, "--weights int8": quantised}


def _batches(ids: list[list[int]], batch: int) -> list[list[list[int]]]:
    return [ids[first : first + batch] for first in range(0, len(ids), batch)]
