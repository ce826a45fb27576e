"""The forms of the training loss that `train.benchmark` compares: ours, its definition in JAX, and the same in PyTorch."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from redrafter_jax import loss
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import tensors
from redrafter_jax.model import drafter as heads
from redrafter_jax.model.drafter import Drafter
from redrafter_jax.model.target import Target, TargetConfig
from train.data import rows as data

TOLERANCE = 2e-3  # of the loss and of each gradient's norm, relative

Run = Callable[[], tuple[float, list[np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class LossInputs:
    """One batch on one head: what every form is given."""

    target: Target
    drafter: Drafter
    tokens: np.ndarray
    hidden: np.ndarray
    config: loss.LossConfig


def make(D: int, V: int, head: str, rows: int, row_length: int, config: loss.LossConfig) -> LossInputs:
    """Random weights, tokens and hidden states: ``rows`` texts of ``row_length`` tokens, a target of width D and vocabulary V."""
    rng = np.random.default_rng(0)
    target = TargetConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=D,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=D,
    )
    shapes = (heads.full if head == "full" else heads.slim)(V, D)
    drafter = Drafter(jax.random.key(1), shapes)
    tokens = rng.integers(0, V, (rows, row_length)).astype(np.int32)
    hidden = rng.standard_normal((rows, row_length, D)).astype(np.float32)
    return LossInputs(Target(jax.random.key(0), target), drafter, tokens, hidden, config)


def straightforward(drafter: Drafter, target: Target, tokens_BT, labels_BT, hidden_BTD, config: loss.LossConfig) -> jax.Array:
    """`loss.draft_loss` as its definition reads: all logits at once, differentiated by JAX."""
    T, state_BTD, total = tokens_BT.shape[1], jnp.zeros_like(hidden_BTD), 0.0
    context, exits = drafter.context(hidden_BTD), []
    for i in range(config.positions):
        state_BTD = drafter.advance(state_BTD, jax.lax.stop_gradient(target.embed(jnp.roll(tokens_BT, -1 - i, axis=1))))
        exits.append(drafter.exit(context, state_BTD, jnp.roll(tokens_BT, -1 - i, axis=1)))
    logits_BKTV = jax.sharding.reshard(drafter.unembed(jnp.stack(exits, axis=1), target), P("data"))
    p_BTV = jax.sharding.reshard(jax.nn.softmax(target.unembed(hidden_BTD), axis=-1), P("data"))
    for i in range(config.positions):
        mixed_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BKTV[:, i], jnp.roll(labels_BT, -2 - i, axis=1))
        if config.distill_weight > 0:
            soft_BT = optax.softmax_cross_entropy(logits_BKTV[:, i], jnp.roll(p_BTV, -1 - i, axis=1))
            mixed_BT = (1 - config.distill_weight) * mixed_BT + config.distill_weight * soft_BT
        total += jnp.mean(mixed_BT[:, : T - 2 - i])
    return total


def compiled(case: LossInputs, form: str) -> tuple[Run, int, float]:
    """A form of ours as a function of nothing, its temporary bytes, and the seconds it took to compile."""
    own = lambda *inputs, config: loss.draft_loss(*inputs, config=config)[0]  # noqa: E731
    aim = functools.partial(own if form == "ours" else straightforward, config=case.config)
    batch = data.put_unpacked(case.tokens)
    hidden = jax.device_put(case.hidden, P("data", None, None))
    inputs = (case.drafter, case.target, batch.tokens, batch.labels, hidden)
    began = time.perf_counter()
    program = jax.jit(jax.value_and_grad(aim)).lower(*inputs).compile()
    seconds = time.perf_counter() - began

    def run() -> tuple[float, list[np.ndarray]]:
        value, gradients = jax.block_until_ready(program(*inputs))
        return float(value), jax.tree.leaves(gradients)

    return run, program.memory_analysis().temp_size_in_bytes, seconds


def torch_form(case: LossInputs) -> Run:
    """The same in plain PyTorch, with as many threads as this process may use.

    Raises:
      BadInput: there is no torch.
    """
    try:
        import torch
    except ImportError:
        raise BadInput("--forms torch needs torch; install requirements-dev.txt, or leave it out of --forms") from None
    torch.set_num_threads(processes.count_cores())
    tensor = lambda array: torch.from_numpy(np.array(array))  # noqa: E731
    parameters = {path: tensor(leaf).requires_grad_() for path, leaf in tensors.leaves(case.drafter)}
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
