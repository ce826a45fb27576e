"""A training run of a head: the loop, its checkpoints, its log, and how it ends.

Resuming is exact: a checkpoint holds the head, the optimizer's state and the step, and what a step reads follows from
the step. Not here: the update (`step.py`), rows (`data.py`), evaluations (`evaluate.py`), the log (`log.py`).
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from redrafter_jax import checkpoint, mesh, processes
from redrafter_jax.errors import BadInput
from redrafter_jax.loss import LossConfig
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target, TargetConfig
from train import data, evaluate, log, step
from train.recipe import OF_NO_CONSEQUENCE, Recipe

DIVERGED = 3.0  # times the loss of the first step
PROFILED = (5, 8)  # a trace begins and ends after these updates; the first ones compile


class Diverged(BadInput):
    """The loss is not a number any more, or far above where it started."""


def head_config(target: TargetConfig, recipe: Recipe) -> DrafterConfig:
    """The shapes of the head that a recipe asks for.

    Raises:
      BadInput: its draft vocabulary is larger than the target's.
    """
    V, D = target.vocab_size, target.hidden_size
    exit_size = 2 * D if recipe.head == "full" else D
    if recipe.head_vocab > V:
        raise BadInput(f"--head-vocab should be at most the target's vocabulary of {V}, not {recipe.head_vocab}")
    return DrafterConfig(V, D, exit_size, recipe.blocks, recipe.rnn, recipe.head == "slim", recipe.head_vocab)


def schedule(recipe: Recipe) -> step.Schedule:
    return step.Schedule(recipe.steps, recipe.rate, recipe.warmup, recipe.weight_decay, recipe.clip, recipe.accumulate)


def train_head(
    target: Target,
    examples,
    recipe: Recipe,
    folder: pathlib.Path,
    held_out=None,
    checkpoints: str | None = None,
    profile: str | None = None,
) -> Drafter | None:
    """The trained head, from the newest checkpoint in ``folder`` or from random weights; None if it was asked to stop
    (SIGTERM) and saved what it had.

    Args:
      examples, held_out: sequences of `tokens` and `labelled` (`data.Rows`); ``held_out`` may be None.
      checkpoints: their folder; by default in ``folder``.
      profile: folder for a trace of a few updates; None: no trace.

    Raises:
      BadInput: nothing is labelled, the draft vocabulary is larger than the target's, or the loss diverged.
    """
    config = head_config(target.config, recipe)
    rows = data.Rows(examples, recipe.row_length)
    folder.mkdir(parents=True, exist_ok=True)
    start = functools.partial(_start, recipe, config, mesh.is_spread(target))
    with checkpoint.Run(checkpoints or folder / "checkpoints", best="loss") as kept:
        if kept.latest_step is not None:
            state = resume(kept, start)
        else:
            ids = data.most_frequent(examples, config.vocab_size, config.draft_vocab) if config.draft_vocab else None
            state = jax.jit(functools.partial(start, ids=ids))()
        run = _Run(target, rows, recipe, folder, kept, evaluate.Evaluation(target, recipe, held_out))
        with _Profile(profile) as trace:
            return run.go(state, trace)


def _start(recipe: Recipe, config: DrafterConfig, spread: bool, ids: np.ndarray | None = None) -> step.HeadState:
    return step.start(jax.random.key(recipe.seed), config, schedule(recipe), ids, spread)  # a key made outside spans processes


def resume(kept: checkpoint.Run, start) -> step.HeadState:
    """The newest checkpoint's state."""
    like = jax.eval_shape(start)
    loaded = kept.restore(head=like.drafter, train=(like.step, like.optimizer))
    return step.HeadState(loaded["train"][0], loaded["head"], loaded["train"][1])


class _Run:
    """What a run's steps share; ``go`` is all there is to call."""

    def __init__(self, target, rows: data.Rows, recipe: Recipe, folder, kept: checkpoint.Run, evaluation):
        self.target, self.rows, self.recipe, self.kept, self.evaluation = target, rows, recipe, kept, evaluation
        self.folder = folder
        config = LossConfig(recipe.positions, recipe.distill_weight)
        update = functools.partial(step.step, schedule=schedule(recipe), config=config, labels=recipe.labels)
        self.update = jax.jit(update, donate_argnums=0)
        self.recent: list[tuple[int, np.ndarray, jax.Array]] = []  # since the last look: step, rows read, loss
        self.first_loss = math.inf

    def go(self, state: step.HeadState, trace: "_Profile") -> Drafter | None:
        recipe, parts = self.recipe, self.recipe.accumulate
        first = int(state.step) // parts
        batches = data.batches(self.rows, recipe.batch // parts, recipe.seed, first * parts, recipe.steps * parts)
        with self._log(first, state.drafter) as lines, _Stop() as stop:
            for part, (batch, numbers) in enumerate(batches, start=first * parts + 1):
                state, metrics = self.update(state, self.target, batch)
                self.recent.append((-(-part // parts), numbers, jnp.sum(metrics.loss.loss)))
                if part % parts:
                    continue
                index = part // parts
                trace.after(index - first, state)
                stops = stop.is_asked(index)
                ends = index == recipe.steps or stops
                if index % recipe.log_every == 0 or index == first + 1 or ends or index % recipe.save_every == 0:
                    self._check()
                    lines.step(index, metrics, schedule(recipe).rate_at(index - 1))
                lines.advance()
                if self.evaluation.is_due(index) and not stops:
                    lines.evaluation(index, self.evaluation.whole(state.drafter))
                if index % recipe.save_every == 0 or ends:
                    self._save(index, state, metrics)
                if stops and index < recipe.steps:
                    return None
        return state.drafter

    def _log(self, first: int, drafter: Drafter) -> log.Log | log.Silent:
        if not processes.is_first():
            return log.Silent()
        return log.Log(self.folder, self.recipe, first, self.rows.fill, log.flops(self.target, drafter, self.recipe))

    def _check(self) -> None:
        """Stops at a loss that is not a number or has run away, and names where."""
        for index, numbers, loss in self.recent:
            value = float(loss)
            self.first_loss = min(self.first_loss, value) if math.isinf(self.first_loss) else self.first_loss
            if math.isfinite(value) and value <= DIVERGED * self.first_loss:
                continue
            numbers = np.ravel(processes.gather(numbers))
            places = sorted({place for number in numbers for place in self.rows.where(int(number))})
            good = self.kept.latest_step
            raise Diverged(
                f"the loss is {value} at step {index}, which read {', '.join(places[:8])}{' ...' if len(places) > 8 else ''};"
                f" the last good checkpoint is {f'step {good}' if good is not None else 'none'} in {self.kept.folder}"
            )
        self.recent.clear()

    def _save(self, index: int, state: step.HeadState, metrics: step.Metrics) -> None:
        loss = self.evaluation.loss(state.drafter)
        score = float(jnp.sum(metrics.loss.loss)) if loss is None else loss
        self.kept.save(index, {"loss": score}, head=state.drafter, train=(state.step, state.optimizer))


class _Profile:
    """A trace of updates PROFILED[0] + 1 to PROFILED[1] of those that this process does; a context manager."""

    def __init__(self, folder: str | None):
        self.folder, self.is_on = folder, False

    def __enter__(self) -> "_Profile":
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_on:
            jax.profiler.stop_trace()

    def after(self, count: int, state: step.HeadState) -> None:
        """``count`` updates are under way or done."""
        if self.folder is None or count not in PROFILED:
            return
        jax.block_until_ready(state)
        if self.is_on:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(self.folder)
        self.is_on = not self.is_on


class _Stop:
    """Whether the run was asked to end (SIGTERM, as pre-emption does); a context manager. Several processes leave it to JAX
    to catch the signal and to find a step that all of them can end at."""

    def __init__(self):
        self.asked, self.before = False, None

    def __enter__(self) -> "_Stop":
        if processes.count() > 1:
            return self
        with contextlib.suppress(ValueError):  # not the main thread: nobody asks
            self.before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def is_asked(self, index: int) -> bool:
        """Whether update ``index`` should be the last."""
        return self.asked if processes.count() == 1 else processes.is_asked_to_stop(index)

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def _ask(self, *_) -> None:
        self.asked = True


def keep_configuration(folder: pathlib.Path, configuration: dict, resumes: str, checkpoints: str | None = None) -> None:
    """Writes the run's configuration, or compares it with the one that is there.

    Raises:
      BadInput: the folder's run has another configuration of what decides the weights, or should not be resumed.
    """
    file, saved = folder / "config.json", epath.Path(checkpoints or folder / "checkpoints")
    if file.exists() and saved.is_dir() and any(saved.iterdir()):
        if resumes == "never":
            raise BadInput(f"--output: {folder} holds a run already; give another folder, or --resume auto to go on with it")
        before = {**_defaults(configuration), **json.loads(file.read_text())}
        differences = [
            f"{name} was {before.get(name)} and is {configuration.get(name)}"
            for name in sorted({*before, *configuration})
            if name not in OF_NO_CONSEQUENCE and before.get(name) != configuration.get(name)
        ]
        if differences:
            raise BadInput(
                f"--output: {folder} holds a run of another configuration: {'; '.join(differences)}; give another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(configuration, indent=1) + "\n")
    draft.replace(file)


def _defaults(configuration: dict) -> dict:
    """What a run that was begun before an option of the recipe existed has for it."""
    return {name: value for name, value in dataclasses.asdict(Recipe()).items() if name in configuration}


def last_line(folder: pathlib.Path) -> dict:
    """The newest figures of a run: its last line of training and its last evaluation, as one dictionary."""
    lines = log.read(folder)
    return {key: value for line in lines for key, value in line.items()}
