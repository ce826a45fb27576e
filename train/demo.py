"""`python -m train.demo`: trains the embedded pair from Python source that is on this machine.

corpus -> tokenizer -> target -> draft heads -> figures, each stage kept in `--work`; a run that was stopped goes on where it
stopped. Not here: what the stages do (`corpus`, `tokenizer`, `pretrain`).
"""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import numpy as np
import tyro
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from redrafter_jax import checkpoint
from redrafter_jax.mesh import make_mesh
from redrafter_jax.model.target import TargetConfig
from train import corpus, pretrain, tokenizer


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the embedded pair: a small Llama target that writes Python, and its draft heads."""

    work: pathlib.Path = pathlib.Path("demo-run")
    """Folder of the run: tokens, checkpoints, logs."""
    packages: tuple[str, ...] = ()
    """Installed packages whose Python files are trained on besides the standard library."""
    vocab: int = 2048
    """Tokens in the vocabulary."""
    width: int = 320
    """Hidden size of the target."""
    layers: int = 6
    """Layers of the target."""
    heads: int = 5
    """Query heads of the target; they share one key-value head."""
    feed_forward: int = 896
    """Feed-forward width of the target."""
    row_length: int = 256
    """Tokens in a training row."""
    batch: int = 16
    """Rows in a training step."""
    steps: int = 1500
    """Training steps of the target."""
    decay: float = 0.5
    """Share of the steps over which the learning rate falls to zero."""
    save_every: int = 100
    """Steps between checkpoints."""

    def target_config(self) -> TargetConfig:
        return TargetConfig(
            self.vocab, self.width, self.feed_forward, self.layers, self.heads, 1, self.width // self.heads,
            tie_word_embeddings=True, max_position_embeddings=2048,
        )  # fmt: skip

    def schedule(self) -> pretrain.Schedule:
        return pretrain.Schedule(self.steps, self.batch, decay=self.decay)


def main(options: Options) -> None:
    jax.set_mesh(make_mesh())
    options.work.mkdir(parents=True, exist_ok=True)
    prepare_corpus(options)
    train_target(options)


def prepare_corpus(options: Options) -> None:
    """Writes the tokenizer, the token streams and a record of where the text came from."""
    if (options.work / "corpus.json").exists():
        return
    text = corpus.read(options.packages)
    trained = tokenizer.train(text.train, options.vocab)
    tokenizer.save(trained, options.work / "tokenizer")
    record = {"origins": text.origins, "held_out": [source.name for source in text.held_out]}
    for name, sources in (("train", text.train), ("held_out", text.held_out)):
        files = tokenizer.encode(trained, sources)
        np.save(options.work / f"{name}.npy", np.concatenate(files).astype(np.uint16))
        record[f"{name}_tokens"] = sum(map(len, files))
        record[f"{name}_bytes"] = sum(len(source.text.encode()) for source in sources)
    (options.work / "corpus.json").write_text(json.dumps(record, indent=1))
    print(f"corpus: {record['train_tokens']:,} tokens to train on, {record['held_out_tokens']:,} held out")


def train_target(options: Options) -> pretrain.PretrainState:
    """The trained target, from the newest checkpoint or from random weights."""
    schedule = options.schedule()
    start = functools.partial(pretrain.start, jax.random.key(0), options.target_config(), schedule)
    run = checkpoint.Run(options.work / "target")
    state = run.restore(train=jax.eval_shape(start))["train"] if run.latest_step else jax.jit(start)()
    step = jax.jit(functools.partial(pretrain.step, schedule=schedule), donate_argnums=0)
    losses = jax.jit(pretrain.next_token_losses)
    stream = np.load(options.work / "train.npy").astype(np.int32)
    first = int(state.step)
    progress = tqdm(pretrain.rows(stream, options.row_length, schedule, first), initial=first, total=schedule.steps)
    average = None
    for index, rows in enumerate(progress, start=first + 1):
        state, loss = step(state, jax.device_put(rows, P("data", None)))
        average = float(loss) if average is None else 0.98 * average + 0.02 * float(loss)
        progress.set_postfix(loss=f"{average:.3f}")
        if index % options.save_every == 0 or index == schedule.steps:
            run.save(index, train=state)
            line = {"step": index, "train_nats": average, "bits_per_byte": bits_per_byte(options, losses, state.target)}
            with open(options.work / "target.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
    run.close()
    return state


def bits_per_byte(options: Options, losses, target, rows: int = 64) -> float:
    """Held-out cross-entropy in bits per byte of text, over rows spread evenly through the held-out files."""
    record = json.loads((options.work / "corpus.json").read_text())
    stream = np.load(options.work / "held_out.npy").astype(np.int32)
    starts = np.linspace(0, len(stream) - options.row_length - 1, rows).astype(int)
    cut = np.stack([stream[s : s + options.row_length + 1] for s in starts])
    nats = [np.asarray(losses(target, jax.device_put(part, P("data", None)))) for part in np.split(cut, rows // 16)]
    return float(np.mean(nats)) / math.log(2) * record["held_out_tokens"] / record["held_out_bytes"]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
