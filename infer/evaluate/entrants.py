"""From methods to engines: folders found, configs checked against the target, weights read once.

Not here: timing (`contest.py`).
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax

from infer import pair, proposers, text
from infer.evaluate.methods import EMBEDDED, WITH_FOLDER, Method, medusa_width, names_of
from infer.evaluate.metrics import TOP_K
from infer.pair import Resolved
from redrafter_jax.decode import prefill
from redrafter_jax.decode.engine import Engine, Sampling
from redrafter_jax.decode.propose.heads import default_shape_of, tree_of
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.devices import memory, placement
from redrafter_jax.devices import mesh as meshes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, heads, hub, weights
from redrafter_jax.files.heads import DraftsConfig
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.medusa import MedusaConfig
from redrafter_jax.model.target import TargetConfig

KIND_OF = {DrafterConfig: "recurrent", MedusaConfig: "medusa", TargetConfig: "small"}


@dataclasses.dataclass(frozen=True)
class Nominee:
    """A method whose config is read and fits the target. shape: None where no weights draft; bytes: of its weights as read."""

    method: Method
    name: str
    resolved: Resolved
    shape: Shape | None = None

    @property
    def length(self) -> int:
        """L of its rounds."""
        return proposers.drafted_length(self.shape, proposers.lookup_of(self.method.lookup))

    @property
    def drafter_bytes(self) -> int:
        drafter = self.resolved.drafter_config
        return 0 if drafter is None else placement.bytes_of_head(drafter, self.resolved.dtype)


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A method ready to decode. parameters: of what drafts."""

    entry: Nominee
    engine: Engine
    parameters: int

    @property
    def method(self) -> Method:
        return self.entry.method

    @property
    def name(self) -> str:
        return self.entry.name

    def sampling(self, temperature: float) -> Sampling:
        return Sampling(temperature, rule=self.method.rule)

    def described(self) -> dict:
        """What a report says of it besides figures."""
        round = self.engine.proposer.round
        return {
            "method": self.method.text,
            "name": self.name,
            "kind": self.method.kind,
            "tree": self.method.tree_kind if self.entry.shape is not None else None,
            "rule": self.method.rule,
            "length": round.length,
            "nodes": round.nodes,
            "drafter_parameters": self.parameters,
            "drafter_bytes": self.entry.drafter_bytes,
        }


def find(
    target: str | None,
    methods: Sequence[Method],
    formats: tuple[str, str | None],
    mesh,
    rows: int,
    new: int,
    lora: str | None = None,
) -> list[Nominee]:
    """The folders of all methods, with the mesh that they all decode on: ``mesh``, or None for one that suits the first;
    ``formats``: as `pair.number_formats` gives them.

    Raises:
      BadInput: as `pair.find` and `pair.plan`, or a folder has another kind of drafter than its method says, or a tree does
        not fit.
    """
    bare = pair.find(target, None, False, *formats, lora)
    entries = []
    for method, name in zip(methods, names_of(methods), strict=True):
        with naming(method):
            entry = _find_one(method, name, bare)
            entries.append(entry)
    has_weights = [entry for entry in entries if entry.shape is not None] or entries
    first = pair.plan(has_weights[0].resolved, mesh, rows, new, has_weights[0].length)
    for entry in has_weights[1:]:
        pair.plan(entry.resolved, first.mesh, rows, new, entry.length)
    agreed = {"mesh": first.mesh, "why": first.why}
    return [dataclasses.replace(each, resolved=dataclasses.replace(each.resolved, **agreed)) for each in entries]


def _find_one(method: Method, name: str, bare: Resolved) -> Nominee:
    context = bare.target_config.max_position_embeddings
    if method.lookup is not None and method.lookup.length >= context:
        raise BadInput(f"the lookup's length should be below the target's context of {context}, not {method.lookup.length}")
    if method.folder is None:
        return Nominee(method, name, bare)
    is_embedded = method.folder == EMBEDDED
    folder = pair.embedded(embedded_part(method.kind)) if is_embedded else hub.locate(method.folder, "its folder")
    drafter = heads.read_config(folder, "its folder")
    kind = KIND_OF[type(drafter)]
    if kind != method.kind:
        raise BadInput(f"{folder} holds {WITH_FOLDER[kind]}; write {kind}:{method.folder}")
    config.check_pair(bare.target_config, drafter, "its folder")
    if kind == "small":
        text.check_same_tokens(bare.target, folder, "its folder")
    resolved = dataclasses.replace(bare, drafter=folder, drafter_config=drafter)
    shape = shape_of(method, drafter, pair.default_shape(jax.default_backend(), bare.target_config, bare.dtype))
    shape.check_vocabulary(bare.target_config.vocab_size, *(getattr(drafter, name, 0) for name in ("draft_vocab", "candidates")))
    if shape.length >= context:
        raise BadInput(f"its beams should be shorter than the target's context of {context}, not {shape.length}")
    return Nominee(method, name, resolved, shape)


def embedded_part(kind: str) -> str:
    """Which folder of the embedded pair drafts in this way."""
    return {"medusa": pair.MEDUSA, "small": pair.SMALL_MODEL}.get(kind) or pair.default_head(jax.default_backend())


def shape_of(method: Method, drafter: DraftsConfig, otherwise: Shape) -> Shape:
    """The shape that a method asks for. Drafts of the paper's tree are cut to 50 tokens, as in Apple's code.

    Raises:
      BadInput: Medusa's heads have fewer nodes, or are fewer, than it asks for.
    """
    wanted, top_k = method.tree, TOP_K.get(method.tree_kind, Shape.draft_top_k)
    if wanted is None:
        return dataclasses.replace(default_shape_of(drafter, otherwise), tree=method.tree_kind, draft_top_k=top_k)
    if not isinstance(drafter, MedusaConfig):
        return Shape(wanted.width, wanted.length, wanted.budget, wanted.kind, top_k)
    if wanted.length > drafter.num_heads:
        raise BadInput(f"a tree of depth {wanted.length} needs as many heads, but there are {drafter.num_heads}")
    paths = tree_of(drafter)
    if wanted.width:
        return Shape(wanted.width, wanted.length, wanted.budget)
    if wanted.budget > 1 + len(paths):
        raise BadInput(f"the tree of these heads has {1 + len(paths)} nodes, fewer than {wanted.budget}")
    depth = max(map(len, paths))
    return Shape(medusa_width(wanted.budget, depth), depth, wanted.budget)


def check_room(entries: Sequence[Nominee], longest: int, new: int, rows: int) -> None:
    """Raises BadInput where the weights of all methods and the cache of one batch do not fit; ``longest``: tokens of a prompt."""
    first = entries[0].resolved

    def load(rows: int = rows, new: int = new, dtype: str = first.dtype, found: Resolved = first):
        slots = prefill.bucket(longest, new, max(entry.length for entry in entries)).slots
        target = placement.to_decode(found.target_config, None, dtype, rows, slots)
        drafters = {entry.resolved.drafter: entry.resolved.drafter_config for entry in entries if entry.shape is not None}
        size = sum(placement.bytes_of_head(each, dtype) for each in drafters.values())
        caches = [placement.bytes_of_token(each, dtype) for each in drafters.values() if isinstance(each, TargetConfig)]
        return dataclasses.replace(target, size=target.size + size, cache=target.cache + rows * slots * max(caches, default=0))

    ways = {"--dtype bfloat16": load(dtype="bfloat16"), "--weights int8": load(found=first.with_weights("int8"))}
    ways |= {"--batch-size 1": load(rows=1)} if rows > 1 else {}
    ways |= {"--max-new-tokens 64": load(new=64)} if new > 64 else {}
    what = f"the target in {first.numbers}, with all drafters and the cache of --batch-size {rows} and --max-new-tokens {new},"
    memory.check(load(), first.mesh, what, ways, "fewer methods or more devices")


def fill(entries: Sequence[Nominee], tokenizer, ignore_eos: bool) -> list[Entrant]:
    """Reads the weights, those of a folder once, and makes the engines."""
    first = entries[0].resolved
    stops = [] if ignore_eos else config.stop_ids(first.target, tokenizer, "--target")
    read: dict[pathlib.Path, object] = {}
    found = []
    with jax.set_mesh(meshes.make_mesh(*first.mesh)):
        weight_format = first.target_config.weight_format
        target = weights.load_target(first.target, first.dtype, "--target", False, first.adapter, weight_format)
        for entry in entries:
            folder = entry.resolved.drafter
            with naming(entry.method):
                if folder is not None and folder not in read:
                    read[folder] = heads.load_head(folder, first.dtype, "its folder")
                head, lookup = read.get(folder), proposers.lookup_of(entry.method.lookup)
                engine = Engine(target, proposers.proposer_of(head, entry.shape or Shape(), lookup), stops)
            found.append(Entrant(entry, engine, placement.parameters_of(head)))
    return found


@contextlib.contextmanager
def naming(method: Method) -> Iterator[None]:
    """Begins an error with the method that it is about."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"--method {method.text}: {error}") from None
