"""`python -m train.main`: trains a draft head for a frozen Llama-family target.

Not here: reading text (`data.py`), the update (`step.py`), the loss (`redrafter_jax/loss.py`).
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time
from typing import Literal

import jax
import numpy as np
import tyro
from jax.sharding import PartitionSpec as P
from tqdm import tqdm
from transformers import AutoTokenizer

from redrafter_jax import checkpoint, weights
from redrafter_jax.errors import BadInput
from redrafter_jax.loss import LossConfig
from redrafter_jax.mesh import make_mesh
from redrafter_jax.model import drafter as heads
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target
from train import data, step


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a head is trained, whatever its target and its text are."""

    head: Literal["full", "slim"] = "full"
    """full: the paper's head; slim: exits at the target's width into the target's own LM head."""
    blocks: int = 2
    """Residual blocks of the head."""
    positions: int = 5
    """Drafted positions that are trained (K)."""
    distill_weight: float = 1.0
    """Share of soft labels, the target's own distributions, in the loss; the rest is the text itself."""
    steps: int = 1000
    """Training steps."""
    batch: int = 8
    """Rows in a step."""
    row_length: int = 256
    """Tokens in a row."""
    rate: float = 2e-3
    """Highest learning rate."""
    seed: int = 0
    """Decides the first weights and the order of the rows."""
    save_every: int = 100
    """Steps between checkpoints."""

    def schedule(self) -> step.Schedule:
        return step.Schedule(self.steps, self.rate)

    def check(self) -> None:
        """Raises BadInput for a number out of its range."""
        for name in ("blocks", "positions", "steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')} should be 1 or more, not {getattr(self, name)}")
        if self.row_length < self.positions + 2:
            raise BadInput(f"--row-length should be at least --positions + 2, not {self.row_length}")
        if not 0 <= self.distill_weight <= 1:
            raise BadInput(f"--distill-weight should be from 0 to 1, not {self.distill_weight}")
        if not 0 < self.rate < 1:
            raise BadInput(f"--rate should be between 0 and 1, not {self.rate}")
        if not 0 <= self.seed < 2**32:
            raise BadInput(f"--seed should be from 0 to {2**32 - 1}, not {self.seed}")


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a ReDrafter head for a frozen Llama-family target."""

    target: pathlib.Path
    """Folder of the target: config.json, safetensors, tokenizer."""
    text: tuple[pathlib.Path, ...]
    """Text files, or folders of them, to train on."""
    output: pathlib.Path = pathlib.Path("head-run")
    """Folder for checkpoints, the log, and the finished head (`head/`, in Apple's format)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The target's number format; the head trains in float32."""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = Recipe()


def main(options: Options) -> None:
    options.recipe.check()
    jax.set_mesh(make_mesh())
    target = weights.load_target(options.target, options.dtype, what="--target")
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.target)
    except (OSError, ValueError) as error:
        raise BadInput(f"--target: {options.target} has no tokenizer, which training on text needs ({error})") from None
    stream = data.read_text(options.text, tokenizer)
    head = train_head(target, stream, options.recipe, options.output)
    weights.save_drafter(head, options.output / "head")
    print(f"the head is in {options.output / 'head'}")


def train_head(target: Target, stream: np.ndarray, recipe: Recipe, folder: pathlib.Path) -> Drafter:
    """The trained head, from the newest checkpoint in ``folder`` or from random weights."""
    shape = heads.full if recipe.head == "full" else heads.slim
    config = shape(target.config.vocab_size, target.config.hidden_size, recipe.blocks)
    start = functools.partial(step.start, jax.random.key(recipe.seed), config, recipe.schedule())
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.Run(folder / "checkpoints") as run:
        state = _resume(run, start) if run.latest_step is not None else jax.jit(start)()
        return _train(target, stream, recipe, folder, run, state).drafter


def _train(target, stream, recipe: Recipe, folder: pathlib.Path, run: checkpoint.Run, state: step.HeadState) -> step.HeadState:
    loss_config = LossConfig(recipe.positions, recipe.distill_weight)
    update = jax.jit(functools.partial(step.step, schedule=recipe.schedule(), config=loss_config), donate_argnums=0)
    first, began = int(state.step), time.perf_counter()
    batches = data.rows(stream, recipe.row_length, recipe.batch, recipe.seed, first, recipe.steps)
    progress = tqdm(batches, f"{recipe.head} head", initial=first, total=recipe.steps)
    for index, rows in enumerate(progress, start=first + 1):
        tokens = jax.device_put(rows, P("data", None))
        state, metrics = update(state, target, tokens, tokens)
        if index % 10 == 0 or index == recipe.steps:
            line = _line(index, metrics, (index - first) * rows.size / (time.perf_counter() - began))
            progress.set_postfix(loss=line["loss"], top1=line["accuracy"][0][0])
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
        if index % recipe.save_every == 0 or index == recipe.steps:
            run.save(index, head=state.drafter, train=(state.step, state.optimizer))
    return state


def _resume(run: checkpoint.Run, start) -> step.HeadState:
    like = jax.eval_shape(start)
    loaded = run.restore(head=like.drafter, train=(like.step, like.optimizer))
    return step.HeadState(loaded["train"][0], loaded["head"], loaded["train"][1])


def _line(index: int, metrics, tokens_per_second: float) -> dict:
    host = jax.device_get(metrics)
    return {
        "step": index,
        "loss": round(float(host.loss.sum()), 4),
        "loss_per_position": host.loss.round(4).tolist(),
        "accuracy": host.accuracy.round(4).tolist(),
        "tokens_per_second": round(tokens_per_second, 1),
    }


def command() -> None:
    """The command: errors of the user's making end in one sentence and exit code 2."""
    try:
        main(tyro.cli(Options, description=__doc__))
    except BadInput as error:
        print(f"train.main: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    command()
