"""What `infer.benchmark` measures: a pair, its prompts in batches, and how to sample. From disk, or random at a known shape."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from infer import folders, pair, prompts, room
from infer.benchmark import synthetic
from infer.generate import checks
from redrafter_jax.decode import prefill
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.loop import Shape
from redrafter_jax.decode.request import DRAFT_TOP_K
from redrafter_jax.devices import memory, placement
from redrafter_jax.devices import mesh as meshes
from redrafter_jax.errors import BadInput
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.shapes import SHAPES
from redrafter_jax.model.target import Target, TargetConfig

MAKING = 4  # float32 copies of a matrix while it is made at random, at most (3.4 were measured at llama-7b's width)
HEADS = {"slim": "drafter_slim", "full": "drafter"}


@dataclasses.dataclass(frozen=True)
class Subject:
    """``batches``: of prompts, the last one perhaps smaller; ``prompts``: in words, which they are; ``folder``: of the target,
    None for random weights; ``mesh_because``: why this mesh, if it was not asked for."""

    name: str
    target: Target
    drafter: Drafter
    batches: list[list[list[int]]]
    sampling: Sampling
    limits: Limits
    folder: pathlib.Path | None
    prompts: str
    mesh_because: str | None

    @property
    def config(self):
        return self.target.config

    def prepare(self, shape: Shape) -> tuple[list[tuple], prefill.Bucket]:
        """Every batch as `loop.start` takes it, all in the bucket of the longest prompt: one program serves them all."""
        engine = Engine(self.target, self.drafter if shape.length else None, shape)
        rows, longest = len(self.batches[0]), max((prompt for batch in self.batches for prompt in batch), key=len)
        _, bucket = engine.prepare([longest], self.sampling, self.limits, [0], rows)
        inputs = []
        for number, batch in enumerate(self.batches):
            seeds = [number * rows + row for row in range(len(batch))]
            (tokens, *rest), _ = engine.prepare(batch, self.sampling, self.limits, seeds, rows)
            inputs.append((jnp.pad(tokens, ((0, 0), (0, bucket.prompt - tokens.shape[1]))), *rest))
        return inputs, bucket


def on_disk(options) -> Subject:
    """The embedded pair, or the one that is named; end-of-text tokens are ignored, so that all replies are equally long."""
    head = options.drafter
    if head is None and options.head is not None:
        head = str(folders.embedded(HEADS[options.head]))
    plan = pair.plan(options.target, head, True, options.dtype, options.mesh, options.batch_size)
    _check_drafts(options, plan.target_config, plan.drafter_config)
    tokenizer = folders.tokenizer(plan.target)
    longest = plan.target_config.max_position_embeddings - options.max_new_tokens
    if longest < 1:
        raise BadInput(f"--max-new-tokens should leave room for a prompt in the context of {longest + options.max_new_tokens}")
    given = prompts.read((), options.prompts or str(folders.EMBEDDED / "prompts.jsonl"))
    which = options.prompts or "infer/demo_pair/prompts.jsonl, the default, which are starts of Python code"
    ids = [prompts.encode(prompt, tokenizer, plan.target_config.vocab_size, longest + 1) for prompt in given]
    room.check(plan, max(map(len, ids)), options.max_new_tokens, options.batch_size, length=0)  # of plain decoding
    loaded = pair.fill(plan, tokenizer, Shape(), ignore_eos=True).engine
    jax.set_mesh(loaded.mesh)
    name = f"{plan.target.parent.name}/{plan.target.name} and {plan.drafter.parent.name}/{plan.drafter.name}"
    which = f"{len(ids)} of {which}"
    return Subject(name, loaded.target, loaded.drafter, _batches(ids, options), *_how(options), plan.target, which, plan.why)


def at_shape(options) -> Subject:
    """Random weights and random prompts."""
    config = SHAPES[options.shape]
    name = f"random weights of shape {options.shape}"
    if options.layers is not None and options.layers != config.num_hidden_layers:
        config = dataclasses.replace(config, num_hidden_layers=options.layers)
        name += f" with {options.layers} layers only"
    if options.prompt_length + options.max_new_tokens > config.max_position_embeddings:
        raise BadInput(f"--prompt-length plus --max-new-tokens should be at most the context of {config.max_position_embeddings}")
    if not 0 <= options.head_vocab <= config.vocab_size:
        raise BadInput(f"--head-vocab should be from 0 (all) to the vocabulary of {config.vocab_size}, not {options.head_vocab}")
    kind, dtype = options.head or ("slim" if jax.default_backend() == "cpu" else "full"), jnp.dtype(options.dtype)
    head = synthetic.head_config(config, kind, options.head_vocab)
    _check_drafts(options, config, head)
    load = _load(config, head, options)
    mesh, because = placement.resolve(load, options.mesh, together=False)
    what = f"--shape {options.shape}, with its weights, its head and its cache,"
    memory.check(load, mesh, what, _smaller(config, head, options, mesh), "a smaller --shape or more devices")
    jax.set_mesh(meshes.make_mesh(*mesh))
    config = placement.repeat_kv_heads(config, mesh[1])
    target = synthetic.random_target(jax.random.key(0), config, dtype)
    drafter = vocabulary.as_decoded(synthetic.random_head(jax.random.key(1), head, dtype), target)
    name += f" and a draft vocabulary of {options.head_vocab}" if options.head_vocab else ""
    count = options.prompt_count * options.batch_size
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (count, options.prompt_length)).tolist()
    which = f"{count} of {options.prompt_length} random ids"
    return Subject(f"{name}, {kind} head", target, drafter, _batches(ids, options), *_how(options), None, which, because)


def _check_drafts(options, target: TargetConfig, head: DrafterConfig) -> None:
    if options.draft_top_k > DRAFT_TOP_K:
        checks.to_draft("--draft-top-k", options.draft_top_k, target, head)
    for text in options.beams:
        checks.to_draft(f"--beams {text}: its width", int(text.partition("x")[0]), target, head)


def _load(config: TargetConfig, head: DrafterConfig, options) -> placement.Footprint:
    """What the devices have to hold: the pair and the cache of plain decoding, and what making the largest matrix takes."""
    making = MAKING * 4 * config.vocab_size * (config.hidden_size if head.tied else head.exit_size)
    slots = prefill.bucket(options.prompt_length, options.max_new_tokens, 0).slots
    pair = placement.to_decode(config, head, options.dtype, options.batch_size, slots)
    return dataclasses.replace(pair, size=pair.size + making)


def _smaller(config: TargetConfig, head: DrafterConfig, options, mesh: tuple[int, int]) -> dict[str, placement.Footprint]:
    """Options with which this shape needs less: the most layers that fit, and the other number format."""

    def of_layers(layers: int) -> placement.Footprint:
        return _load(dataclasses.replace(config, num_hidden_layers=layers), head, options)

    fewer = {layers: of_layers(layers) for layers in range(config.num_hidden_layers - 1, 0, -1)}
    most = next((layers for layers, load in fewer.items() if memory.shortage(load, mesh) is None), 1)
    halved = _load(config, head, dataclasses.replace(options, dtype="bfloat16"))
    return {f"--layers {most}": of_layers(most), "--dtype bfloat16": halved}


def _batches(ids: list[list[int]], options) -> list[list[list[int]]]:
    return [ids[first : first + options.batch_size] for first in range(0, len(ids), options.batch_size)]


def _how(options) -> tuple[Sampling, Limits]:
    return Sampling(options.temperature, options.top_k, options.top_p, options.acceptance), Limits(new=options.max_new_tokens)
