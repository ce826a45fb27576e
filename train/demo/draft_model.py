"""`python -m train.demo.draft_model`: trains a small draft model for a target, from random weights, to say what the target says.

Its soft labels are the target's distributions along the text, its optimizer that of the embedded pair's target (`pretrain.py`).
It writes a model folder with the target's tokenizer: `infer.generate --drafter FOLDER`. Not here: reading text (`train/data`).
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from infer import text
from infer.command import read_options, run_command
from infer.options import check_ranges
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import checkpoint, claims, config, hub, lock, weights
from redrafter_jax.model import vocabulary
from redrafter_jax.model.target import Target, TargetConfig, unembed
from train.data import datasets
from train.data.rows import Batch, Rows, read_batches
from train.demo import pretrain
from train.run import step, stop

RANGES = {
    "width": (2, 1 << 14),
    "layers": (1, 256),
    "heads": (1, 256),
    "feed_forward": (1, 1 << 17),
    "row_length": (16, 1 << 17),
    "batch": (1, 4096),
    "steps": (1, 10**8),
    "save_every": (1, 10**8),
}
RUN_FILE = "draft_model.json"  # the options; it marks the folder of a run


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a small draft model with the vocabulary of a target, by distillation."""

    target: str
    """Folder or hub name of the target."""
    output: pathlib.Path
    """Folder of the run: checkpoints, a log, and the finished `model/`. Started again, a run goes on where it stopped."""
    text: tuple[pathlib.Path, ...] = ()
    """Text files or folders to train on."""
    token_ids: tuple[pathlib.Path, ...] = ()
    """JSONL files of token ids to train on, such as the target's own text (train.distill)."""
    width: int = 192
    """Hidden size of the model."""
    layers: int = 2
    """Layers of the model."""
    heads: int = 3
    """Query heads; they share one key-value head."""
    feed_forward: int = 512
    """Feed-forward width."""
    row_length: int = 256
    """Tokens in a training row."""
    batch: int = 8
    """Rows in a step."""
    steps: int = 1500
    """Training steps."""
    save_every: int = 250
    """Steps between checkpoints."""

    def config(self, target: TargetConfig) -> TargetConfig:
        """The shapes of the model, with the target's vocabulary and context."""
        return TargetConfig(
            vocab_size=target.vocab_size,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=1,
            head_dim=self.width // self.heads,
            tie_word_embeddings=True,
            max_position_embeddings=target.max_position_embeddings,
        )


def check(options: Options) -> None:
    """Raises BadInput for options out of range, and for a folder that is another's."""
    check_ranges(RANGES, {name: getattr(options, name) for name in RANGES})
    if options.width % (2 * options.heads):
        raise BadInput(f"--width should be a multiple of twice --heads ({options.heads}), not {options.width}")
    if not options.text and not options.token_ids:
        raise BadInput("there is nothing to train on: give --text or --token-ids")
    claims.check_folder(options.output, "--output")
    if not (options.output / RUN_FILE).is_file():
        claims.check_empty(options.output, "--output", "a run of train.demo.draft_model")


def main(options: Options) -> int:
    """Trains, and writes the model; returns the exit code, which is not 0 where the run was asked to end."""
    check(options)
    folder = hub.locate(options.target, "--target")
    config.target_config(config.read_json(folder, "--target"), "--target")
    text.require_tokenizer(folder, "training data")
    with lock.folder(options.output, "--output"):
        _record(options)
        try:
            with stop.says_how_to_resume(options.output):
                train(options, folder)
        except stop.Stopped as stopped:
            print(f"{stopped}; the same command goes on from what is saved in {options.output}")
            return stopped.code
    return 0


def _record(options: Options) -> None:
    file, said = options.output / RUN_FILE, json.loads(json.dumps(dataclasses.asdict(options), default=str))
    before = json.loads(file.read_text()) if file.is_file() else said
    changed = [name for name in said if name not in ("save_every", "output") and said[name] != before.get(name)]
    if changed:
        name = changed[0]
        raise BadInput(f"--{name.replace('_', '-')}: the run in {options.output} has {before.get(name)}; give another --output")
    file.write_text(json.dumps(said, indent=1) + "\n")


def train(options: Options, folder: pathlib.Path) -> None:
    """The steps that are not done yet, and the finished model."""
    jax.set_mesh(make_mesh())
    target = weights.load_target(folder, what="--target")
    rows = Rows(_examples(options, folder), options.row_length)
    schedule = pretrain.PretrainSchedule(options.steps, options.batch)
    start = functools.partial(pretrain.start, jax.random.key(1), options.config(target.config), schedule)
    update = jax.jit(functools.partial(learn, schedule=schedule), donate_argnums=0)
    for sentence in checkpoint.set_aside_damaged(options.output / "checkpoints", train=jax.eval_shape(start)):
        print(sentence, file=sys.stderr)
    with checkpoint.Checkpoints(options.output / "checkpoints") as saved, stop.Stop() as asked:
        resumes = saved.latest_step is not None
        state = saved.restore(train=jax.eval_shape(start))["train"] if resumes else jax.jit(start)()
        first, losses = int(state.step), []
        batches = read_batches(rows, options.batch, 0, first, options.steps)
        bar = tqdm(batches, "draft model", initial=first, total=options.steps)
        for index, (batch, _) in enumerate(bar, start=first + 1):
            state, parts = update(state, target, batch)
            losses.append(parts)
            stops = asked.is_asked(index)
            if index % options.save_every == 0 or index == options.steps or stops:
                nats, agreement = (float(jnp.mean(jnp.stack(part))) for part in zip(*losses, strict=True))
                bar.set_postfix(loss=f"{nats:.3f}", agrees=f"{agreement:.0%}")
                with open(options.output / "log.jsonl", "a") as log:
                    log.write(json.dumps({"step": index, "loss": nats, "agreement": agreement}) + "\n")
                saved.save(index, train=state)
                losses = []
            if stops and index < options.steps:
                raise stop.Stopped(index, asked.code)
    export(pretrain.finished(state.target), folder, options.output / "model")


def _examples(options: Options, folder: pathlib.Path) -> datasets.Joined:
    sources = [
        datasets.Source(kind, getattr(options, kind), str(folder), held_out=0.0)
        for kind in ("text", "token_ids")
        if getattr(options, kind)
    ]
    found = datasets.join([datasets.build(source, options.output / "datasets") for source in sources], "train")
    if found is None:
        raise BadInput("--text, --token-ids: there is no example in them")
    return found


def learn(state: pretrain.PretrainState, target: Target, batch: Batch, schedule: pretrain.PretrainSchedule):
    """One update; also the loss, and the share of places where the model's likeliest token is the target's."""
    teacher_BTV = target.unembed(step.read(target, batch).hidden)

    def aim(model: Target) -> tuple[jax.Array, jax.Array]:
        hidden_BTD = step.text_pass(model, batch).hidden
        tied_DV = model.embedding[...].T  # `lm_head` is stale until `pretrain.finished`
        return distance(unembed(model.config, hidden_BTD, tied_DV), teacher_BTV, batch.segments > 0)

    (nats, agreement), gradients = jax.value_and_grad(aim, has_aux=True)(state.target)
    return pretrain.apply(state, gradients, schedule), (nats, agreement)


def distance(logits_BTV: jax.Array, teacher_BTV: jax.Array, counted_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean over the counted places of the cross-entropy in nats of the teacher's distribution, and how often both have the same
    likeliest token."""
    split = lambda x: jax.sharding.reshard(x, P("data", None, None))  # noqa: E731
    logits_BTV, teacher_BTV = split(logits_BTV), split(teacher_BTV)
    nats_BT = -jnp.sum(jax.nn.softmax(teacher_BTV) * jax.nn.log_softmax(logits_BTV), axis=-1)
    same_BT = jnp.argmax(logits_BTV, axis=-1) == jnp.argmax(teacher_BTV, axis=-1)
    mean = lambda x_BT: jnp.sum(jnp.where(counted_BT, x_BT, 0.0)) / jnp.sum(counted_BT)  # noqa: E731
    return mean(nats_BT), mean(same_BT)


def export(model: Target, target: pathlib.Path, folder: pathlib.Path) -> None:
    """The model in bfloat16 as a Hugging Face folder, with the target's tokenizer."""
    weights.save_target(vocabulary.cast(model, jnp.bfloat16), folder, **_ends(target))
    for file in sorted(target.iterdir()):
        if "token" in file.name and file.is_file():
            shutil.copyfile(file, folder / file.name)
    print(f"the draft model is in {folder}")


def _ends(target: pathlib.Path) -> dict:
    """What ends a text, as the target's config.json says."""
    fields = config.read_json(target, "--target")
    return {name: fields.get(name) for name in ("eos_token_id", "bos_token_id")}


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.demo.draft_model", arguments)))


if __name__ == "__main__":
    sys.exit(command())
