"""`python -m train.plot`: the curves of training runs side by side, from their logs: loss, accuracy, tokens per step."""

import collections
import dataclasses
import pathlib
import sys
from typing import ClassVar

from infer.command import read_options, run_command
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims

SOFTWARE = "redrafter_jax train.plot"  # as a picture names it


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw the curves of one or several runs of train.main."""

    VALUES: ClassVar = {"run": "FOLDER ...", "output": "FILE"}
    EXAMPLES: ClassVar = ("python -m train.plot --run head-run other-run --output curves.png",)

    run: tuple[pathlib.Path, ...]
    """Folders of the runs (train.main's --output)."""
    output: pathlib.Path = pathlib.Path("curves.png")
    """PNG file for the picture."""


def main(options: Options) -> None:
    """Draws.

    Raises:
      BadInput: a folder holds no run, or the picture cannot be drawn or written.
    """
    from train.run import log

    if not options.run:
        raise BadInput("give at least one --run")
    claims.check_picture(options.output, "--output", SOFTWARE)
    runs = {name: log.read(folder) for name, folder in names(options.run).items()}
    for name, folder in names(options.run).items():
        if not any("loss" in line for line in runs[name]):
            raise BadInput(f"--run: {folder} holds no log of a run of train.main")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("train.plot needs matplotlib (pip install matplotlib)") from None
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy, speed = figure.subplots(1, 3)
    for name, lines in runs.items():
        steps, values = _mean_loss(lines, "loss")
        loss.plot(steps, values, linewidth=0.8, label=name)
        steps, values = _mean_loss(lines, "held_out_loss")
        loss.plot(steps, values, "o--", color=loss.lines[-1].get_color(), label=f"{name}, held out")
        steps, values = _series(lines, "held_out_accuracy")
        for position in range(len(values[0]) if values else 0):
            label = f"{name}, position {position + 1}"
            accuracy.plot(steps, [ranks[position][0] for ranks in values], "o-", alpha=1 / (1 + position / 2), label=label)
        for key in sorted({key for line in lines for key in line if key.startswith("held_out_tokens_per_step_")}):
            speed.plot(*_series(lines, key), "o-", label=f"{name}, {key.removeprefix('held_out_tokens_per_step_')}")
    for axes, title in (
        (loss, "loss, nats per drafted position"),
        (accuracy, "held-out top-1 accuracy"),
        (speed, "tokens per step"),
    ):
        axes.set_title(title)
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    try:
        figure.savefig(options.output, dpi=90, metadata={"Software": SOFTWARE})
    except (OSError, ValueError) as error:
        raise BadInput(f"--output: {options.output} cannot be written ({error})") from None
    print(f"the curves are in {options.output}")


def names(folders: tuple[pathlib.Path, ...]) -> dict[str, pathlib.Path]:
    """What runs are called: by their folders' names, or by the whole paths of those that share a name."""
    shared = collections.Counter(folder.name for folder in set(folders))
    return {folder.name if shared[folder.name] == 1 else str(folder): folder for folder in folders}


def _mean_loss(lines: list[dict], key: str) -> tuple[list[int], list[float]]:
    """A loss, which the log has as a sum over the drafted positions, as their mean."""
    positions = next((len(line["loss_per_position"]) for line in lines if "loss_per_position" in line), 1)
    steps, values = _series(lines, key)
    return steps, [value / positions for value in values]


def _series(lines: list[dict], key: str) -> tuple[list[int], list]:
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.plot", arguments)))


if __name__ == "__main__":
    sys.exit(command())
