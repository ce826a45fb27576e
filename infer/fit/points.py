"""The points of `infer.fit`: a mesh, a batch and a beam shape, compiled for a slice.

Not here: compiling (`redrafter_jax/slices/compiler.py`), counting by hand (`roofline.py` there), what to take (`advice.py`),
options (`__main__.py`) and tables (`report.py`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from infer.fit.advice import Advice
from redrafter_jax.decode import loop, prefill
from redrafter_jax.decode.batch import MIN_STOP_IDS
from redrafter_jax.decode.policy import Policy
from redrafter_jax.decode.propose.heads import nodes_of, proposer_of_head
from redrafter_jax.decode.propose.proposer import Proposer
from redrafter_jax.decode.propose.recurrent import AUTOREGRESSIVE, Shape
from redrafter_jax.decode.propose.scripted import Star
from redrafter_jax.decode.propose.small_model import tokens_reread
from redrafter_jax.devices import mesh, placement
from redrafter_jax.files.heads import DraftsConfig
from redrafter_jax.model.parts import evenly
from redrafter_jax.model.target import TargetConfig
from redrafter_jax.slices import compiler, roofline
from redrafter_jax.slices.chips import Chip
from redrafter_jax.slices.compiler import CompilerFailed, DoesNotFit, Program
from redrafter_jax.slices.topology import Slice

_round = jax.jit(loop.one_round, donate_argnames="state")
_REST = ("noise", "pack", "commit", "other")


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a slice should decode.

    slice: None where nothing is compiled; context: tokens of prompt and reply together; sampling: greedy, sampled (any
    temperature) or filtered (top-k or top-p as well); whole: compile all layers at every point.
    """

    slice: Slice | None
    config: TargetConfig
    head: DraftsConfig
    dtype: str
    context: int
    sampling: str = "greedy"
    whole: bool = False

    def setting(self, data: int, model: int, batch: int, shape: Shape) -> roofline.Setting:
        slots = _bucket(self.context, shape).slots
        width = jnp.dtype(self.dtype).itemsize
        return roofline.Setting(placement.repeat_kv_heads(self.config, model), self.head, data, model, batch, slots, width)


def row(subject: Workload, split: tuple[int, int], batch: int, shape: Shape, proposer: Proposer | None = None) -> dict:
    """One point as a row of the table; bytes and operations of one chip, times in seconds. ``proposer``: in place of the head."""
    setting, chip = subject.setting(*split, batch, shape), subject.slice.chip
    nodes = shape.nodes if proposer else nodes_of(subject.head, shape)
    facts = {"mesh": list(split), "batch": batch, "shape": name(shape), "nodes": nodes, "slots": setting.slots}
    resident = _resident(subject, split, batch, shape)
    if resident > chip.usable_bytes:
        return facts | {"held": resident, "fits": False}
    try:
        program = compile_point(subject, split, batch, shape, proposer)
    except DoesNotFit as refused:
        return facts | {"held": refused.bytes or resident, "fits": False, "whole": refused.bytes is not None}
    except CompilerFailed as failed:
        return facts | {"held": resident, "fits": False, "failed": str(failed)}
    return (
        facts
        | {"held": program.held, "fits": compiler.fits(program.held, chip)}
        | _costs(program, setting, nodes, AUTOREGRESSIVE if proposer else shape, chip)
    )


def _costs(program: Program, setting: roofline.Setting, nodes: int, drafted: Shape, chip: Chip) -> dict:
    """Operations and times. A stage takes the cycles that the compiler expects, but no less than its floor by hand."""
    verify, draft = roofline.verify(setting, nodes), _draft(setting, drafted)
    floors = {"draft": draft.seconds(chip), "verify": verify.seconds(chip)}
    seconds = {stage: max(program.seconds(chip, stage), floor) for stage, floor in floors.items()}
    seconds["rest"] = program.seconds(chip, *_REST)
    seconds["links"] = chip.transfer(program.link_sent, (setting.data, setting.model))
    return {
        "whole": program.whole,
        "memory": {k: getattr(program, k) for k in ("arguments", "outputs", "aliased", "temporaries", "code")},
        "flops": program.flops,
        "flops_by_hand": {"draft": draft.flops, "verify": verify.flops},
        "bytes_by_hand": {"draft": draft.bytes, "verify": verify.bytes},
        "verify_is_bound_by": "compute" if verify.is_compute_bound(chip) else "memory",
        "floor_seconds": floors,
        "compiler_seconds": {stage: program.seconds(chip, stage) for stage in floors} | {"rest": seconds["rest"]},
        "seconds": seconds,
        "round_seconds": sum(seconds.values()),
        "links": program.links,
        "link_bytes": program.link_bytes,
        "link_sent": program.link_sent,
        "compile_seconds": program.compile_seconds,
    }


def compile_point(subject: Workload, split, batch: int, shape: Shape, proposer: Proposer | None = None) -> Program:
    """A round (an autoregressive step where ``shape`` drafts nothing); ``proposer``: in place of the head.

    Raises:
      DoesNotFit: the compiler refused it for its memory.
    """

    def of_depth(layers: int) -> Program:
        with jax.set_mesh(subject.slice.mesh(*split)):
            return compiler.compile_program(_round, *arrays(subject, layers, batch, shape, proposer))

    return compiler.at_depth(of_depth, subject.config.num_hidden_layers, subject.whole)


def compile_loop(subject: Workload, split, batch: int, shape: Shape) -> Program:
    """Decoding as it runs: the rounds in their loop, all layers. Only its memory is reported, since the number of rounds is
    not known.

    Raises:
      DoesNotFit: the compiler refused it for its memory.
    """
    with jax.set_mesh(subject.slice.mesh(*split)):
        rounds = compiler.abstract((), jnp.int32, P())
        layers = subject.config.num_hidden_layers
        return compiler.compile_program(loop.run, *arrays(subject, layers, batch, shape), rounds)


def compile_prefill(subject: Workload, split, batch: int, shape: Shape) -> Program:
    """The prefill with all layers. Its figures leave out the head, although the head is on the chip too.

    Raises:
      DoesNotFit: the compiler refused it for its memory.
    """
    with jax.set_mesh(subject.slice.mesh(*split)):
        target, proposer, _ = arrays(subject, subject.config.num_hidden_layers, batch, shape)
        given = _prompts(subject, batch)
        return compiler.compile_program(loop.start, target, proposer, *given, bucket=_bucket(subject.context, shape))


def arrays(subject: Workload, layers: int, batch: int, shape: Shape, proposer: Proposer | None = None) -> tuple:
    """The shapes of the target cut to ``layers``, of the proposer and of the decoding state, on the current mesh."""
    config = dataclasses.replace(subject.config, num_hidden_layers=layers)
    target = compiler.target(config, subject.dtype)
    if proposer is None:
        proposer = proposer_of_head(compiler.drafter(subject.head, subject.dtype), shape).prepare(target)
    target = target.showing(evenly(layers, len(proposer.features)))
    start = functools.partial(loop.start, bucket=_bucket(subject.context, shape))
    return target, proposer, jax.eval_shape(start, target, proposer, *_prompts(subject, batch))


def _resident(subject: Workload, split, batch: int, shape: Shape) -> float:
    """Bytes of the weights and the state on a chip, by their shapes; the head's too, where only the target works."""

    def of_depth(layers: int) -> int:
        with mesh.on_paper(*split):
            target, _, state = arrays(subject, layers, batch, shape)
            return placement.bytes_of((target, compiler.drafter(subject.head, subject.dtype), state))

    one, two = of_depth(1), of_depth(2)
    return one + (two - one) * (subject.config.num_hidden_layers - 1)


def _bucket(context: int, shape: Shape) -> prefill.Bucket:
    """Half of the context is prompt; both halves in buckets, as decoding has them."""
    return prefill.bucket(context // 2, context - context // 2, shape.length)


def _prompts(subject: Workload, batch: int) -> tuple:
    """The arguments of `loop.start` between the proposer and the bucket."""
    by_row = functools.partial(compiler.abstract, (batch,), spec=P("data"))
    keys = jax.eval_shape(jax.vmap(jax.random.key), by_row(jnp.uint32))
    sampled, filtered = subject.sampling != "greedy", subject.sampling == "filtered"
    numbers, flags = (by_row(jnp.float32), by_row(jnp.int32), by_row(jnp.float32), keys), (by_row(bool),) * 3
    policy = Policy(*numbers, *flags, sampled=sampled, filtered=filtered, shown=sampled)
    prompts = compiler.abstract((batch, _bucket(subject.context, AUTOREGRESSIVE).prompt), jnp.int32, P("data", None))
    stop_ids = compiler.abstract((batch, MIN_STOP_IDS), jnp.int32, P("data", None))
    return prompts, by_row(jnp.int32), by_row(jnp.int32), stop_ids, policy


def node_row(subject: Workload, split, batch: int, nodes: int) -> dict:
    """A pass over N nodes without any drafting; N = 1 is an autoregressive step."""
    if nodes == 1:
        return row(subject, split, batch, AUTOREGRESSIVE)
    return row(subject, split, batch, Shape(nodes - 1, 1), Star(nodes - 1))


def floors(subject: Workload, chip: Chip, split, batch: int, nodes: tuple[int, ...], shapes: list[Shape]) -> dict:
    """By hand alone: the bytes of weights and state on a chip, what a plain step takes at least, and how many of these steps
    passes over N nodes and drafts take."""
    setting = subject.setting(*split, batch, AUTOREGRESSIVE)
    plain = roofline.verify(setting, 1).seconds(chip)
    drafts = {name(shape): _draft(setting, shape).seconds(chip) / plain for shape in shapes}
    return {
        "batch": batch,
        "resident": _resident(subject, split, batch, max(shapes, key=lambda shape: shape.length, default=AUTOREGRESSIVE)),
        "plain_seconds": plain,
        "knee_nodes": roofline.knee(setting, chip),
        "verify_over_plain": {count: roofline.verify(setting, count).seconds(chip) / plain for count in nodes},
        "draft_over_plain": drafts,
        "round_over_plain": {
            name(shape): roofline.verify(setting, nodes_of(subject.head, shape)).seconds(chip) / plain + drafts[name(shape)]
            for shape in shapes
        },
    }


def _draft(setting: roofline.Setting, shape: Shape) -> roofline.Work:
    return roofline.draft(setting, shape.width, shape.length, tokens_reread(shape.width, shape.length))


def name(shape: Shape) -> str:
    return f"{shape.width}x{shape.length}" if shape.length else "AR"


def check(subject: Workload, advice: Advice, what: str) -> dict:
    """Whether the recommended plain decoding (`step`), speculative decoding (`round`) or prefill fits, as it runs and with all
    layers; held is None where a refusal did not say it."""
    W, _, L = (advice.shape or "").partition("x")
    shape = Shape(int(W), int(L)) if advice.shape else AUTOREGRESSIVE
    waiting = 0
    try:
        if what == "prefill":
            program = compile_prefill(subject, advice.mesh, advice.batch, shape)
            waiting = _head_bytes(subject, advice.mesh) if advice.shape else 0
        else:
            program = compile_loop(subject, advice.mesh, advice.batch, AUTOREGRESSIVE if what == "step" else shape)
    except DoesNotFit as refused:
        return {"what": what, "held": refused.bytes, "fits": False, "fits_without_head": False}
    except CompilerFailed as failed:
        return {"what": what, "held": None, "fits": False, "fits_without_head": False, "failed": str(failed)}
    held, chip = program.held + waiting, subject.slice.chip
    fits = {"fits": compiler.fits(held, chip), "fits_without_head": compiler.fits(program.held, chip)}
    return {"what": what, "held": held, **fits, "compile_seconds": program.compile_seconds}


def _head_bytes(subject: Workload, split) -> int:
    with mesh.on_paper(*split):
        return placement.bytes_of(compiler.drafter(subject.head, subject.dtype))
