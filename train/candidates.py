"""`python -m train.candidates`: gives a trained head a candidate head, by a truncated singular value decomposition of its LM head.

With a text, of the logits that the LM head makes there: a direction counts by how far the head's exits go in it. The head's weights
are the same. Not here: how candidates are looked up (`redrafter_jax/model/candidates.py`).
"""

import dataclasses
import pathlib
import sys
from typing import ClassVar

import numpy as np

from infer import text_files
from infer.command import read_options, run_command
from redrafter_jax.errors import BadInput
from train import remade

COMMAND = "train.candidates"
COLUMNS_AT_ONCE = 8192  # of a matrix, which are in float64 together
ROWS, ROW_TOKENS, ROWS_AT_ONCE, POSITIONS = 64, 256, 8, 5  # that are read of a text, evenly through it, and drafted at each place
LEAST_SHARE = 1e-3  # of the mean square of the exits, which every direction has, so that none is lost for good


@dataclasses.dataclass(frozen=True)
class Options:
    """Let a head draft among few candidates, which a low-rank copy of its LM head finds, so that a draft step reads less."""

    VALUES: ClassVar = {
        "target": "MODEL", "drafter": "HEAD", "output": "FOLDER", "rank": "R", "candidates": "C", "text": "PATH ...",
        "glob": "PATTERN ...", "lora": "FOLDER",
    }  # fmt: skip
    EXAMPLES: ClassVar = (
        "python -m train.candidates --target MODEL --drafter head-run/head --text docs --output head",
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
    text: tuple[pathlib.Path, ...] = ()
    """Text files, or folders of them, such as the head was trained on: the copy is then the best for what the head reads there, and
    half the rank does. Binary files in folders are passed over."""
    glob: tuple[str, ...] = ()
    """Which files of folders are read, such as '*.md' '*.py'; by default all."""
    lora: str | None = None
    """The adapter of the target that the head was trained for, if it has one: a folder or hub name, in PEFT's format."""


def main(options: Options) -> None:
    """Decomposes, writes, and prints what share of the matrix the copy is.

    Raises:
      BadInput: an option is out of range, the head is not recurrent, has a draft vocabulary or is not the target's, or there is too
        little text.
    """
    if options.glob and not options.text:
        raise BadInput("--glob chooses among the files of --text; give both or neither")
    chosen = text_files.texts(options.text, options.glob) if options.text else None
    remade.check(COMMAND, options.drafter, options.output)
    import jax

    from infer import notes, pair
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
    head = vocabulary.without_candidates(remade.load(options.drafter))
    adapter = pair.read_adapter(options.lora)
    numbers = (provenance.read(options.drafter) or {}).get("dtype", "float32")  # which do not matter here
    notes.say(target_folder, (options.drafter,), numbers, adapter)
    is_read, dtype = head.config.tied or chosen, remade.stored_as(fields)
    target = weights.load_target(target_folder, dtype, "--target", adapter=adapter) if is_read else None
    squares = None
    if chosen:
        if chosen.binary:
            print(chosen.note(), file=sys.stderr)
        squares = squares_of_exits(target, head, text_files.read_stream(chosen.files, target_folder, shapes.vocab_size))
    matrix = np.asarray(head.columns(target))
    if head.bigram is not None:
        matrix = np.concatenate([matrix, np.asarray(head.bigram.columns[...])])
    down, up, share = decompose(matrix, options.rank, squares)
    few = vocabulary.with_candidates(head, options.candidates, down, up)
    has = f"{options.candidates} candidates of rank {options.rank}"
    remade.write(few, COMMAND, has, options.target, options.drafter, options.output)
    E, V = matrix.shape
    print(
        f"rank {options.rank} keeps {share:.1%} of the {'logits' if chosen else 'LM head'}, squared; a draft step reads"
        f" {down.size + up.size} numbers, and {options.candidates * E} for each beam, in place of {E} x {V} = {E * V}"
    )
    print(f"the head with candidates is in {options.output}")


def decompose(matrix: np.ndarray, rank: int, squares: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """The best factors A ``[E, R]`` and B ``[R, V]``, float32, of a matrix M ``[E, V]``, and which share of its squares they keep,
    0 to 1: the first left singular vectors U of M, and U^T M. By the eigenvectors of M M^T, which is small, in float64.

    squares: the mean of z z^T ``[E, E]`` of exits z. The factors are then the best for the logits z M: with W W = squares, those of
    W M, with A = W^-1 U.
    """
    E, V = matrix.shape
    if squares is not None:
        values, vectors = np.linalg.eigh(squares)
        root = np.sqrt(np.maximum(values, 0) + LEAST_SHARE * max(values.mean(), 1e-30))
        wide, back = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    parts = [slice(first, first + COLUMNS_AT_ONCE) for first in range(0, V, COLUMNS_AT_ONCE)]

    def read(part: slice) -> np.ndarray:
        columns = matrix[:, part].astype(np.float64)
        return columns if squares is None else wide @ columns

    products = np.zeros((E, E))
    for part in parts:
        columns = read(part)
        products += columns @ columns.T
    values, vectors = np.linalg.eigh(products)
    down = vectors[:, ::-1][:, :rank]
    up = np.concatenate([(down.T @ read(part)).astype(np.float32) for part in parts], axis=1)
    down = down if squares is None else back @ down
    return down.astype(np.float32), up, float(np.clip(values[::-1][:rank].sum() / max(values.sum(), 1e-30), 0, 1))


def squares_of_exits(target, head, stream) -> np.ndarray:
    """The mean of z z^T ``[E + r, E + r]``, float64, of the exits z of a head at places of a text, for each drafted position."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    from redrafter_jax.devices import processes
    from redrafter_jax.model import attention, layers

    N = min(ROW_TOKENS, target.config.max_position_embeddings)
    starts = np.linspace(0, len(stream) - N, ROWS).astype(int)
    rows = np.stack([np.asarray(stream[start : start + N], np.int32) for start in starts])

    @jax.jit
    def of_rows(target, head, tokens_BT):
        hidden = target(tokens_BT, jnp.arange(N) + jnp.zeros_like(tokens_BT), attention.causal(tokens_BT >= 0)).shown

        def read(i: int):
            ahead_BT = jnp.roll(tokens_BT, -1 - i, axis=1)
            return ahead_BT, target.embed(ahead_BT)

        exits = jnp.stack(head.text_exits(hidden, read, POSITIONS))[:, :, :-POSITIONS].astype(jnp.float32)
        return layers.einsum("kbte,kbtf->ef", exits, exits, out_sharding=P(None, None)) / (exits.size / exits.shape[-1])

    target = target.showing(head.config.depths)
    parts = [rows[first : first + ROWS_AT_ONCE] for first in range(0, ROWS, ROWS_AT_ONCE)]
    return sum(np.asarray(of_rows(target, head, processes.put(part, "data")), np.float64) for part in parts) / len(parts)


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.candidates", arguments)))


if __name__ == "__main__":
    sys.exit(command())
