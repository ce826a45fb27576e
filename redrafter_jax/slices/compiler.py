"""Programs for TPU slices that are not here: compiled by libtpu on any Linux machine. Nothing runs and no weight exists.

    slice_ = topology.find_slice("v5e:2x4", "--topology")
    with jax.set_mesh(slice_.mesh(2, 4)):
        target = compiler.target(shapes, "bfloat16")
        program = compiler.compile_program(jax.jit(function), target)
    program.held, program.seconds(slice_.chip)

Every figure is of one chip. Not here: the slices and their meshes (`topology.py`); which function, and what is to be learnt from
the figures (`infer.fit`, `train.fit`).
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp

from redrafter_jax.devices import mesh, placement, processes
from redrafter_jax.devices.compile_cache import without_persistent_cache
from redrafter_jax.errors import BadInput
from redrafter_jax.files.heads import Drafts, DraftsConfig
from redrafter_jax.model.target import Target, TargetConfig
from redrafter_jax.slices import program_text
from redrafter_jax.slices.chips import GIB, Chip

UNUSABLE_SHARE = 0.05  # of the usable HBM, left for what a running process holds beside its program
MAX_COMPILATIONS = 4  # programs compiled at a time: each takes a core and, of two or four layers, one to two GB of memory
MEASURED_DEPTHS = (2, 4)  # layers of the two programs from whose difference a deeper one follows


class CompilerFailed(BadInput):
    """The compiler's own fault; another program may do."""


class DoesNotFit(Exception):
    """The compiler refused a program for its memory; ``bytes`` is what it would hold on a chip, None if that was not said."""

    def __init__(self, bytes_: int | None):
        super().__init__("the program does not fit")
        self.bytes = bytes_


def target(shapes: TargetConfig, dtype: str, spread: bool = False) -> Target:
    """A target of shapes and shardings alone, on the current mesh, split over ``data`` too if ``spread``; with repeated
    key-value heads where it has too few."""
    fitted = placement.repeat_kv_heads(shapes, jax.sharding.get_abstract_mesh().shape["model"])
    return jax.eval_shape(lambda: mesh.spread(Target(jax.random.key(0), fitted, jnp.dtype(dtype)), spread))


def drafter(shapes: DraftsConfig, dtype: str) -> Drafts:
    """A head as it decodes, or a small model, of shapes and shardings alone, on the current mesh."""
    if isinstance(shapes, TargetConfig):
        return target(shapes, dtype)
    return jax.eval_shape(lambda: shapes.make(jax.random.key(0), jnp.dtype(dtype)).split())


def abstract(shape: tuple[int, ...], dtype, spec: jax.P) -> jax.ShapeDtypeStruct:
    """An array of the current mesh that does not exist."""
    sharding = jax.sharding.NamedSharding(jax.sharding.get_abstract_mesh(), spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of one program on one chip.

    flops: operations (a loop's body counted once); arguments, outputs, aliased, temporaries, code: bytes; cycles: expected,
    by stage (`program_text.ProgramText.cycles`); links, link_bytes, link_sent: operations between chips, the bytes of their
    results, and the bytes that a chip sends for them (`program_text.Traffic`); whole: False if the figures follow from programs
    of fewer layers; compile_seconds: on this machine.
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
    link_sent: float
    whole: bool
    compile_seconds: float
    text: program_text.ProgramText | None = None

    @property
    def held(self) -> float:
        """Bytes of HBM while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    def seconds(self, chip: Chip, *stages: str) -> float:
        """Expected time of these stages, of all if none is named: cycles by the clock."""
        return sum(value for name, value in self.cycles.items() if not stages or name in stages) / chip.clock


def fits(held: float, chip: Chip) -> bool:
    """Whether it leaves the margin."""
    return held <= chip.usable_bytes * (1 - UNUSABLE_SHARE)


@contextlib.contextmanager
def side_by_side():
    """A pool of threads that compile beside each other, one per core and at most `MAX_COMPILATIONS`. What has not begun when
    the context ends is dropped. Nothing is kept: a program for a TPU that is not here cannot be read back, and JAX would warn."""
    pool = ThreadPoolExecutor(min(MAX_COMPILATIONS, processes.count_cores()))
    with without_persistent_cache():
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def compile_program(function, *args, **static) -> Program:
    """Compiles a jitted function for the current mesh.

    Raises:
      DoesNotFit: it would not fit into the HBM of a chip.
      CompilerFailed: the compiler failed otherwise.
    """
    lowered = function.lower(*args, **static)
    began = time.perf_counter()
    try:
        with without_persistent_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            what = f"the TPU compiler failed ({str(error).splitlines()[0][:200]}); other shapes or meshes may do"
            raise CompilerFailed(what) from None
        raise DoesNotFit(_needed(str(error))) from None
    took = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), program_text.parse(compiled.as_text())
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
        link_sent=traffic.sent,
        whole=True,
        compile_seconds=took,
        text=text,
    )


def _needed(message: str) -> int | None:
    found = re.search(r"Used ([\d.]+)([MGT]) of", message) or re.search(r"total memory required[^(]*\(([\d.]+)([MGT])\)", message)
    return int(float(found[1]) * {"M": 1 << 20, "G": GIB, "T": 1 << 40}[found[2]]) if found else None


def at_depth(compile_layers: Callable[[int], Program], layers: int, whole: bool) -> Program:
    """The program of so many layers: compiled if ``whole``, else the straight line through those of `MEASURED_DEPTHS` layers.

    Raises:
      DoesNotFit: the compiler refused one; without bytes if it was one of fewer layers, whose bytes say too little.
    """
    if whole or layers <= MEASURED_DEPTHS[1]:
        return compile_layers(layers)
    try:
        few, more = map(compile_layers, MEASURED_DEPTHS)
    except DoesNotFit:
        raise DoesNotFit(None) from None

    def line(a: float, b: float) -> float:
        return a + (b - a) * (layers - MEASURED_DEPTHS[0]) / (MEASURED_DEPTHS[1] - MEASURED_DEPTHS[0])

    names = ("flops", "arguments", "outputs", "aliased", "temporaries", "code", "links", "link_bytes", "link_sent")
    numbers = {name: line(getattr(few, name), getattr(more, name)) for name in names}
    stages = {*few.cycles, *more.cycles}
    cycles = {stage: line(few.cycles.get(stage, 0), more.cycles.get(stage, 0)) for stage in stages}
    return Program(**numbers, cycles=cycles, whole=False, compile_seconds=few.compile_seconds + more.compile_seconds)
