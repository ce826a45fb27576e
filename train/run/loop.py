"""A training run of a head, and perhaps of its target: the loop, its checkpoints, its log, and how it ends.

Resuming is exact: a checkpoint has the head, the optimizer's state and the step, and the step decides what is read. Not
here: the update (`step.py`, `joint.py`), rows (`data/rows.py`), evaluations (`evaluation.py`), the log (`log.py`), the saved
configuration (`configuration.py`), how a run is asked to end (`stop.py`).
"""

import dataclasses
import functools
import math
import pathlib
import sys

import jax
import numpy as np

from redrafter_jax.devices import mesh, processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import checkpoint
from redrafter_jax.files.heads import Head, HeadConfig
from redrafter_jax.loss import LossConfig
from redrafter_jax.model.target import Target, TargetConfig
from train.data.rows import Rows, find_most_frequent, read_batches
from train.run import beginning, joint, log, step
from train.run.evaluation import Evaluation
from train.run.profile import Profile
from train.run.recipe import Recipe
from train.run.shapes import make_head_config
from train.run.stop import Stop, Stopped

MAX_LOSS_RATIO = 3.0  # times the loss of the first step
HELD_OUT_SCORE = "held_out_loss"  # a checkpoint's score, where the run evaluates


class Diverged(BadInput):
    """The loss or its gradient is not finite, or the loss is above `MAX_LOSS_RATIO` times that of the first step."""


def make_schedule(recipe: Recipe) -> step.Schedule:
    shares = recipe.distance_weight, recipe.distance_from
    return step.Schedule(recipe.steps, recipe.rate, recipe.warmup, recipe.weight_decay, recipe.clip, recipe.accumulate, *shares)


def make_updates(recipe: Recipe) -> tuple:
    """`step.step`, and `joint.step` where the target is trained too, as functions of a state, the target and a batch."""
    config = LossConfig(recipe.positions, recipe.distill_weight, decay=recipe.decay, with_distance=recipe.distance_weight > 0)
    schedule = make_schedule(recipe)
    alone = functools.partial(step.step, schedule=schedule, config=config, labels=recipe.labels)
    if not recipe.trains_target:
        return alone, None
    return alone, functools.partial(joint.step, schedule=joint.JointSchedule.of(recipe, schedule), config=config)


def train_head(*arguments, **options) -> Head:
    """The head that `train_pair` trains."""
    return train_pair(*arguments, **options).drafter


def train_pair(
    target: Target,
    examples,
    recipe: Recipe,
    folder: pathlib.Path,
    held_out=None,
    checkpoints: str | None = None,
    profile: str | None = None,
    begun: Head | None = None,
) -> step.HeadState:
    """Trains a head, and the target's adapter where the recipe says so, from the newest readable checkpoint in ``folder`` or from
    random weights, and returns the state at the end. Unreadable checkpoints are renamed, and printed.

    Args:
      examples, held_out: sequences of `tokens` and `labelled` (`rows.Rows`); ``held_out`` may be None.
      checkpoints: their folder; by default in ``folder``.
      profile: folder for a trace of a few updates; None: no trace.
      begun: a head whose weights a run without checkpoints begins with, and whose draft vocabulary it has.

    Raises:
      BadInput: nothing can be predicted, the draft vocabulary is larger than the target's, no checkpoint can be read,
        or the loss diverged.
      Stopped: the run was asked to end (Ctrl-C, SIGTERM), and has saved a checkpoint.
    """
    config = make_head_config(target.config, recipe)
    target = target.showing(config.depths)
    rows = Rows(examples, recipe.row_length)
    folder.mkdir(parents=True, exist_ok=True)
    start = functools.partial(start_state, recipe, target.config, config, mesh.is_spread(target))
    place = checkpoints or folder / "checkpoints"
    for sentence in checkpoint.set_aside_damaged(place, **_artefacts(jax.eval_shape(start))):
        processes.say(sentence, sys.stderr)
    with checkpoint.Checkpoints(place, best="loss") as saved:
        if saved.latest_step is not None:
            state = resume(saved, start)
        else:
            needs_ids = config.draft_vocab and begun is None
            ids = find_most_frequent(examples, config.vocab_size, config.draft_vocab) if needs_ids else None
            state = jax.jit(functools.partial(start, ids=ids))()
            if begun is not None:
                state = dataclasses.replace(state, drafter=beginning.grow(begun, state.drafter))
        run = _Run(target, rows, recipe, folder, saved, Evaluation(target, recipe, held_out))
        with Profile(profile) as trace:
            return run.go(state, trace)


def start_state(
    recipe: Recipe, target: TargetConfig, config: HeadConfig, spread: bool, ids: np.ndarray | None = None
) -> step.HeadState:
    """The state before the first step."""
    key = jax.random.key(recipe.seed)  # inside jit, since a key made outside would span processes
    schedule = make_schedule(recipe)
    state = step.start(key, config, schedule, ids, spread)
    if not recipe.trains_target:
        return state
    return dataclasses.replace(state, lora=joint.start(target, joint.JointSchedule.of(recipe, schedule), spread))


def resume(saved: checkpoint.Checkpoints, start) -> step.HeadState:
    """Restores the newest checkpoint's state."""
    loaded = saved.restore(**_artefacts(jax.eval_shape(start)))
    adapted = step.AdapterState(loaded["adapter"], loaded["train_adapter"]) if "adapter" in loaded else None
    return step.HeadState(loaded["train"][0], loaded["head"], loaded["train"][1], adapted)


def _artefacts(state: step.HeadState) -> dict:
    """The artefacts of a checkpoint, by name."""
    of_target = {} if state.lora is None else {"adapter": state.lora.adapter, "train_adapter": state.lora.optimizer}
    return {"head": state.drafter, "train": (state.step, state.optimizer), **of_target}


class _Run:
    """What the steps of a run share; call ``go`` alone."""

    def __init__(self, target, rows: Rows, recipe: Recipe, folder, saved: checkpoint.Checkpoints, evaluation: Evaluation):
        self.target, self.rows, self.recipe, self.checkpoints, self.evaluation = target, rows, recipe, saved, evaluation
        self.folder = folder
        alone, joint_ = make_updates(recipe)
        self.update = jax.jit(alone, donate_argnums=0)
        self.joint_update = jax.jit(joint_, donate_argnums=0) if joint_ is not None else None
        self.recent: list[tuple[int, np.ndarray, step.UpdateMetrics]] = []  # since the last check: step, rows read, metrics
        self.first_loss: float | None = None

    def go(self, state: step.HeadState, trace: Profile) -> step.HeadState:
        recipe, parts = self.recipe, self.recipe.accumulate
        first, of_update = int(state.step) // parts, []
        self.first_loss = self._loss_at_start(first)
        batches = read_batches(self.rows, recipe.batch // parts, recipe.seed, first * parts, recipe.steps * parts)
        with self._log(first, state.drafter) as lines, Stop() as stop:
            for part, (batch, numbers) in enumerate(batches, start=first * parts + 1):
                is_joint = self.joint_update is not None and part > recipe.joint_from * parts
                state, metrics = (self.joint_update if is_joint else self.update)(state, self.target, batch)
                of_update.append(metrics)
                self.recent.append((-(-part // parts), numbers, metrics))
                if part % parts:
                    continue
                index = part // parts
                trace.after(index - first, state)
                stops = stop.is_asked(index)
                ends = index == recipe.steps or stops
                is_evaluated = self.evaluation.is_due(index) and (not stops or index == recipe.steps)
                if index % recipe.log_every == 0 or index == first + 1 or ends or is_evaluated or index % recipe.save_every == 0:
                    self._check()
                    lines.step(index, of_update, make_schedule(recipe).rate_at(index - 1))
                lines.advance()
                held_out = None
                if is_evaluated:
                    figures = self._measure(self.evaluation.measure, state, lines)
                    held_out = self._checked(index, figures["loss"])
                    lines.evaluation(index, figures)
                if index % recipe.save_every == 0 or ends:
                    self._save(index, state, of_update, held_out, lines)
                if stops and index < recipe.steps:
                    raise Stopped(index, stop.code)
                of_update = []
        return state

    def _loss_at_start(self, first: int) -> float | None:
        """The loss of the run's first step, in every process; None: the run starts, or its log does not have it."""
        lines = log.read(self.folder) if first and processes.is_first() else []
        known = [line["loss"] for line in lines if "loss" in line and line["step"] <= first]
        loss = float(processes.gather(np.asarray(known[0] if known else math.nan, np.float32))[0])
        return loss if math.isfinite(loss) else None

    def _log(self, first: int, drafter: Head) -> log.Log | log.Silent:
        if not processes.is_first():
            return log.Silent()
        costs = (log.flops(self.target, drafter, self.recipe, is_joint) for is_joint in (False, True))
        return log.Log(self.folder, self.recipe, first, *costs)

    def _check(self) -> None:
        """Raises Diverged at a loss or gradient that is not finite, or a loss that is too high."""
        for index, numbers, metrics in self.recent:
            loss, norm = _loss_of(metrics), float(metrics.gradient_norm)
            norm += 0.0 if metrics.joint is None else float(metrics.joint.gradient_norm)
            self.first_loss = loss if self.first_loss is None else self.first_loss
            is_sound = math.isfinite(loss) and loss <= MAX_LOSS_RATIO * self.first_loss
            if is_sound and math.isfinite(norm):
                continue
            numbers = np.ravel(processes.gather(numbers))
            places = sorted({place for number in numbers for place in self.rows.where(int(number))})
            what = f"the norm of the gradient is {norm}" if is_sound else f"the loss is {loss}"
            raise self._diverged(f"{what} at step {index}, which read {', '.join(places[:8])}{' ...' if len(places) > 8 else ''}")
        self.recent.clear()

    def _checked(self, index: int, held_out: float | None) -> float | None:
        """The loss on held-out examples; raises Diverged where it is not finite."""
        if held_out is not None and not math.isfinite(held_out):
            raise self._diverged(f"the loss on held-out examples is {held_out} after step {index}")
        return held_out

    def _diverged(self, what: str) -> Diverged:
        good = self.checkpoints.latest_step
        return Diverged(
            f"{what}; the last good checkpoint is {f'step {good}' if good is not None else 'none'} in {self.checkpoints.folder}"
        )

    def _measure(self, figures_of, state: step.HeadState, lines: log.Log | log.Silent):
        """Figures of the head; their time does not count as training."""
        jax.block_until_ready(state)
        with lines.pause():
            return figures_of(state.drafter, None if state.lora is None else state.lora.adapter)

    def _save(self, index: int, state: step.HeadState, of_update: list[step.UpdateMetrics], held_out: float | None, lines) -> None:
        if held_out is None:
            held_out = self._checked(index, self._measure(self.evaluation.loss, state, lines))
        loss = float(np.mean([_loss_of(metrics) for metrics in of_update])) if held_out is None else held_out
        scores = {"loss": loss} if held_out is None else {"loss": loss, HELD_OUT_SCORE: held_out}
        self.checkpoints.save(index, scores, **_artefacts(state))


def _loss_of(metrics: step.UpdateMetrics) -> float:
    return float(np.asarray(metrics.loss.loss).sum())


def read_last_evaluation(folder: pathlib.Path, step: int) -> dict:
    """The figures of the last evaluation up to ``step``, with its own step; empty: there is none."""
    lines = [line for line in log.read(folder) if "held_out_loss" in line and line["step"] <= step]
    return lines[-1] if lines else {}
