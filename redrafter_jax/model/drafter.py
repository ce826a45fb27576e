"""The draft head: a recurrence over drafted tokens, then residual blocks, then an LM head (paper section 3.1).

    s_t = silu(W e(x_{t-1}) + U s_{t-1} + b)     x_0 = g, s_0 = 0, e the target's own embedding
    z   = [h ; s_t], through input_proj only where E != 2D
    z   = z + silu(A z + a)                      n times
    logits = z C                                 C is the head's own, or the target's (slim)

A head may have a draft vocabulary (FR-Spec, arXiv 2502.14856): C then has a column for each of U tokens alone, and a table
says which. What is drafted goes through the table at once, so everything outside this file knows the target's ids only.
Architecture and weight names are Apple's (`weights.py` reads and writes their format), so heads travel both ways.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import layers
from redrafter_jax.model.target import COLUMNS, Target


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """The shapes of a head. ``tied``: the LM head is the target's own, which needs ``exit_size == hidden_size``.
    ``draft_vocab``: U, tokens that the head can draft; 0 is the whole vocabulary, without a table."""

    vocab_size: int
    hidden_size: int
    exit_size: int
    num_blocks: int = 2
    rnn: bool = True
    tied: bool = False
    draft_vocab: int = 0

    def __post_init__(self):
        if not 0 <= self.draft_vocab <= self.vocab_size:
            raise ValueError(f"a draft vocabulary of {self.draft_vocab} is not a part of the target's {self.vocab_size} tokens")
        if self.tied and self.exit_size != self.hidden_size:
            raise ValueError(f"a tied head exits at the target's width {self.hidden_size}, not {self.exit_size}")

    @property
    def projects(self) -> bool:
        """Whether the head has an ``input_proj``."""
        return self.exit_size != 2 * self.hidden_size


def full(vocab_size: int, hidden_size: int, num_blocks: int = 2) -> DrafterConfig:
    """The paper's head: it exits at twice the target's width into an LM head of its own."""
    return DrafterConfig(vocab_size, hidden_size, 2 * hidden_size, num_blocks)


def slim(vocab_size: int, hidden_size: int, num_blocks: int = 2) -> DrafterConfig:
    """A head that exits at the target's width into the target's own LM head."""
    return DrafterConfig(vocab_size, hidden_size, hidden_size, num_blocks, tied=True)


class TokenIds(nnx.Variable):
    """The target's ids ``[U]`` of the tokens of a draft vocabulary, int32, ascending. Looked up, never trained."""


class Dense(nnx.Module):
    """x W + b, W ``[in, out]``; each shard of ``model`` makes some of the outputs."""

    def __init__(self, key, fan_in: int, fan_out: int, dtype, bias: bool = True, scale: float | None = None):
        self.weight = layers.param(key, (fan_in, fan_out), COLUMNS, dtype, scale)
        self.bias = layers.zeros((fan_out,), P("model"), dtype) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _times(x, layers.laid(self.weight, COLUMNS))
        return y if self.bias is None else y + self.bias[...]

    def of_context(self, h: jax.Array) -> jax.Array:
        """What of the layer's output for ``[h ; s]`` depends on h ``[..., D]`` alone, and the bias."""
        return _times(h, layers.laid(self.weight, COLUMNS)[: h.shape[-1]]) + self.bias[...]

    def of_state(self, s: jax.Array) -> jax.Array:
        """The rest, of s ``[..., D]``."""
        return _times(s, layers.laid(self.weight, COLUMNS)[-s.shape[-1] :])


class SplitDense(nnx.Module):
    """A `Dense` that reads ``[h ; s]``, with its rows for h and those for s as two weights: as a slice, XLA:CPU copies either
    in every round."""

    def __init__(self, dense: Dense):
        D = dense.weight.shape[0] // 2
        self.weight_h, self.weight_s = nnx.Param(dense.weight[:D]), nnx.Param(dense.weight[D:])
        self.bias = dense.bias

    def of_context(self, h: jax.Array) -> jax.Array:
        return _times(h, layers.laid(self.weight_h, COLUMNS)) + self.bias[...]

    def of_state(self, s: jax.Array) -> jax.Array:
        return _times(s, layers.laid(self.weight_s, COLUMNS))


def _times(x: jax.Array, weight: jax.Array) -> jax.Array:
    out = P("data", *[None] * (x.ndim - 2), "model")
    return layers.product(x, weight, out)


class Drafter(nnx.Module):
    """The head's steps, so that training and beam search can each arrange them: ``context`` once, then ``advance``, ``exit``
    and ``logits`` for every drafted token.

    The residual blocks start at zero (an untrained block is the identity). ``ids``: the draft vocabulary, where the config
    has one; ascending, so that among equal logits the smaller id comes first, as it does without a draft vocabulary.
    """

    def __init__(self, key, config: DrafterConfig, dtype=jnp.float32, ids: jax.Array | None = None):
        D, E, U = config.hidden_size, config.exit_size, config.draft_vocab or config.vocab_size
        keys = jax.random.split(key, 4)
        self.config = config
        self.rnn_w = Dense(keys[0], D, D, dtype, bias=False) if config.rnn else None
        self.rnn_u = Dense(keys[1], D, D, dtype) if config.rnn else None
        self.input_proj = Dense(keys[2], 2 * D, E, dtype) if config.projects else None
        self.blocks = nnx.List([Dense(keys[3], E, E, dtype, scale=0.0) for _ in range(config.num_blocks)])
        self.lm_head = None if config.tied else layers.param(keys[3], (E, U), P(None, "model"), dtype)
        ids = jnp.arange(U) if ids is None else ids
        self.ids = TokenIds(jax.sharding.reshard(jnp.asarray(ids, jnp.int32), P(None))) if config.draft_vocab else None

    def advance(self, state: jax.Array, embedding: jax.Array) -> jax.Array:
        """The recurrent state ``[..., D]`` after one more token; both arguments ``[..., D]``."""
        if self.rnn_w is None:
            return state + embedding
        return layers.gathered(jax.nn.silu(self.rnn_w(embedding) + self.rnn_u(state)))

    def context(self, h: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """What of `exit` depends on h ``[..., D]`` alone, computed once for all beams and steps: h, and h's share of the first
        layer that reads ``[h ; s]``."""
        first = self._first()
        return h, None if first is None else first.of_context(h)

    def exit(self, context: tuple[jax.Array, jax.Array | None], state: jax.Array) -> jax.Array:
        """``[..., E]``, what the LM head reads, from `context` and the state ``[..., D]``."""
        h, share = context
        first, rest = self._first(), self.blocks
        whole = None if first is None else share + first.of_state(state)
        if self.input_proj is not None:
            z = layers.gathered(whole)
        else:
            z = jnp.concatenate(jnp.broadcast_arrays(h, state), axis=-1)
            if first is not None:
                z, rest = z + layers.gathered(jax.nn.silu(whole)), self.blocks[1:]
        for block in rest:
            z = z + layers.gathered(jax.nn.silu(block(z)))
        return z

    def _first(self) -> Dense | SplitDense | None:
        """The first layer that reads ``[h ; s]``; None for a head that has none."""
        if self.input_proj is not None:
            return self.input_proj
        return self.blocks[0] if self.blocks else None

    def split(self) -> "Drafter":
        """The head with that layer as a `SplitDense`, as it decodes; the same numbers."""
        first = self._first()
        if not isinstance(first, Dense):
            return self
        copy = nnx.clone(self)
        if self.input_proj is not None:
            copy.input_proj = SplitDense(first)
        else:
            copy.blocks = nnx.List([SplitDense(first), *copy.blocks[1:]])
        return copy

    def logits(self, exit_: jax.Array, target: Target) -> jax.Array:
        """float32 ``[..., U]`` (V without a draft vocabulary), split over ``model`` in U; ``exit_`` is ``[..., E]``.

        A tied head with a draft vocabulary gathers its columns here, each time; `vocabulary.untied` does it once and for all.
        """
        if self.lm_head is None and self.ids is None:
            return target.logits(exit_)
        of_target = layers.laid(target.lm_head, COLUMNS)
        columns = self.drafted(of_target) if self.lm_head is None else layers.laid(self.lm_head, COLUMNS)
        out = P("data", *[None] * (exit_.ndim - 2), "model")
        return layers.product(exit_, columns, out).astype(jnp.float32)

    def drafted(self, values: jax.Array) -> jax.Array:
        """Of values for every token of the target ``[..., V]`` those of the tokens that can be drafted ``[..., U]``, split as
        they were."""
        if self.ids is None:
            return values
        spec = jax.typeof(values).sharding.spec
        return values.at[..., self.ids[...]].get(out_sharding=spec, mode="promise_in_bounds")

    def token_ids(self, index_BW: jax.Array) -> jax.Array:
        """The target's ids of the tokens with these columns of `logits`, both ``[B, W]`` int32."""
        if self.ids is None:
            return index_BW
        return self.ids[...].at[index_BW].get(out_sharding=P("data", None), mode="promise_in_bounds")
