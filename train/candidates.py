"""`python -m train.candidates`: gives a trained head a candidate head, by a truncated singular value decomposition of its LM head.

The head's weights are the same. Not here: how candidates are looked up (`redrafter_jax/model/candidates.py`).
"""

import dataclasses
import pathlib
import shutil
import sys
from typing import ClassVar

import numpy as np

from infer.command import read_options, run_command
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims

COLUMNS_AT_ONCE = 8192  # of a matrix, which are in float64 together


@dataclasses.dataclass(frozen=True)
class Options:
    """Let a head draft among few candidates, which a low-rank copy of its LM head finds, so that a draft step reads less."""

    VALUES: ClassVar = {"target": "MODEL", "drafter": "HEAD", "output": "FOLDER", "rank": "R", "candidates": "C"}
    EXAMPLES: ClassVar = (
        "python -m train.candidates --target MODEL --drafter head-run/head --rank 128 --candidates 512 --output head",
        "python -m infer.generate --target MODEL --drafter head",
    )

    target: pathlib.Path
    """Folder or hub name (owner/model) of the target."""
    drafter: pathlib.Path
    """Folder of the head, a recurrent one with all of the target's tokens."""
    output: pathlib.Path
    """Folder for the head with candidates."""
    rank: int = 128
    """Rank of the copy, of which each draft step reads all."""
    candidates: int = 512
    """Tokens whose exact logits each beam of a step computes; at least as many as beams, and as --draft-top-k."""


def main(options: Options) -> None:
    """Decomposes, writes, and prints what share of the matrix the copy is.

    Raises:
      BadInput: an option is out of range, the head is not recurrent, has a draft vocabulary or is not the target's.
    """
    if options.output.exists() and options.drafter.exists() and options.output.samefile(options.drafter):
        raise BadInput("--output is the folder of --drafter, which is kept; name another folder")
    claims.check_head(options.output, "--output")
    import jax

    from redrafter_jax.devices.mesh import make_mesh
    from redrafter_jax.files import config, heads, hub, provenance, weights
    from redrafter_jax.model import candidates, vocabulary
    from redrafter_jax.model.drafter import DrafterConfig

    target_folder = hub.locate(options.target, "--target")
    fields = config.read_json(target_folder, "--target")
    shapes = config.target_config(fields, "--target")
    head_config = heads.read_head_config(options.drafter, "--drafter")
    config.check_pair(shapes, head_config, "--drafter")
    if not isinstance(head_config, DrafterConfig):
        raise BadInput(f"--drafter: the heads in {options.drafter} are Medusa's; give a recurrent head")
    wrong = candidates.wrong_numbers(head_config, options.candidates, options.rank)
    if wrong:
        raise BadInput(f"--{wrong[0]} {wrong[1]}")
    jax.set_mesh(make_mesh())
    head = weights.load_drafter(options.drafter, _format_of(config.read_json(options.drafter, "--drafter")), "--drafter")
    head = vocabulary.without_candidates(head)
    target = weights.load_target(target_folder, _format_of(fields), "--target") if head.config.tied else None
    matrix = np.asarray(head.columns(target))
    if head.bigram is not None:
        matrix = np.concatenate([matrix, np.asarray(head.bigram.columns[...])])
    down, up, share = decompose(matrix, options.rank)
    few = vocabulary.with_candidates(head, options.candidates, down, up)
    options.output.mkdir(parents=True, exist_ok=True)
    for file in options.drafter.iterdir():
        if file.is_file() and file.name != "config.json" and file.suffix != ".safetensors":
            shutil.copyfile(file, options.output / file.name)
    weights.save_drafter(few, options.output, trained_for=provenance.read(options.drafter))
    E, V = matrix.shape
    print(
        f"rank {options.rank} keeps {share:.1%} of the squared LM head of {E} x {V}; a draft step reads"
        f" {down.size + up.size} numbers of it, and {options.candidates * E} for each beam, in place of {E * V}"
    )
    print(f"the head with candidates is in {options.output}")


def decompose(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The best factors ``[E, R]`` and ``[R, V]``, float32, of a matrix ``[E, V]``: its first left singular vectors, and the matrix
    in terms of these; and which share of the sum of squares they keep, 0 to 1. By the eigenvectors of the matrix times its
    transpose in float64, which is small where V is large."""
    E, V = matrix.shape
    parts = [slice(first, first + COLUMNS_AT_ONCE) for first in range(0, V, COLUMNS_AT_ONCE)]
    squares = np.zeros((E, E))
    for part in parts:
        wide = matrix[:, part].astype(np.float64)
        squares += wide @ wide.T
    values, vectors = np.linalg.eigh(squares)
    down = vectors[:, ::-1][:, :rank]
    up = np.concatenate([(down.T @ matrix[:, part].astype(np.float64)).astype(np.float32) for part in parts], axis=1)
    return down.astype(np.float32), up, float(np.clip(values[::-1][:rank].sum() / max(values.sum(), 1e-30), 0, 1))


def _format_of(fields: dict) -> str:
    """The number format that a folder's config.json says its weights have."""
    stored = fields.get("torch_dtype", fields.get("dtype"))
    return stored if stored in ("bfloat16", "float16") else "float32"


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.candidates", arguments)))


if __name__ == "__main__":
    sys.exit(command())
