"""What a run says while it trains: a progress line, a JSON Lines file, and TensorBoard scalars of the same."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm.auto import tqdm

from redrafter_jax.errors import BadInput
from redrafter_jax.files.atomic import replacing
from redrafter_jax.files.heads import Head
from redrafter_jax.model import experts
from redrafter_jax.model.target import Target
from redrafter_jax.slices.chips import CHIPS
from train.run.recipe import Recipe

# By the start of the device's name, dense bfloat16 FLOP/s that the makers publish; of TPUs that `infer.fit` knows, `chips`.
PEAKS = {
    "TPU v4": 275e12, "TPU v5 lite": CHIPS["v5e"].peak, "TPU v5e": CHIPS["v5e"].peak, "TPU v5": CHIPS["v5p"].peak,
    "TPU v6": CHIPS["v6e"].peak, "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12,
}  # fmt: skip
# Of the bar's figures; the log has the sum over all positions, as the checkpoints' scores have.
LEGEND = "loss: mean over {} drafted positions, in nats; first: how often the first draft is right"
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # fits 80 columns


def flops(target: Target, drafter: Head, recipe: Recipe, is_joint: bool = False) -> float:
    """FLOPs of an update that the mathematics needs: the target forward, K drafted positions forward and backward, and where
    the update is of the target too (``is_joint``) another pass of it forward and backward to the activations, and the logits of
    both. What is computed again in the backward pass, attention over the context and the adapters are not counted."""
    body = experts.weights_per_token(target.blocks, target.config)
    unembedding = jax.eval_shape(lambda: target.columns(drafter.ids)).size
    head = drafter.weights_per_position() + (unembedding if drafter.config.tied else 0)
    teacher = 2 * unembedding if recipe.distill_weight > 0 else 0
    if recipe.labels == "greedy":
        teacher += 2 * (recipe.positions * (body + target.lm_head[...].size) + target.lm_head[...].size)
    joint = 4 * body + 6 * target.lm_head[...].size if is_joint else 0
    drafts = recipe.positions * head + drafter.weights_per_place()
    return recipe.batch * recipe.row_length * (2 * body + teacher + 6 * drafts + joint)


def peak() -> float | None:
    """Published FLOP/s of all devices of the mesh together, where they are known."""
    kind = jax.devices()[0].device_kind
    known = [value for name, value in PEAKS.items() if kind.startswith(name)]
    return known[0] * jax.sharding.get_abstract_mesh().size if known else None


def path(folder: pathlib.Path) -> pathlib.Path:
    return folder / "log.jsonl"


def read(folder: pathlib.Path) -> list[dict]:
    """The lines of a run's log, less one that a killed run did not finish.

    Raises:
      BadInput: a finished line is not JSON.
    """
    file = path(folder)
    lines = file.read_text(errors="replace").split("\n")[:-1] if file.exists() else []
    return [_parsed(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]


def _parsed(line: str, where: str) -> dict:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and type(found.get("step")) is int:
            return found
    raise BadInput(f"{where} should be a JSON object with a step, as train.main wrote it; remove the line")


class Log:
    """The log of one run from step ``first`` on; a context manager. Lines that a stopped run wrote after its last
    checkpoint are dropped, since those steps are done again."""

    def __init__(self, folder: pathlib.Path, recipe: Recipe, first: int, flops_per_step: float, flops_of_joint: float = 0.0):
        kept = [line for line in read(folder) if line["step"] <= first]
        with replacing(path(folder)) as new:
            new.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.folder, self.recipe, self.first, self.flops = folder, recipe, first, (flops_per_step, flops_of_joint)
        self.peak = peak()

    def __enter__(self) -> "Log":
        self.file = open(path(self.folder), "a")  # noqa: SIM115  (closed in __exit__)
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.first + 1)
        print(LEGEND.format(self.recipe.positions), file=sys.stderr)
        self.bar = tqdm(desc=self.recipe.label, initial=self.first, total=self.recipe.steps, unit="step", bar_format=BAR_FORMAT)
        self.began, self.since = time.perf_counter(), self.first
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        self.board.close()
        self.file.close()

    def advance(self) -> None:
        self.bar.update()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """The time in here is not training's."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def step(self, index: int, of_update: list, rate: float) -> None:
        """One line of training, the mean over the parts of the update (`step.UpdateMetrics`); waits for the device. Speed is
        that of the steps since the last line."""
        host = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *jax.device_get(of_update))
        now = time.perf_counter()
        pace = (index - self.since) / (now - self.began)
        self.began, self.since = now, index
        line = {
            "step": index,
            "loss": round(float(host.loss.loss.sum()), 4),
            "loss_per_position": [round(float(x), 4) for x in host.loss.loss],
            "accuracy": [[round(float(x), 4) for x in ranks] for ranks in host.loss.accuracy],
            "gradient_norm": round(float(host.gradient_norm), 4),
            "rate": float(rate),
            "fill": round(float(host.fill), 4),
            "tokens_per_second": round(pace * self.recipe.batch * self.recipe.row_length, 1),
        }
        if host.joint is not None:
            line |= _describe_joint(host.joint)
        if self.peak:
            line["peak_share"] = round(pace * self.flops[host.joint is not None] / self.peak, 4)
        self.bar.set_postfix_str(describe_step(line, self.recipe.positions))
        self._write(line)

    def evaluation(self, index: int, figures: dict) -> None:
        """One line of an evaluation on held-out examples."""
        self.bar.write(f"step {index}, held out: {describe_evaluation(figures, self.recipe.positions)}")
        self._write({"step": index, **{f"held_out_{name}": value for name, value in figures.items()}})

    def _write(self, line: dict) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for name, value in line.items():
            for key, scalar in _scalars(name, value):
                self.board.add_scalar(key, scalar, line["step"])


def _describe_joint(joint) -> dict:
    """What a line of training says of a target that is trained too (`step.JointMetrics`), in nats; ``through``: whether the
    head's gradient went into it (of an update in parts, in which share of them)."""
    names = {"kl": joint.drift.kl, "text_loss": joint.drift.text, "agreement": joint.drift.agreement}
    names |= {"through": joint.is_through, "adapter_gradient_norm": joint.gradient_norm}
    return {name: round(float(value), 5) for name, value in names.items()}


def describe_step(line: dict, positions: int) -> str:
    """A line of training, for the bar."""
    share = f", {line['peak_share']:.0%} of peak" if "peak_share" in line else ""
    return (
        f"loss {line['loss'] / positions:.2f}, first {line['accuracy'][0][0]:.0%}, {line['tokens_per_second']:.0f} tokens/s{share}"
    )


def describe_evaluation(figures: dict, positions: int) -> str:
    """The figures of an evaluation; the accuracy is that of the first drafted position."""
    steps = {name.removeprefix("tokens_per_step_"): value for name, value in figures.items() if name.startswith("tokens_per_step_")}
    shapes = ", ".join(f"{value:.2f} {shape}" for shape, value in steps.items())
    first = f", first {figures['accuracy'][0][0]:.0%}" if figures.get("accuracy") else ""
    return f"loss {figures['loss'] / positions:.2f}{first}{f'; tokens per step {shapes}' if steps else ''}"


class Silent:
    """What a process says that is not the first."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *error: object) -> None: ...

    def advance(self) -> None: ...

    def pause(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def step(self, index: int, of_update: list, rate: float) -> None: ...

    def evaluation(self, index: int, figures: dict) -> None: ...


def _scalars(name: str, value) -> list[tuple[str, float]]:
    """A number by its name; a list of numbers by position, and of lists by position and rank, counted from 1."""
    if isinstance(value, list):
        return [pair for number, inner in enumerate(value, 1) for pair in _scalars(f"{name}/{number}", inner)]
    return [] if name == "step" else [(name, float(value))]
