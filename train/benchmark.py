"""`python -m train.benchmark`: the training loss against its straightforward forms, in JAX and in PyTorch.

Each computes the loss of a batch and the gradient of every weight of the head, from the same numbers; a comparison is
only printed if they agree. Random weights: neither time nor memory depends on them. Not here: the loss (`loss.py`), speed
of decoding.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import PartitionSpec as P

from infer.command import run_command
from redrafter_jax import loss
from redrafter_jax.devices import processes
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from redrafter_jax.model import drafter as heads
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target, TargetConfig
from train.data import rows as data

FORMS = ("ours", "straightforward", "torch")
TOLERANCE = 2e-3  # of the loss and of each gradient's norm, relative


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


Run = Callable[[], tuple[float, list[np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One batch on one head: what every form is given."""

    target: Target
    drafter: Drafter
    tokens: np.ndarray
    hidden: np.ndarray
    config: loss.LossConfig


def make(options: Options) -> Case:
    rng = np.random.default_rng(0)
    D, V = options.width, options.vocab
    config = TargetConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=D,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=D,
    )
    shapes = (heads.full if options.head == "full" else heads.slim)(V, D)
    drafter = Drafter(jax.random.key(1), shapes)
    tokens = rng.integers(0, V, (options.rows, options.row_length)).astype(np.int32)
    hidden = rng.standard_normal((options.rows, options.row_length, D)).astype(np.float32)
    return Case(
        Target(jax.random.key(0), config), drafter, tokens, hidden, loss.LossConfig(options.positions, options.distill_weight)
    )


def straightforward(drafter: Drafter, target: Target, tokens_BT, labels_BT, hidden_BTD, config: loss.LossConfig) -> jax.Array:
    """`loss.draft_loss` as its definition reads: all logits at once, differentiated by JAX."""
    T, state_BTD, total = tokens_BT.shape[1], jnp.zeros_like(hidden_BTD), 0.0
    context, exits = drafter.context(hidden_BTD), []
    for i in range(config.positions):
        state_BTD = drafter.advance(state_BTD, jax.lax.stop_gradient(target.embed(jnp.roll(tokens_BT, -1 - i, axis=1))))
        exits.append(drafter.exit(context, state_BTD))
    logits_BKTV = jax.sharding.reshard(drafter.unembed(jnp.stack(exits, axis=1), target), P("data"))
    p_BTV = jax.sharding.reshard(jax.nn.softmax(target.unembed(hidden_BTD), axis=-1), P("data"))
    for i in range(config.positions):
        mixed_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BKTV[:, i], jnp.roll(labels_BT, -2 - i, axis=1))
        if config.distill_weight > 0:
            soft_BT = optax.softmax_cross_entropy(logits_BKTV[:, i], jnp.roll(p_BTV, -1 - i, axis=1))
            mixed_BT = (1 - config.distill_weight) * mixed_BT + config.distill_weight * soft_BT
        total += jnp.mean(mixed_BT[:, : T - 2 - i])
    return total


def compiled(case: Case, form: str) -> tuple[Run, int, float]:
    """A form of ours as a function of nothing, its temporary bytes, and the seconds it took to compile."""
    own = lambda *inputs, config: loss.draft_loss(*inputs, config=config)[0]  # noqa: E731
    aim = functools.partial(own if form == "ours" else straightforward, config=case.config)
    batch = data.unpacked(case.tokens)
    hidden = jax.device_put(case.hidden, P("data", None, None))
    inputs = (case.drafter, case.target, batch.tokens, batch.labels, hidden)
    began = time.perf_counter()
    program = jax.jit(jax.value_and_grad(aim)).lower(*inputs).compile()
    seconds = time.perf_counter() - began

    def run() -> tuple[float, list[np.ndarray]]:
        value, gradients = jax.block_until_ready(program(*inputs))
        return float(value), jax.tree.leaves(gradients)

    return run, program.memory_analysis().temp_size_in_bytes, seconds


def torch_form(case: Case) -> Run:
    """The same in plain PyTorch, with as many threads as this process may use.

    Raises:
      BadInput: there is no torch.
    """
    try:
        import torch
    except ImportError:
        raise BadInput("--forms torch needs torch; install requirements-dev.txt, or leave it out of --forms") from None
    torch.set_num_threads(processes.cores())
    tensor = lambda array: torch.from_numpy(np.array(array))  # noqa: E731
    parameters = {path: tensor(leaf).requires_grad_() for path, leaf in weights._leaves(case.drafter)}
    embedding, target_head = tensor(case.target.embedding[...]), tensor(case.target.lm_head[...])
    tokens, hidden, soft = tensor(case.tokens).long(), tensor(case.hidden), case.config.distill_weight
    silu, cross_entropy = torch.nn.functional.silu, torch.nn.functional.cross_entropy

    def dense(name: str, x):
        return torch.nn.functional.linear(x, parameters[f".{name}.weight"].T, parameters.get(f".{name}.bias"))

    def run() -> tuple[float, list[np.ndarray]]:
        state, total, T = torch.zeros_like(hidden), 0.0, tokens.shape[1]
        p = torch.softmax(hidden @ target_head, dim=-1) if soft > 0 else None
        for i in range(case.config.positions):
            scored = T - 2 - i
            state = silu(dense("rnn_w", embedding[tokens.roll(-1 - i, dims=1)]) + dense("rnn_u", state))
            z = torch.cat([hidden, state], dim=-1)[:, :scored]
            z = dense("input_proj", z) if case.drafter.input_proj is not None else z
            for block in range(case.drafter.config.num_blocks):
                z = z + silu(dense(f"blocks[{block}]", z))
            logits = z @ (parameters[".lm_head"] if case.drafter.lm_head is not None else target_head)
            flat = logits.flatten(0, 1)
            mixed = (1 - soft) * cross_entropy(flat, tokens[:, 2 + i :].flatten())
            if p is not None:
                mixed = mixed + soft * cross_entropy(flat, p[:, 1 + i : 1 + i + scored].flatten(0, 1))
            total = total + mixed
        gradients = torch.autograd.grad(total, list(parameters.values()))
        return float(total.detach()), [gradient.numpy() for gradient in gradients]

    return run


def main(options: Options) -> None:
    """Measures and prints.

    Raises:
      BadInput: an option is out of range, or the forms do not agree.
    """
    check(options)
    jax.set_mesh(make_mesh())
    case, runs, report = make(options), {}, {}
    for form in options.forms:
        if form == "torch":
            runs[form], report[form] = torch_form(case), {"temporary_bytes": None}
        else:
            runs[form], temporary, seconds = compiled(case, form)
            report[form] = {"temporary_bytes": temporary, "compile_seconds": seconds}
    results = {form: run() for form, run in runs.items()}
    agree(results)
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


def agree(results: dict[str, tuple[float, list[np.ndarray]]]) -> None:
    """Raises BadInput if loss or gradients of two forms differ."""
    (first, (value, gradients)), *others = results.items()
    norms = [float(np.linalg.norm(np.asarray(gradient))) for gradient in gradients]
    for form, (other, found) in others:
        off = [abs(value - other) / abs(value)]
        off += [
            float(np.linalg.norm(np.asarray(a) - np.asarray(b))) / norm
            for a, b, norm in zip(gradients, found, norms, strict=True)
            if norm
        ]
        if max(off) > TOLERANCE:
            raise BadInput(f"{first} and {form} disagree by {max(off):.1e}, so there is nothing to compare")


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
    return run_command(
        lambda: main(tyro.cli(Options, args=arguments, prog="python -m train.benchmark", config=(tyro.conf.FlagCreatePairsOff,)))
    )


if __name__ == "__main__":
    sys.exit(command())
