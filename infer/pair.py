"""A target, its head and its tokenizer, loaded and ready to decode; and the defaults for each kind of device.

Not here: what a pair does (`completion.py`), the tokenizer (`text.py`), the hub and configs (`redrafter_jax.files`), decoding
(`redrafter_jax.decode.engine`).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax

from infer import notes, text
from infer.completion import Completion, Pair
from infer.options import name_formats, weights_beside, wrong_dtype
from infer.proposers import check_drafting, drafted_length, named_lookup, proposer_of
from redrafter_jax.decode import prefill
from redrafter_jax.decode.engine import Engine
from redrafter_jax.decode.propose.heads import default_shape_of
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.request import is_whole, require
from redrafter_jax.devices import memory, mesh_choice, placement
from redrafter_jax.devices import mesh as meshes
from redrafter_jax.errors import BadInput, shown
from redrafter_jax.files import config, fingerprint, heads, hub, peft, weights
from redrafter_jax.files.heads import HeadConfig
from redrafter_jax.files.peft import StoredAdapter
from redrafter_jax.model import quantised
from redrafter_jax.model.target import TargetConfig

HEADS = {"slim": "drafter_slim", "best": "drafter_best", "full": "drafter"}  # as `train.main --head` calls them
MEDUSA, SMALL_MODEL = "medusa", "small_model"  # what else drafts for the embedded target
CACHED_SHAPE, CPU_SHAPE, ACCELERATOR_SHAPE = Shape(width=2, length=2), Shape(width=1, length=3), Shape(width=8, length=5)
DEFAULT_CPU_CACHE_BYTES = 32 << 20  # bytes; of a CPU that does not say
__all__ = ["Completion", "Pair", "load"]  # two of which are made in `completion.py`
EMBEDDED = pathlib.Path(__file__).parent / "demo_pair"
PLANNED_PROMPT_TOKENS = 2048  # tokens; what a mesh leaves room for in the cache, before any prompt is known


def embedded(part: str) -> pathlib.Path:
    """A folder of the embedded pair: target, one of `HEADS`, medusa or small_model.

    Raises:
      BadInput: the pair is not there.
    """
    folder = EMBEDDED / part
    if not (folder / "config.json").is_file():
        raise BadInput(f"the embedded pair lacks {folder}; give --target and --drafter, or train a pair with train.demo")
    return folder


def default_shape(platform: str, target: TargetConfig, dtype: str) -> Shape:
    """A CPU pays for every node, so a small tree wins there, and a single beam for a target that is read from memory because the
    CPU's cache has no room for it; an accelerator scores dozens of nodes for little more than one (docs/reports/benchmarks.md)."""
    if platform != "cpu":
        return ACCELERATOR_SHAPE
    return CACHED_SHAPE if placement.bytes_read_by_step(target, dtype) <= cache_size() else CPU_SHAPE


def shape_of(found: "Resolved") -> Shape:
    """The shape to decode with where none is asked for."""
    otherwise = default_shape(jax.default_backend(), found.target_config, found.dtype)
    return default_shape_of(found.drafter_config, otherwise)


@functools.cache
def cache_size(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> int:
    """Bytes of the CPU's largest cache, as Linux says; `DEFAULT_CPU_CACHE_BYTES` where it does not."""
    sizes = []
    for file in pathlib.Path(folder).glob("index*/size"):
        try:
            kib = file.read_text().strip().removesuffix("K")
        except OSError:
            continue
        if kib.isdigit():
            sizes.append(int(kib) << 10)
    return max(sizes, default=DEFAULT_CPU_CACHE_BYTES)


def default_head(platform: str) -> str:
    """Which of the embedded pair's heads: on a CPU the one that drafts for least, elsewhere the one that is accepted most."""
    return HEADS["slim" if platform == "cpu" else "best"]


def default_dtype(platform: str) -> str:
    """A CPU computes in float32; TPUs and GPUs are made for bfloat16, and multiply float32 several times slower."""
    return "float32" if platform == "cpu" else "bfloat16"


def number_formats(dtype: str | None, weights: str | None, prefix: str = "--") -> tuple[str, str | None]:
    """What is computed in, and the format of `quantised.FORMATS` that the target's matrices are stored in, if any, as ``dtype`` and
    ``weights`` say, which are options with this prefix.

    Raises:
      BadInput: they do not go together, or the devices do not have the format.
    """
    dtype, weight_format = weights_beside(dtype, weights, prefix)
    if weight_format is not None:
        quantised.check_device(weight_format, f"{prefix}weights")
    return dtype or default_dtype(jax.default_backend()), weight_format


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A pair whose configs are read and fit together, and whose weights are not read yet: folders, configs, mesh, number
    format."""

    target: pathlib.Path
    target_config: TargetConfig
    drafter: pathlib.Path | None
    drafter_config: HeadConfig | None
    mesh: tuple[int, int] = (1, 1)
    dtype: str = "float32"
    why: str | None = None  # of a mesh that was not asked for
    adapter: StoredAdapter | None = None  # merged into the target as it is read

    @property
    def target_fingerprint(self) -> str:
        """Of all that decides what the target writes; its files are read where they were not before."""
        return fingerprint.fingerprint(self.target, self.adapter.fingerprint if self.adapter else None)

    @property
    def numbers(self) -> str:
        """Number format, and that of the target's matrices where it is another, in words."""
        return name_formats(self.dtype, self.target_config.weight_format)

    def with_weights(self, weight_format: str | None) -> "Resolved":
        """The same with the target's matrices in another format."""
        return dataclasses.replace(self, target_config=dataclasses.replace(self.target_config, weight_format=weight_format))


def load(
    target: str | None = None,
    drafter: str | Lookup | None = None,
    shape: Shape | None = None,
    dtype: str | None = None,
    mesh: tuple[int, int] = (1, 1),
    ignore_eos: bool = False,
    beside: str | Lookup | None = None,
    lora: str | None = None,
    weights: str | None = None,
) -> Pair:
    """A pair by folders or hub names; the embedded one if nothing is named; plain decoding for a target without a head.
    Any number of pairs, each on a mesh of its own, can be used in one process, from any thread.

    ``drafter`` "lookup" (a folder that is called so is "./lookup"), or a `Lookup`, drafts without a head; ``beside`` takes
    the same, and drafts together with the head. ``lora``: a folder or hub name of a low-rank adapter in PEFT's format, which is
    merged into the target. ``weights`` "int8" or "fp8" stores the matrices of the target's layers so.

    Raises:
      BadInput: something is missing, broken, or does not fit together.
    """
    dtype, weight_format = number_formats(dtype, weights, "")
    _check_loading(shape, dtype, mesh)
    alone, lookup = named_lookup(drafter), named_lookup(beside)
    with_head = alone is None and (target is None or drafter is not None)
    check_drafting(shape, with_head, alone, beside, lookup)
    found = find(target, None if alone else drafter, with_head, dtype, weight_format, lora)
    if with_head:
        shape = shape_of(found) if shape is None else shape
        shape.check_vocabulary(found.target_config.vocab_size, found.drafter_config.draft_vocab, found.drafter_config.candidates)
    lookup = alone or lookup
    resolved = plan(found, mesh, rows=mesh[0], length=drafted_length(shape if with_head else None, lookup))
    notes.say(resolved.target, [resolved.drafter], resolved.numbers, resolved.adapter)
    return fill(resolved, text.load_tokenizer(resolved.target), shape or Shape(), ignore_eos, lookup)


def _check_loading(shape: Shape | None, dtype: str, mesh: tuple[int, int]) -> None:
    if shape is not None and not isinstance(shape, Shape):
        raise BadInput(f"shape should be a Shape, such as Shape(2, 2), not {shown(shape)}")
    require("dtype", wrong_dtype(dtype))
    pair_of_sizes = isinstance(mesh, Sequence) and len(mesh) == 2 and all(is_whole(size) and size >= 1 for size in mesh)
    if not pair_of_sizes:
        raise BadInput(f"mesh should be two whole numbers from 1 up, such as (1, 1), not {shown(mesh)}")


def find(
    target: str | None, drafter: str | None, with_head: bool, dtype: str, weight_format: str | None = None, lora: str | None = None
) -> Resolved:
    """Finds the folders, reads their configs and checks that they fit each other. Which mesh is not known yet (`plan`).
    ``weight_format``: as `number_formats` gives it; ``lora``: of an adapter, which is read.

    Raises:
      BadInput: as for `load`.
    """
    folder = hub.locate(target, "--target") if target is not None else embedded("target")
    target_config = config.target_config(config.read_json(folder, "--target"), "--target", weight_format)
    head = head_config = None
    if with_head:
        default = default_head(jax.default_backend())
        head = hub.locate(drafter, "--drafter") if drafter is not None else embedded(default)
        head_config = heads.read_config(head, "--drafter")
        config.check_pair(target_config, head_config, "--drafter")
        if isinstance(head_config, TargetConfig):
            text.check_same_tokens(folder, head, "--drafter")
    return Resolved(folder, target_config, head, head_config, dtype=dtype, adapter=read_adapter(lora))


def read_adapter(lora: str | pathlib.Path | None) -> StoredAdapter | None:
    """The adapter of a folder or hub name; None of None. Raises BadInput as `peft.read`."""
    return None if lora is None else peft.read(hub.locate(lora, "--lora"), "--lora")


def plan(
    found: Resolved,
    mesh: tuple[int, int] | None,
    rows: int = 1,
    new_tokens: int = 128,
    length: int = 0,
    option: str = "--batch-size",
    together: bool = False,
) -> Resolved:
    """With a mesh that fits the pair, or one that is chosen (``mesh`` None), for so many rows (of ``option``) and new tokens and
    rounds that draft ``length`` tokens deep; ``together``: of the devices of all processes.

    Raises:
      BadInput: the mesh does not fit, or its devices have no room for the weights.
    """
    target, head = found.target_config, found.drafter_config
    context = target.max_position_embeddings
    slots = prefill.bucket(min(context, PLANNED_PROMPT_TOKENS), min(context, new_tokens), length).slots
    load = placement.to_decode(target, head, found.dtype, rows, slots, option)
    mesh, why = mesh_choice.resolve(load, mesh, together, "--mesh", "--distributed", "model")
    # The weights alone: the cache depends on prompts that are not known yet (`room.check`).
    smaller = {
        "--dtype bfloat16": placement.to_decode(target, head, "bfloat16"),
        "--weights int8": placement.to_decode(found.with_weights("int8").target_config, head, found.dtype),
    }
    certain = placement.to_decode(target, head, found.dtype)
    memory.check(certain, mesh, f"--target in {found.numbers}", smaller, "a smaller target or more devices")
    return dataclasses.replace(found, mesh=mesh, why=why)


def fill(
    resolved: Resolved,
    tokenizer,
    shape: Shape,
    ignore_eos: bool = False,
    lookup: Lookup | None = None,
    others: Sequence[Shape] = (),
) -> Pair:
    """Reads the weights onto the mesh, which becomes the engine's; ``lookup`` drafts beside the head; ``others``: `Engine`."""
    stops = [] if ignore_eos else config.stop_ids(resolved.target, tokenizer, "--target")
    with jax.set_mesh(meshes.make_mesh(*resolved.mesh)):
        head = heads.load_head(resolved.drafter, resolved.dtype, "--drafter") if resolved.drafter else None
        weight_format = resolved.target_config.weight_format
        target = weights.load_target(resolved.target, resolved.dtype, "--target", False, resolved.adapter, weight_format)
    return Pair(Engine(target, proposer_of(head, shape, lookup), stops, others), tokenizer)
