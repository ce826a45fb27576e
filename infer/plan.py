"""The points of `infer.fit`: a mesh, a batch and a beam shape, compiled for a slice; and what of them to take.

Not here: compiling (`redrafter_jax/compile_only.py`), counting by hand (`roofline.py`), options and tables (`fit.py`).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from infer import measure, roofline
from redrafter_jax import compile_only
from redrafter_jax.chips import Chip
from redrafter_jax.compile_only import DoesNotFit, Program, Slice
from redrafter_jax.decode import loop, prefill, sample
from redrafter_jax.decode.loop import AUTOREGRESSIVE, Shape
from redrafter_jax.model.drafter import DrafterConfig
from redrafter_jax.model.target import TargetConfig

_round = jax.jit(loop.one_round, static_argnames=("shape", "propose"), donate_argnames="state")
_REST = ("noise", "pack", "commit", "other")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is to be placed on a slice. context: tokens of prompt and reply together; sampling: greedy, sampled (any
    temperature) or filtered (top-k or top-p as well); whole: compile all layers at every point."""

    slice: Slice
    config: TargetConfig
    head: DrafterConfig
    dtype: str
    context: int
    sampling: str = "greedy"
    whole: bool = False

    def setting(self, data: int, model: int, batch: int, shape: Shape) -> roofline.Setting:
        slots = _bucket(self.context, shape).slots
        width = jnp.dtype(self.dtype).itemsize
        return roofline.Setting(self.config, self.head, data, model, batch, slots, width)


def row(subject: Subject, mesh: tuple[int, int], batch: int, shape: Shape, propose: loop.Propose = loop.propose) -> dict:
    """One point as a row of the table; bytes and operations of one chip, times in seconds."""
    setting, chip = subject.setting(*mesh, batch, shape), subject.slice.chip
    facts = {"mesh": list(mesh), "batch": batch, "shape": name(shape), "nodes": shape.nodes, "slots": setting.slots}
    resident = _resident(subject, mesh, batch, shape)
    if resident > chip.usable_bytes:
        return facts | {"held": resident, "fits": False, "compiled": False}
    try:
        program = compile_point(subject, mesh, batch, shape, propose)
    except DoesNotFit as refused:
        return facts | {"held": refused.bytes or resident, "fits": False, "compiled": True}
    return (
        facts
        | {"held": program.held, "fits": compile_only.fits(program.held, chip), "compiled": True}
        | _costs(program, setting, shape.nodes, shape if propose is loop.propose else AUTOREGRESSIVE, chip)
    )


def _costs(program: Program, setting: roofline.Setting, nodes: int, drafted: Shape, chip: Chip) -> dict:
    """Operations and times. A stage takes the cycles that the compiler expects, but no less than its floor by hand."""
    verify, draft = roofline.verify(setting, nodes), roofline.draft(setting, drafted.width, drafted.length)
    floors = {"draft": draft.seconds(chip), "verify": verify.seconds(chip)}
    seconds = {stage: max(program.seconds(chip, stage), floor) for stage, floor in floors.items()}
    seconds["rest"] = program.seconds(chip, *_REST)
    return {
        "whole": program.whole,
        "memory": {k: getattr(program, k) for k in ("arguments", "outputs", "aliased", "temporaries", "code")},
        "flops": program.flops,
        "flops_by_hand": verify.flops + draft.flops,
        "bytes_by_hand": {"draft": draft.bytes, "verify": verify.bytes},
        "verify_is_bound_by": "compute" if verify.is_compute_bound(chip) else "memory",
        "floor_seconds": floors,
        "compiler_seconds": {stage: program.seconds(chip, stage) for stage in floors} | {"rest": seconds["rest"]},
        "seconds": seconds,
        "round_seconds": sum(seconds.values()),
        "links": program.links,
        "link_bytes": program.link_bytes,
        "compile_seconds": program.compile_seconds,
    }


def compile_point(subject: Subject, mesh, batch: int, shape: Shape, propose: loop.Propose = loop.propose) -> Program:
    """A round (an autoregressive step where ``shape`` drafts nothing).

    Raises:
      DoesNotFit: the compiler refused it for its memory.
    """

    def of_depth(layers: int) -> Program:
        with jax.set_mesh(subject.slice.mesh(*mesh)):
            target, drafter, state = arrays(subject, layers, batch, shape)
            return compile_only.compile_program(_round, target, drafter, state, shape=shape, propose=propose)

    return compile_only.at_depth(of_depth, subject.config.num_hidden_layers, subject.whole)


def compile_prefill(subject: Subject, mesh, batch: int, shape: Shape) -> Program:
    """Reading the prompts, all layers. The head, which waits on the chip meanwhile, is not in its figures.

    Raises:
      DoesNotFit: the compiler refused it for its memory.
    """
    with jax.set_mesh(subject.slice.mesh(*mesh)):
        target = compile_only.target(subject.config, subject.dtype)
        return compile_only.compile_program(loop.start, target, *_prompts(subject, batch), bucket=_bucket(subject.context, shape))


def arrays(subject: Subject, layers: int, batch: int, shape: Shape) -> tuple:
    """The target cut to so many layers, the head, and the state of decoding, on the current mesh; none of them exists."""
    config = dataclasses.replace(subject.config, num_hidden_layers=layers)
    target = compile_only.target(config, subject.dtype)
    start = functools.partial(loop.start, bucket=_bucket(subject.context, shape))
    state = jax.eval_shape(start, target, *_prompts(subject, batch))
    return target, compile_only.drafter(subject.head, subject.dtype) if shape.length else None, state


def _resident(subject: Subject, mesh, batch: int, shape: Shape) -> float:
    """Bytes of the weights and the state on a chip, by their shapes; the head's too, where only the target works."""

    def of_depth(layers: int) -> int:
        with jax.set_mesh(subject.slice.mesh(*mesh)):
            target, _, state = arrays(subject, layers, batch, shape)
            return compile_only.bytes_of((target, compile_only.drafter(subject.head, subject.dtype), state))

    one, two = of_depth(1), of_depth(2)
    return one + (two - one) * (subject.config.num_hidden_layers - 1)


def _bucket(context: int, shape: Shape) -> prefill.Bucket:
    return prefill.Bucket(context // 2, context - context // 2, shape.length)


def _prompts(subject: Subject, batch: int) -> tuple:
    """What `loop.start` takes between the target and the bucket."""
    by_row = functools.partial(compile_only.abstract, (batch,), spec=P("data"))
    keys = jax.eval_shape(jax.vmap(jax.random.key), by_row(jnp.uint32))
    sampled, filtered = subject.sampling != "greedy", subject.sampling == "filtered"
    policy = sample.Policy(by_row(jnp.float32), by_row(jnp.int32), by_row(jnp.float32), keys, sampled, filtered)
    prompts = compile_only.abstract((batch, subject.context // 2), jnp.int32, P("data", None))
    stop_ids = compile_only.abstract((1,), jnp.int32, P(None))
    return prompts, by_row(jnp.int32), by_row(jnp.int32), stop_ids, policy


def node_row(subject: Subject, mesh, batch: int, nodes: int) -> dict:
    """A pass over N nodes without any drafting; N = 1 is an autoregressive step."""
    if nodes == 1:
        return row(subject, mesh, batch, AUTOREGRESSIVE)
    return row(subject, mesh, batch, Shape(nodes - 1, 1), measure.star)


def name(shape: Shape) -> str:
    return f"{shape.width}x{shape.length}" if shape.length else "AR"


@dataclasses.dataclass(frozen=True)
class Advice:
    """For one batch: the mesh whose autoregressive step is the shortest of those that fit, and the largest beam shape whose
    round costs at most ``most`` of these steps; None where there is none."""

    batch: int
    mesh: tuple[int, int] | None
    shape: str | None
    cost: float


def advise(rows: list[dict], batch: int, most: float) -> Advice:
    """What to take, by the table's rows."""
    fitting = [row for row in rows if row["batch"] == batch and row["fits"]]
    plain = {tuple(row["mesh"]): row["round_seconds"] for row in fitting if row["shape"] == "AR"}
    if not plain:
        return Advice(batch, None, None, math.nan)
    mesh = min(plain, key=plain.get)
    costs = {row["shape"]: (row["nodes"], row["round_seconds"] / plain[mesh]) for row in fitting if tuple(row["mesh"]) == mesh}
    affordable = {shape: cost for shape, cost in costs.items() if shape != "AR" and cost[1] <= most}
    if not affordable:
        return Advice(batch, mesh, None, math.nan)
    shape = max(affordable, key=affordable.get)
    return Advice(batch, mesh, shape, affordable[shape][1])


def check(subject: Subject, advice: Advice, what: str) -> dict:
    """Whether the recommended step, round or prefill fits, compiled as ``subject`` says."""
    W, _, L = (advice.shape or "").partition("x")
    shape = Shape(int(W), int(L)) if advice.shape else AUTOREGRESSIVE
    waiting = 0
    try:
        if what == "prefill":
            program = compile_prefill(subject, advice.mesh, advice.batch, shape)
            waiting = _head_bytes(subject, advice.mesh) if advice.shape else 0
        else:
            program = compile_point(subject, advice.mesh, advice.batch, AUTOREGRESSIVE if what == "step" else shape)
    except DoesNotFit as refused:
        return {"what": what, "held": refused.bytes or math.nan, "fits": False}
    held = program.held + waiting
    fits = compile_only.fits(held, subject.slice.chip)
    return {"what": what, "held": held, "fits": fits, "compile_seconds": program.compile_seconds}


def _head_bytes(subject: Subject, mesh) -> int:
    with jax.set_mesh(subject.slice.mesh(*mesh)):
        return compile_only.bytes_of(compile_only.drafter(subject.head, subject.dtype))
