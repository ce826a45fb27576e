"""`python -m train.demo`: trains the embedded pair from Python source that is on this machine.

corpus -> tokenizer -> target -> draft heads -> figures; each stage is saved in `--work`, and a stopped run resumes
there. Not here: the options (`options.py`), the corpus (`dataset.py`), the other stages (`pretrain.py`,
`unlikelihood.py`, `train/run`).
"""

import dataclasses
import functools
import json
import pathlib
import platform
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from infer.command import read_options, run_command
from infer.evaluate import metrics
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import checkpoint, lock, provenance, weights
from redrafter_jax.files.atomic import replacing
from redrafter_jax.model import vocabulary
from redrafter_jax.model.target import Target
from train.data.rows import read_stream
from train.demo import dataset, pretrain, unlikelihood
from train.demo.options import Options, check
from train.demo.own_text import greedy_rows
from train.run import loop, stop
from train.run.recipe import PRESETS

HEADS = {"drafter_slim": "slim", "drafter": "full"}


def main(options: Options) -> int:
    """Runs the stages that are not done; returns the exit code, which is not 0 where the run was asked to end.

    Raises:
      BadInput: an option, a package or the folder is wrong.
    """
    check(options)
    try:
        with lock.folder(options.work, "--work"), stop.says_how_to_resume(options.work):
            make(options)
    except stop.Stopped as stopped:
        print(f"{stopped}; the same command goes on from what is saved in {options.work}")
        return stopped.code
    return 0


def make(options: Options) -> None:
    """Runs the stages in turn."""
    jax.set_mesh(make_mesh())
    dataset.prepare(options)
    pair = options.work / "pair"
    if not (pair / "target" / "config.json").exists():
        export_target(options, unloop_target(options, train_target(options)))
    target = weights.load_target(pair / "target")
    for name, kind in HEADS.items():
        if not (pair / name / "config.json").exists():
            train_head(options, target, name, kind)
    report(options, target)


def train_target(options: Options) -> Target:
    """Trains the target, from the newest checkpoint or from random weights."""
    schedule = options.schedule()
    start = functools.partial(pretrain.start, jax.random.key(0), options.target_config(), schedule)
    _set_aside_damaged(options.work / "target", jax.eval_shape(start))
    with checkpoint.Checkpoints(options.work / "target") as saved:
        resumes = saved.latest_step is not None
        state = saved.restore(train=jax.eval_shape(start))["train"] if resumes else jax.jit(start)()
        return _train_target(options, saved, state).target


def _set_aside_damaged(folder: pathlib.Path, state: pretrain.PretrainState) -> None:
    for sentence in checkpoint.set_aside_damaged(folder, train=state):
        print(sentence, file=sys.stderr)


def _train_target(options: Options, saved: checkpoint.Checkpoints, state: pretrain.PretrainState) -> pretrain.PretrainState:
    schedule, first = options.schedule(), int(state.step)
    step = jax.jit(functools.partial(pretrain.step, schedule=schedule), donate_argnums=0)
    tokens, length = dataset.read_stream(options, "train"), options.row_length + 1
    batches = read_stream(tokens, length, options.batch, 0, first, schedule.steps)
    progress = tqdm(batches, "target", initial=first, total=schedule.steps)
    average, began = None, time.perf_counter()
    with stop.Stop() as asked:
        for index, rows in enumerate(progress, start=first + 1):
            state, loss = step(state, jax.device_put(rows, P("data", None)))
            average = float(loss) if average is None else 0.98 * average + 0.02 * float(loss)
            progress.set_postfix(loss=f"{average:.3f}")
            stops = asked.is_asked(index)
            if index % options.save_every == 0 or index == schedule.steps or stops:
                saved.save(index, train=state)
                speed = (index - first) * options.batch * options.row_length / (time.perf_counter() - began)
                bits = held_out_bits(options, state.target)
                _log(options, {"step": index, "train_nats": average, "tokens_per_second": speed, "bits_per_byte": bits})
            if stops and index < schedule.steps:
                raise stop.Stopped(index, asked.code)
    return state


def unloop_target(options: Options, target: Target) -> Target:
    """Trains the target further with the rounds of `unlikelihood.py`, with a checkpoint after each."""
    rounds = unlikelihood.Rounds(options.unloop_rounds, row_length=options.row_length)
    state = pretrain.begin(target, rounds.schedule())
    _set_aside_damaged(options.work / "unloop", state)
    with checkpoint.Checkpoints(options.work / "unloop") as saved:
        done = saved.latest_step or 0
        if done:
            state = saved.restore(train=state)["train"]
        for number in range(done, rounds.count):
            state, line = unlikelihood.run(state, dataset.read_stream(options, "train"), rounds, number)
            saved.save(number + 1, train=state)
            _log(options, line | {"bits_per_byte": held_out_bits(options, state.target)})
    return state.target


def held_out_bits(options: Options, target: Target, rows: int = 64) -> float:
    record = dataset.read_record(options)
    return metrics.bits_per_byte(
        pretrain.finished(target), dataset.read_stream(options, "held_out"), record["held_out_bytes"], options.row_length, rows
    )


def _log(options: Options, line: dict) -> None:
    with open(options.work / "target.jsonl", "a") as log:
        log.write(json.dumps(line) + "\n")


def export_target(options: Options, target: Target) -> None:
    """Writes the target in bfloat16 as a Hugging Face folder with its tokenizer."""
    folder = options.work / "pair" / "target"
    for file in (options.work / "tokenizer").iterdir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    weights.save_target(narrow(target), folder, eos_token_id=0, bos_token_id=None)


def train_head(options: Options, target: Target, name: str, kind: str) -> None:
    """Trains one head with the code of `train.main`, and writes it beside the target."""
    steps = options.slim_steps if kind == "slim" else options.head_steps
    recipe = dataclasses.replace(PRESETS["demo"](kind, steps), row_length=options.row_length)
    examples = head_examples(options, target)
    head = loop.train_head(target, examples, recipe, options.work / name, held_out_examples(options))
    trained_for = provenance.describe(options.work / "pair" / "target", "float32")
    weights.save_drafter(narrow(head), options.work / "pair" / name, trained_for=trained_for)


def head_examples(options: Options, target: Target) -> list[dict]:
    """Rows of the target's own text, and equally many rows of the corpus."""
    own = own_text(options, target)
    text = dataset.read_stream(options, "train")
    starts = np.random.default_rng(0).integers(0, len(text) - options.row_length, len(own))
    rows = [*own, *(text[start : start + options.row_length] for start in starts)]
    return [{"tokens": row, "labelled": np.ones(len(row), bool)} for row in rows]


def held_out_examples(options: Options) -> list[dict]:
    rows = metrics.Prompts(dataset.read_stream(options, "held_out"), count=64, length=options.row_length).cut()
    return [{"tokens": np.asarray(row, np.int32), "labelled": np.ones(len(row), bool)} for row in rows]


def own_text(options: Options, target: Target) -> np.ndarray:
    """``[replies, row_length]``: the target's greedy continuations of places in the corpus, decoded once."""
    file = options.work / "own_text.npy"
    if not file.exists():
        length = options.row_length // 4
        prompts = metrics.Prompts(dataset.read_stream(options, "train"), options.replies, length).cut()
        rows = greedy_rows(target, prompts, options.row_length)
        with replacing(file) as new, open(new, "wb") as opened:
            np.save(opened, rows.astype(np.uint16))
    rows = dataset.read_tokens(file)
    if rows.shape[1:] != (options.row_length,):
        raise BadInput(f"--row-length {options.row_length}: {file} has rows of {rows.shape[-1]} tokens; give another --work")
    return rows


def narrow(module):
    return vocabulary.cast(module, jnp.bfloat16)


def report(options: Options, target: Target) -> None:
    """Measures the pair on held-out files and writes `pair/figures.json`."""
    record, held_out = dataset.read_record(options), dataset.read_stream(options, "held_out")
    prompts, contexts = metrics.Prompts(held_out), metrics.Prompts(held_out, count=512)
    result = {
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()}), jax {jax.__version__}",
        "corpus": record["origins"],
        "held_out_files": record["held_out"],
        "target_parameters": sum(leaf.size for leaf in jax.tree.leaves(target)) - target.lm_head.size,
        "target_tokens_seen": options.steps * options.batch * options.row_length,
        "bits_per_byte": metrics.bits_per_byte(target, held_out, record["held_out_bytes"]),
        "loops": metrics.loop_share(metrics.greedy_replies(target, prompts)),
    }
    for name in HEADS:
        head = weights.load_drafter(options.work / "pair" / name)
        result[f"{name}_parameters"] = sum(leaf.size for leaf in jax.tree.leaves(head))
        result[name] = metrics.tau_table(target, head, prompts, contexts, metrics.SHAPES, metrics.TREES)
    text = json.dumps(result, indent=1)
    (options.work / "pair" / "figures.json").write_text(text + "\n")
    print(text)


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.demo", arguments, description=__doc__)))


if __name__ == "__main__":
    sys.exit(command())
