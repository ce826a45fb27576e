"""What `infer.fit` and `train.fit` share: options of a slice, one way to run and print, and the cells of their tables.

Not here: what each of them compiles (`fit/points.py` of both), the compiler (`redrafter_jax/slices/compiler.py`).
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from infer.command import read_options
from infer.options import Weights, weights_beside

MAX_RETRIES = 3  # recommendations after the first, each made because the one before does not fit with all layers
GIB = 1 << 30
Columns = Sequence[tuple[str, int]]
"""The name and the width of each column."""


@dataclasses.dataclass(frozen=True)
class SliceOptions:
    """A model and a TPU slice that is not here."""

    model: str
    """A shape of redrafter_jax/model/shapes.py (llama-7b or vicuna-7b, llama-3.1-8b, ...) or a folder with config.json."""
    topology: str = "v5e:2x4"
    """The slice: a chip and a grid, such as v5e:2x2, v5e:2x4, v5e:4x4, v6e:2x4, v5p:2x2x1, v5p:2x2x2."""
    mesh: tuple[int, int] | None = None
    """Devices over which a batch (D) and the target (M) are split; by default every mesh of all chips is tried."""
    method: Literal["recurrent", "medusa"] = "recurrent"
    """As in train.main: ReDrafter's head, or Medusa's heads, as many as --positions."""
    head: Literal["full", "slim", "paper", "best"] = "full"
    """As in train.main. full, or paper: the paper's head (medusa: each head has its own LM head); slim, or best: exits into the
    target's own LM head."""
    head_vocab: int = 0
    """Tokens that the head can draft; 0: all of the target's."""
    bigram: int = 0
    """As in train.main: the rank of a recurrent head's bigram term; 0: none."""
    gated: bool = False
    """As in train.main: whether a recurrent head's state has gates."""
    depths: int | None = None
    """As in train.main: inner layers of the target that a recurrent head reads beside the last; by default 2 with --head best."""
    blocks: int = 2
    """Residual blocks of the head (medusa: of each head; the published ones have 1)."""
    whole: bool = False
    """Compile all layers at every point. Otherwise 2 and 4 layers are, the rest follows from their difference (marked ~), and
    only what is recommended is compiled whole."""
    weights: Weights | None = None
    """How the matrices of the target's layers are stored: int8 or fp8 (eight bits and a scale per output channel), or as --dtype;
    by default as --dtype, or as a quantised checkpoint has them."""
    json: bool = False
    """Print the report as JSON instead."""

    @property
    def kind(self) -> str:
        """full or slim, whichever name the head was given."""
        return {"paper": "full", "best": "slim"}.get(self.head, self.head)

    @property
    def inner_layers(self) -> int:
        """`depths`, or what the name of the head says."""
        of_name = 2 if (self.head, self.method) == ("best", "recurrent") else 0
        return of_name if self.depths is None else self.depths


Options = TypeVar("Options", bound=SliceOptions)


def run_fit(kind: type[Options], name: str, arguments: list[str] | None, run: Callable[[Options], dict]) -> None:
    """Reads the options and runs; prints the report that ``run`` returns if JSON is wanted."""
    options = read_options(kind, name, arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs, and a TPU that is here stays free
    report = run(options)
    if options.json:
        print(json.dumps(report, indent=1))


def formats_of(options) -> tuple[str, str | None]:
    """What is computed in, bfloat16 by default, and the format of the matrices, of options that have a ``dtype`` too. Raises
    BadInput as `weights_beside`."""
    dtype, weight_format = weights_beside(options.dtype, options.weights)
    return dtype or "bfloat16", weight_format


def formats_asked(options) -> str:
    """The same, as options of `infer.generate`."""
    dtype, weight_format = formats_of(options)
    return f"--dtype {dtype}" + (f" --weights {weight_format}" if weight_format else "")


def command_line(name: str) -> str:
    """The command as it was given, for its report."""
    return " ".join([f"python -m {name}", *sys.argv[1:]])


def printer(options: SliceOptions) -> Callable[[str], None]:
    """Prints a line at once, unless JSON is wanted."""
    return (lambda _: None) if options.json else (lambda text: print(text, flush=True))


def left_out(reasons: Iterable[str]) -> list[str]:
    """A line for each mesh or batch that is left out."""
    return [f"left out: {reason}" for reason in reasons]


def line(cells: Sequence[str], columns: Columns) -> str:
    """Cells under their columns."""
    return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, columns, strict=False)).rstrip()


def head_line(columns: Columns) -> str:
    """The names of the columns."""
    return line([name for name, _ in columns], columns)


def head_of(
    method: str, head: str, head_vocab: int, positions: int, blocks: int, bigram=0, gated=False, depths=0, few=0, rank=0
) -> str:
    """A head in words, of these values of the options; few: its candidates."""
    tokens = f" of {head_vocab} tokens" if head_vocab else ""
    if method == "medusa":
        end = "LM heads of their own" if head == "full" else "the target's LM head"
        return f"{positions} Medusa heads of {blocks} block{'s' * (blocks > 1)} with {end}{tokens}"
    parts = [f"a bigram term of rank {bigram}"] * (bigram > 0) + ["gates"] * gated
    parts += [f"features of {depths} inner layer{'s' * (depths > 1)}"] * (depths > 0)
    parts += [f"{few} candidates of rank {rank}"] * (few > 0)
    return f"{head} head{tokens}{' with ' if parts else ''}{' and '.join(parts)}"


def gib(count: float | None, mark: str = "") -> str:
    """Bytes in GiB; a question mark where they are not known."""
    return "?" if count is None else f"{mark}{count / GIB:.2f}"


def facts_of(row: dict, mark: str, *names: str) -> tuple[list[str], bool]:
    """The first cells of a row (mesh, batch, the fields ``names``, GiB, whether it fits), and whether the row ends there:
    where the compiler failed or refused the program, there are no times."""
    cells = ["x".join(map(str, row["mesh"])), str(row["batch"]), *(str(row[name]) for name in names), gib(row["held"], mark)]
    if "failed" in row:
        return [*cells, "?", row["failed"]], True
    return [*cells, "yes" if row["fits"] else "no"], not row.keys() & {"seconds", "step_seconds"}
