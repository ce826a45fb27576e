"""The points of `train.fit`: a mesh and a batch, the training step compiled for a slice; and which of them is recommended.

Not here: the steps (`train/run/step.py`, `joint.py`), compiling (`redrafter_jax/slices/compiler.py`), tables (`report.py`).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from infer.fitting import MAX_RETRIES
from redrafter_jax.files.heads import HeadConfig
from redrafter_jax.model.parts import evenly
from redrafter_jax.model.target import TargetConfig
from redrafter_jax.slices import compiler
from redrafter_jax.slices.topology import Slice
from train.data.rows import Batch
from train.run import log, loop, shapes
from train.run.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class StepSubject:
    """What a slice should train. dtype: of the target; spread: its weights are split over both axes of a mesh; uncut: the target
    before `of_depth` took layers from it, None where it did not."""

    slice: Slice
    target: TargetConfig
    recipe: Recipe
    dtype: str
    spread: bool = False
    uncut: TargetConfig | None = None

    def of_depth(self, layers: int) -> "StepSubject":
        """The same head with a target of so many layers."""
        cut = dataclasses.replace(self.target, num_hidden_layers=layers)
        return dataclasses.replace(self, target=cut, uncut=self.uncut or self.target)

    @property
    def head(self) -> HeadConfig:
        """The shapes of the recipe's head, for the target before it was cut."""
        return shapes.make_head_config(self.uncut or self.target, self.recipe)


def find_best(rows: list[dict], of_all_layers: Callable[[dict], dict]) -> tuple[dict | None, list[dict]]:
    """The fastest row, in tokens per second, that fits with all layers; and the faster rows that turned out not to fit.

    Args:
      of_all_layers: gives the row with all layers compiled; it is called for at most 1 + `MAX_RETRIES` of them.
    """
    refused = []
    fitting = sorted((row for row in rows if row["fits"]), key=lambda row: -row["tokens_per_second"])
    for found in fitting[: 1 + MAX_RETRIES]:
        checked = found if found["whole"] else of_all_layers(found)
        if checked["fits"]:
            return checked, refused
        refused.append(checked)
    return None, refused


def row(subject: StepSubject, mesh: tuple[int, int], batch: int, whole: bool) -> dict:
    """One mesh and batch as a row of the table; bytes and operations of one chip, times in seconds."""
    chip, target = subject.slice.chip, subject.target
    facts = {"mesh": list(mesh), "batch": batch}

    def of_depth(layers: int):
        return compile_step(subject.of_depth(layers), mesh, batch)

    try:
        program = compiler.at_depth(of_depth, target.num_hidden_layers, whole)
    except compiler.DoesNotFit as refused:
        return facts | {"held": refused.bytes, "fits": False, "whole": refused.bytes is not None}
    except compiler.CompilerFailed as failed:
        return facts | {"held": None, "fits": False, "whole": whole, "failed": str(failed)}
    flops = _flops(subject, mesh, batch)
    seconds = max(program.seconds(chip), flops / chip.peak)
    return facts | {
        "held": program.held,
        "fits": compiler.fits(program.held, chip),
        "whole": program.whole,
        "memory": {k: getattr(program, k) for k in ("arguments", "outputs", "aliased", "temporaries", "code")},
        "flops_by_hand": flops,
        "floor_seconds": flops / chip.peak,
        "compiler_seconds": program.seconds(chip),
        "step_seconds": seconds,
        "tokens_per_second": batch * subject.recipe.row_length / seconds,
        "peak_share": flops / chip.peak / seconds,
        "links": program.links,
        "link_bytes": program.link_bytes,
        "link_sent": program.link_sent,
        "send_seconds": chip.transfer(program.link_sent, mesh),
        "compile_seconds": program.compile_seconds,
    }


def compile_step(subject: StepSubject, mesh: tuple[int, int], batch: int) -> compiler.Program:
    """The update as the run compiles it, for a target of these shapes; the one of head and target where both are trained.

    Raises:
      DoesNotFit: the compiler refused it for its memory.
    """
    recipe = subject.recipe
    with jax.set_mesh(subject.slice.mesh(*mesh)):
        frozen, state, rows = arrays(subject, batch)
        alone, joint = loop.make_updates(recipe)
        update = alone if joint is None else joint
        return compiler.compile_program(jax.jit(update, donate_argnums=0), state, frozen, rows)


def arrays(subject: StepSubject, batch: int) -> tuple:
    """The shapes of the target, of the training state and of a batch, on the current mesh."""
    recipe = subject.recipe
    frozen = compiler.target(subject.target, subject.dtype, subject.spread)
    frozen = frozen.showing(evenly(subject.target.num_hidden_layers, len(subject.head.depths)))
    state = jax.eval_shape(functools.partial(loop.start_state, recipe, subject.target, subject.head, subject.spread))
    tokens = compiler.abstract((batch, recipe.row_length), jnp.int32, jax.P("data", None))
    return frozen, state, Batch(tokens, tokens, tokens, tokens)


def _flops(subject: StepSubject, mesh: tuple[int, int], batch: int) -> float:
    """Operations that the mathematics of a step needs, on one chip (`log.flops`; attention is not counted)."""
    with jax.set_mesh(subject.slice.mesh(*mesh)):
        frozen, state, _ = arrays(subject, batch)
        part, counted = dataclasses.replace(subject.recipe, batch=batch), []
        jax.eval_shape(lambda *models: counted.append(log.flops(*models, part, part.trains_target)), frozen, state.drafter)
        return counted[0] / len(subject.slice.devices)
