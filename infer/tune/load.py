"""What `infer.tune` measures: the target with all its heads, the prompts; and what it keeps of an outcome."""

import dataclasses
import itertools
import os
import pathlib
import sys

import jax

from infer import pair, prompts, room, text
from infer.options import check_drafted
from infer.settings import Conditions, Entry, Machine
from infer.tune import candidates
from infer.tune.measure import Measured, TunePlan
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, fingerprint, heads, hub
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target, TargetConfig
from redrafter_jax.model.vocabulary import as_decoded


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be tuned, before any weight is read. folders: of the heads, by their names; marks: fingerprints, of the target
    under "", of each head under its name; planned: of each mesh, the pair with its first head on it and the batches that are tuned
    there."""

    name: str
    folders: dict[str, pathlib.Path]
    marks: dict[str, str]
    prompts: list[list[int]]
    tokenizer: object | None
    planned: dict[tuple[int, int], tuple[pair.Resolved, list[int]]]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The weights on one of the meshes. heads: by their names."""

    target: Target
    heads: dict[str, heads.Head]


def find(options, plan: TunePlan) -> Wanted:
    """Finds the pair and the other heads, reads the prompts, and plans the mesh of each batch.

    Raises:
      BadInput: something is missing, does not fit together, or has no room.
    """
    formats = pair.number_formats(options.dtype, options.weights)
    folders = name_heads(options.drafter)
    found = pair.find(options.target, str(next(iter(folders.values()))), True, *formats, options.lora)
    target = found.target_config
    configs = {name: heads.read_head_config(folder, "--drafter") for name, folder in folders.items()}
    for name, head in configs.items():
        _check_head(target, head, name, plan)
    planned = plan_meshes(found, options)
    for (resolved, batches), head in itertools.product(planned.values(), configs.values()):
        pair.plan(dataclasses.replace(resolved, drafter_config=head), resolved.mesh, max(batches), plan.new, option="--batch")
    tokenizer = text.load_tokenizer(found.target)
    ids = read_prompts(options, tokenizer, target.vocab_size, target.max_position_embeddings - plan.new)
    longest = max([*map(len, ids), *(context - plan.new for context in options.context)])
    if longest + plan.new > target.max_position_embeddings:
        raise BadInput(f"--context should be at most the target's context of {target.max_position_embeddings}")
    for resolved, batches in planned.values():
        drafted = max(point.length for point in candidates.grid(configs, plan.beams, plan.nodes))
        room.check(resolved, longest, plan.new, max(batches), drafted)
    marks = {"": found.target_fingerprint} | {name: fingerprint.fingerprint(at) for name, at in folders.items()}
    name = f"{found.target.parent.name}/{found.target.name} with {', '.join(folders)}; {len(ids)} prompts"
    return Wanted(name, folders, marks, ids, tokenizer, planned)


def plan_meshes(found: pair.Resolved, options) -> dict[tuple[int, int], tuple[pair.Resolved, list[int]]]:
    """The mesh of each batch, as `infer.generate` plans it for that batch before it has read any settings: another batch may get
    another mesh, and an entry is found by its mesh. Raises BadInput as `pair.plan`."""
    planned: dict[tuple[int, int], tuple[pair.Resolved, list[int]]] = {}
    for batch in dict.fromkeys(options.batch):
        resolved = pair.plan(found, options.mesh, batch, options.max_new_tokens, pair.shape_of(found).length, "--batch")
        planned.setdefault(resolved.mesh, (resolved, []))[1].append(batch)
    return planned


def load(wanted: Wanted, mesh: tuple[int, int]) -> Loaded:
    """Reads the weights onto a mesh of the plan, which becomes the current one."""
    resolved, _ = wanted.planned[mesh]
    engine = pair.fill(dataclasses.replace(resolved, drafter=None), wanted.tokenizer, Shape(), ignore_eos=True).engine
    jax.set_mesh(engine.mesh)
    loaded = {name: heads.load_head(folder, resolved.dtype, "--drafter") for name, folder in wanted.folders.items()}
    decoded = {name: as_decoded(head, engine.target) if isinstance(head, Drafter) else head for name, head in loaded.items()}
    return Loaded(engine.target, decoded)


def name_heads(given: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """The folders of the heads that are named, or of the embedded ones, by short names that differ."""
    if not given:
        return {name: pair.embedded(name) for name in pair.HEADS.values()}
    folders = [hub.locate(each, "--drafter") for each in dict.fromkeys(given)]
    names = [folder.name for folder in folders]
    return {folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders}


def _check_head(target: TargetConfig, head: heads.HeadConfig, name: str, plan: TunePlan) -> None:
    config.check_pair(target, head, "--drafter")
    for width in {width for width, _ in plan.beams} if isinstance(head, DrafterConfig) else ():
        check_drafted(f"--beams of {width} for {name}: their width", width, target.vocab_size, head.draft_vocab, head.candidates)


def read_prompts(options, tokenizer, vocab_size: int, room_for: int) -> list[list[int]]:
    """The ids of the prompts, each with room for its reply. Raises BadInput as `prompts.encode`."""
    if room_for < 1:
        raise BadInput(f"--max-new-tokens should leave room for a prompt in the context of {room_for + options.max_new_tokens}")
    given = prompts.read((), options.prompts or str(pair.EMBEDDED / "prompts.jsonl"))
    return [prompts.encode(prompt, tokenizer, vocab_size, room_for + 1) for prompt in given]


def contexts(options) -> list[int | None]:
    """Contexts at which rounds are timed; None is the prompts' own."""
    return list(dict.fromkeys(options.context)) or [None]


def entries(wanted: Wanted, machine: Machine, plan: TunePlan, outcome: Measured) -> list[Entry]:
    """What the file keeps of an outcome: an entry of each head."""
    found = Conditions(outcome.batch, outcome.context, plan.sampling.temperature)
    return [
        Entry(machine, wanted.marks[""], wanted.marks[head], os.path.abspath(wanted.folders[head]), found, choice)
        for head, choice in outcome.choices.items()
    ]


def say(step: str) -> None:
    """Says what is being measured, on standard error: on a terminal in a line that the next one replaces."""
    processes.say(f"\r\x1b[K{step} ..." if sys.stderr.isatty() else f"{step} ...", sys.stderr)
