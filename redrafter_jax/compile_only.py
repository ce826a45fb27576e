"""Programs for TPU slices that are not here: compiled by libtpu on any Linux machine. Nothing runs and no weight exists.

    slice_ = compile_only.slice_of("v5e:2x4")
    with jax.set_mesh(slice_.mesh(2, 4)):
        target = compile_only.target(shapes, "bfloat16")
        program = compile_only.compile_program(jax.jit(function), target)
    program.held, program.seconds(slice_.chip)

Every figure is of one chip. Not here: which function, and what is to be learnt from the figures (`infer.fit`, `train.fit`).
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import pathlib
import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from redrafter_jax import config, hlo, mesh
from redrafter_jax.chips import CHIPS, GIB, Chip
from redrafter_jax.errors import BadInput
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.shapes import SHAPES
from redrafter_jax.model.target import Target, TargetConfig

MARGIN = 0.05  # of the usable HBM, left for what a running process holds beside its program
NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
"""What libtpu would otherwise ask the machine for, and complain that it is not a TPU, though the topology is given by name; and
that others may use libtpu meanwhile, since no TPU is taken."""
DEPTHS = (2, 4)  # layers of the two programs from whose difference a deeper one follows


class DoesNotFit(Exception):
    """The compiler refused a program for its memory; ``bytes`` is what it would hold on a chip, None if that was not said."""

    def __init__(self, bytes_: int | None):
        super().__init__("the program does not fit")
        self.bytes = bytes_


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice by the name of its topology, such as v5e:2x4."""

    name: str
    chip: Chip
    devices: tuple

    def mesh(self, data: int, model: int) -> jax.sharding.Mesh:
        """The mesh that `redrafter_jax.mesh.make_mesh` would make there."""
        return mesh.over(self.devices, data, model)


def chips_of(name: str) -> tuple[Chip, int]:
    """The kind of chip of a slice, and how many of them.

    Raises:
      BadInput: the name is not that of a chip and a grid.
    """
    kind, _, grid = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", grid):
        raise BadInput(f"--topology should be a chip ({', '.join(CHIPS)}) and a grid, such as v5e:2x4 or v5p:2x2x1, not {name}")
    return CHIPS[kind], math.prod(map(int, grid.split("x")))


def slice_of(name: str) -> Slice:
    """The slice of this name.

    Raises:
      BadInput: the chip or the topology is not known, or libtpu is not installed.
    """
    chip, _ = chips_of(name)
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput('the TPU compiler, libtpu, is not installed; install it with: pip install "jax[tpu]" (Linux on x86-64)')
    for key, value in NOWHERE.items():
        os.environ.setdefault(key, value)
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"--topology: libtpu does not know {name} ({reason}); 2x2 and 2x4 (v5p: 2x2x1 and 2x2x2) are known"
        ) from None
    return Slice(name, chip, tuple(topology.devices))


def target_config(model: str) -> TargetConfig:
    """The shapes of a target by a known name, or by a folder with its config.json.

    Raises:
      BadInput: it is neither.
    """
    name = model.replace("vicuna", "llama")
    if name in SHAPES:
        return SHAPES[name]
    folder = pathlib.Path(model).expanduser()
    if not folder.is_dir():
        names = [*SHAPES, *(name.replace("llama", "vicuna") for name in SHAPES if re.fullmatch(r"llama-\d+b", name))]
        raise BadInput(f"--model should be one of {', '.join(names)}, or a folder with config.json, not {model}")
    return config.target_config(config.read_json(folder, "--model"), "--model")


@contextlib.contextmanager
def on_paper(data: int, model: int):
    """A mesh of no devices, as a context: shapes and shardings follow from it, but nothing can be compiled for it."""
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    none = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))  # a mesh gives way to none, but to no other size
    with none, jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((data, model), mesh.AXES, axis_types=explicit)):
        yield


def why_not(target: TargetConfig, head: DrafterConfig, model: int) -> str | None:
    """What so many shards of ``model`` do not divide, in words; None where they divide everything."""
    return mesh.Load(target, head).unfit(1, model)


def meshes(
    given: tuple[int, int] | None, topology: str, target: TargetConfig, head: DrafterConfig
) -> tuple[list[tuple[int, int]], list[str]]:
    """The meshes to try: the one given, or all those of all chips over which a pair can be split; and why others are left out.

    Raises:
      BadInput: the one given is not of all chips, or cannot split the pair.
    """
    chips = chips_of(topology)[1]
    if given is None:
        sizes = [(chips // model, model) for model in range(1, chips + 1) if chips % model == 0]
        reasons = {size: why_not(target, head, size[1]) for size in sizes}
        left_out = [f"mesh {data}x{model}: {reason}" for (data, model), reason in reasons.items() if reason]
        return [size for size in sizes if not reasons[size]], left_out
    data, model = given
    if min(given) < 1 or data * model != chips:
        raise BadInput(f"--mesh should be two numbers whose product is the {chips} chips of {topology}, not {data} {model}")
    if reason := why_not(target, head, model):
        raise BadInput(f"--mesh {data} {model} cannot split this target: {reason}")
    return [given], []


def untaken(batches: tuple[int, ...], tried: list[tuple[int, int]]) -> dict[int, str]:
    """The batches that no mesh takes, since its data shards do not divide them, each with a sentence.

    Raises:
      BadInput: that is all of them.
    """
    data, model = tried[0]
    shards = sorted(shards for shards, _ in tried)
    none = f"mesh {data}x{model} does not take" if len(tried) == 1 else f"no mesh of all {data * model} chips takes"
    said = f"data shards are {', '.join(map(str, shards))}; give a multiple"
    found = {batch: f"{none} batch {batch}; {said}" for batch in batches if all(batch % count for count in shards)}
    if all(batch in found for batch in batches):
        raise BadInput(f"--batch: {found[batches[0]]}")
    return found


def target(shapes: TargetConfig, dtype: str, spread: bool = False) -> Target:
    """A target of shapes and shardings alone, on the current mesh, split over ``data`` too if ``spread``; with repeated
    key-value heads where it has too few."""
    fitted = mesh.fit(shapes, jax.sharding.get_abstract_mesh().shape["model"])
    return jax.eval_shape(lambda: mesh.spread(Target(jax.random.key(0), fitted, jnp.dtype(dtype)), spread))


def drafter(shapes: DrafterConfig, dtype: str) -> Drafter:
    """A head of shapes and shardings alone, on the current mesh."""
    return jax.eval_shape(lambda: Drafter(jax.random.key(0), shapes, jnp.dtype(dtype)))


def abstract(shape: tuple[int, ...], dtype, spec: jax.P) -> jax.ShapeDtypeStruct:
    """An array of the current mesh that does not exist."""
    sharding = jax.sharding.NamedSharding(jax.sharding.get_abstract_mesh(), spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def bytes_of(tree) -> int:
    """Bytes of the arrays on one chip, without what layouts pad."""
    held = lambda leaf: leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)  # noqa: E731
    return sum(int(np.prod(held(leaf))) * _width(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _width(dtype) -> int:
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of one program on one chip.

    flops: operations (a loop's body counted once); arguments, outputs, aliased, temporaries, code: bytes; cycles: expected,
    by stage (`hlo.Text.cycles`); links, link_bytes: operations between chips and the bytes of their results; whole: False if
    the figures follow from programs of fewer layers; compile_seconds: on this machine.
    """

    flops: float
    arguments: float
    outputs: float
    aliased: float
    temporaries: float
    code: float
    cycles: dict[str, float]
    links: float
    link_bytes: float
    whole: bool
    compile_seconds: float
    text: hlo.Text | None = None

    @property
    def held(self) -> float:
        """Bytes of HBM while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    def seconds(self, chip: Chip, *stages: str) -> float:
        """Expected time of these stages, of all if none is named: cycles by the clock."""
        return sum(value for name, value in self.cycles.items() if not stages or name in stages) / chip.clock


def fits(held: float, chip: Chip) -> bool:
    """Whether it leaves the margin."""
    return held <= chip.usable_bytes * (1 - MARGIN)


@contextlib.contextmanager
def without_persistent_cache():
    """JAX's persistent compilation cache turned off: a program for a TPU that is not here is written to it, but cannot be read
    back, and JAX warns of that."""
    folder = jax.config.jax_compilation_cache_dir
    _keep_programs_in(None)
    try:
        yield
    finally:
        _keep_programs_in(folder)


def _keep_programs_in(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # else what was in use before stays in use


def compile_program(function, *args, **static) -> Program:
    """Compiles a jitted function for the current mesh.

    Raises:
      DoesNotFit: it would not fit into the HBM of a chip.
      BadInput: the compiler failed otherwise, which is the compiler's own fault, but another program may do.
    """
    lowered = function.lower(*args, **static)
    began = time.perf_counter()
    try:
        with without_persistent_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise BadInput(f"the TPU compiler failed ({str(error).splitlines()[0][:200]}); other shapes or meshes may do") from None
        raise DoesNotFit(_needed(str(error))) from None
    took = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), hlo.parse(compiled.as_text())
    traffic = text.traffic()
    return Program(
        flops=compiled.cost_analysis()["flops"],
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        cycles=text.cycles(),
        links=traffic.count,
        link_bytes=traffic.bytes,
        whole=True,
        compile_seconds=took,
        text=text,
    )


def _needed(message: str) -> int | None:
    found = re.search(r"Used ([\d.]+)([MGT]) of", message) or re.search(r"total memory required[^(]*\(([\d.]+)([MGT])\)", message)
    return int(float(found[1]) * {"M": 1 << 20, "G": GIB, "T": 1 << 40}[found[2]]) if found else None


def at_depth(compile_layers: Callable[[int], Program], layers: int, whole: bool) -> Program:
    """The program of so many layers: compiled if ``whole``, else the straight line through those of `DEPTHS` layers.

    Raises:
      DoesNotFit: the compiler refused one; without bytes if it was one of fewer layers, whose bytes say too little.
    """
    if whole or layers <= DEPTHS[1]:
        return compile_layers(layers)
    try:
        few, more = map(compile_layers, DEPTHS)
    except DoesNotFit:
        raise DoesNotFit(None) from None

    def line(a: float, b: float) -> float:
        return a + (b - a) * (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])

    names = ("flops", "arguments", "outputs", "aliased", "temporaries", "code", "links", "link_bytes")
    numbers = {name: line(getattr(few, name), getattr(more, name)) for name in names}
    stages = {*few.cycles, *more.cycles}
    cycles = {stage: line(few.cycles.get(stage, 0), more.cycles.get(stage, 0)) for stage in stages}
    return Program(**numbers, cycles=cycles, whole=False, compile_seconds=few.compile_seconds + more.compile_seconds)
