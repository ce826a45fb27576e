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
from infer.tune.measure import Measured, TunePlan
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, fingerprint, hub, weights
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target
from redrafter_jax.model.vocabulary import as_decoded


@dataclasses.dataclass(frozen=True)
class Loaded:
    """heads, folders: by the heads' names; fingerprints: of the target under "", of each head under its name."""

    name: str
    target: Target
    heads: dict[str, Drafter]
    folders: dict[str, pathlib.Path]
    fingerprints: dict[str, str]
    prompts: list[list[int]]
    mesh: tuple[int, int]
    dtype: str


def load(options, plan: TunePlan) -> Loaded:
    """Reads the pair, the other heads and the prompts, and sets the mesh.

    Raises:
      BadInput: something is missing, does not fit together, or has no room.
    """
    dtype = options.dtype or pair.default_dtype(jax.default_backend())
    folders = name_heads(options.drafter)
    first, *others = folders
    found = pair.find(options.target, str(folders[first]), True, dtype)
    batch, config_ = max(options.batch), found.target_config
    resolved = pair.plan(found, options.mesh, batch, plan.new, plan.longest)
    for name, folder in folders.items():
        _check_head(resolved.target_config, folder, name, plan)
    if any(each % resolved.mesh[0] for each in options.batch):
        raise BadInput(f"--batch should be multiples of the {resolved.mesh[0]} devices that a batch is split over")
    tokenizer = text.load_tokenizer(resolved.target)
    ids = read_prompts(options, tokenizer, config_.vocab_size, config_.max_position_embeddings - plan.new)
    longest = max([*map(len, ids), *(context - plan.new for context in options.context)])
    if longest + plan.new > config_.max_position_embeddings:
        raise BadInput(f"--context should be at most the target's context of {config_.max_position_embeddings}")
    room.check(resolved, longest, plan.new, batch, plan.longest)
    engine = pair.fill(resolved, tokenizer, Shape(), ignore_eos=True).engine
    jax.set_mesh(engine.mesh)
    heads = {first: engine.proposer.head}
    heads |= {name: as_decoded(weights.load_drafter(folders[name], dtype, "--drafter"), engine.target) for name in others}
    marks = {"": fingerprint.fingerprint(resolved.target)} | {name: fingerprint.fingerprint(at) for name, at in folders.items()}
    name = f"{resolved.target.parent.name}/{resolved.target.name} with {', '.join(folders)}; {len(ids)} prompts"
    return Loaded(name, engine.target, heads, folders, marks, ids, resolved.mesh, dtype)


def name_heads(given: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """The folders of the heads that are named, or of the embedded ones, by short names that differ."""
    if not given:
        return {name: pair.embedded(name) for name in (pair.CPU_HEAD, pair.ACCELERATOR_HEAD)}
    folders = [hub.locate(each, "--drafter") for each in dict.fromkeys(given)]
    names = [folder.name for folder in folders]
    return {folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders}


def _check_head(target, folder: pathlib.Path, name: str, plan: TunePlan) -> None:
    head = config.drafter_config(config.read_json(folder, "--drafter"), "--drafter")
    config.check_pair(target, head, "--drafter")
    for width in {width for width, _ in plan.beams}:
        check_drafted(f"--beams of {width} for {name}: their width", width, target.vocab_size, head.draft_vocab)


def read_prompts(options, tokenizer, vocab_size: int, room_for: int) -> list[list[int]]:
    """The ids of the prompts, each with room for its reply. Raises BadInput as `prompts.encode`."""
    if room_for < 1:
        raise BadInput(f"--max-new-tokens should leave room for a prompt in the context of {room_for + options.max_new_tokens}")
    given = prompts.read((), options.prompts or str(pair.EMBEDDED / "prompts.jsonl"))
    return [prompts.encode(prompt, tokenizer, vocab_size, room_for + 1) for prompt in given]


def conditions(options) -> list[tuple[int, int | None]]:
    """Each batch at each context; None is the prompts' own."""
    return list(itertools.product(dict.fromkeys(options.batch), dict.fromkeys(options.context) or [None]))


def entries(loaded: Loaded, machine: Machine, plan: TunePlan, outcome: Measured) -> list[Entry]:
    """What the file keeps of an outcome: an entry of each head."""
    found = Conditions(outcome.batch, outcome.context, plan.sampling.temperature)
    return [
        Entry(machine, loaded.fingerprints[""], loaded.fingerprints[head], os.path.abspath(loaded.folders[head]), found, choice)
        for head, choice in outcome.choices.items()
    ]


def say(step: str) -> None:
    """Says what is being measured, on standard error: on a terminal in a line that the next one replaces."""
    processes.say(f"\r\x1b[K{step} ..." if sys.stderr.isatty() else f"{step} ...", sys.stderr)
