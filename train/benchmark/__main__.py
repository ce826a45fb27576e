"""`python -m train.benchmark`: the training loss against its straightforward forms, in JAX and in PyTorch.

Each computes the loss of a batch and the gradient of every weight of the head, from the same numbers; a comparison is
only printed if they agree. Random weights: neither time nor memory depends on them. Not here: the forms (`forms.py`), speed of
decoding.
"""

import dataclasses
import json
import statistics
import sys
import time
from typing import Literal

import jax

from infer.command import read_options, run_command
from redrafter_jax import loss
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from train.benchmark import forms

FORMS = ("ours", "straightforward", "torch")


@dataclasses.dataclass(frozen=True)
class Options:
    """Time and memory of the training loss and its gradients, beside the straightforward forms."""

    vocab: int = 32000
    """Vocabulary (V)."""
    width: int = 256
    """The target's hidden size (D)."""
    head: Literal["full", "slim"] = "full"
    """Which head; `train.main --help` has both."""
    positions: int = 5
    """Drafted positions (K)."""
    rows: int = 4
    """Texts (B)."""
    row_length: int = 64
    """Tokens of a text (T)."""
    distill_weight: float = 0.0
    """Share of soft labels."""
    repeats: int = 5
    """Runs of each form, in turn; the medians are printed."""
    forms: tuple[str, ...] = FORMS
    """Which of ours, straightforward, torch."""
    json: bool = False
    """Print JSON instead of a table."""


def main(options: Options) -> None:
    """Measures and prints.

    Raises:
      BadInput: an option is out of range, or the forms do not agree.
    """
    check(options)
    jax.set_mesh(make_mesh())
    config = loss.LossConfig(options.positions, options.distill_weight)
    case = forms.make(options.width, options.vocab, options.head, options.rows, options.row_length, config)
    runs, report = {}, {}
    for form in options.forms:
        if form == "torch":
            runs[form], report[form] = forms.torch_form(case), {"temporary_bytes": None}
        else:
            runs[form], temporary, seconds = forms.compiled(case, form)
            report[form] = {"temporary_bytes": temporary, "compile_seconds": seconds}
    results = {form: run() for form, run in runs.items()}
    forms.agree(results)
    times = {form: [] for form in runs}
    for _ in range(options.repeats):
        for form, run in runs.items():
            began = time.perf_counter()
            run()
            times[form].append(time.perf_counter() - began)
    for form, seconds in times.items():
        report[form] |= {"seconds": statistics.median(seconds), "from": min(seconds), "to": max(seconds)}
    print(
        json.dumps({"options": dataclasses.asdict(options), "forms": report}, indent=1) if options.json else table(options, report)
    )


def table(options: Options, report: dict) -> str:
    """The result for people."""
    logits = 4 * options.positions * options.rows * options.row_length * options.vocab
    lines = [
        f"loss and gradients of a {options.head} head, V {options.vocab}, D {options.width}, K {options.positions},"
        f" {options.rows} x {options.row_length} tokens, {options.distill_weight:.0%} soft labels; {jax.devices()[0].device_kind},"
        f" jax {jax.__version__}",
        f"all logits together would be {logits / 1e6:.0f} MB",
        "",
        "| form | seconds (from to) | of ours | temporary memory, MB |",
        "|---|---|---|---|",
    ]
    ours = report.get("ours", {}).get("seconds")
    for form, row in report.items():
        memory = "not measured" if row["temporary_bytes"] is None else f"{row['temporary_bytes'] / 1e6:.0f}"
        ratio = f"{row['seconds'] / ours:.2f}" if ours else ""
        lines.append(f"| {form} | {row['seconds']:.3f} ({row['from']:.3f} {row['to']:.3f}) | {ratio} | {memory} |")
    return "\n".join(lines)


def check(options: Options) -> None:
    """Raises BadInput for options out of range."""
    for name in ("vocab", "width", "positions", "rows", "repeats"):
        if getattr(options, name) < 1:
            raise BadInput(f"--{name} should be 1 or more, not {getattr(options, name)}")
    if options.row_length < options.positions + 2:
        raise BadInput(f"--row-length should be at least --positions + 2, not {options.row_length}")
    if not 0 <= options.distill_weight <= 1:
        raise BadInput(f"--distill-weight should be from 0 to 1, not {options.distill_weight}")
    for form in options.forms:
        if form not in FORMS:
            raise BadInput(f"--forms: {form!r} should be one of {', '.join(FORMS)}")


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.benchmark", arguments)))


if __name__ == "__main__":
    sys.exit(command())
