"""The target: a decoder of one of the `families`, whose output we reproduce. It is frozen, unless it is trained beside its head.

One call serves prompts, trees and training text alike: N tokens with their positions and the mask of who sees whom,
on top of a cache or of nothing. It reads the cache and returns the new keys and values; the caller writes them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from redrafter_jax.errors import BadInput
from redrafter_jax.model import attention, cache, layers, rope
from redrafter_jax.model.experts import Experts
from redrafter_jax.model.target_config import TargetConfig

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pass:
    """The result of a target pass over N tokens.

    hidden: ``[B, N, D]`` after the last norm; rows: the keys and values of the N tokens, not yet in any cache; features:
    ``[B, N, F*D]``, the outputs of the F layers that the target shows, side by side and without any norm; None if there are none.
    """

    hidden: jax.Array
    rows: cache.KVRows
    features: jax.Array | None = None

    @property
    def shown(self) -> jax.Array:
        """``[B, N, D + F*D]``, what a draft head reads: the hidden states, and the features behind them."""
        return self.hidden if self.features is None else jnp.concatenate([self.hidden, self.features], axis=-1)


class Block(nnx.Module):
    """Attention and the gated feed-forward, or experts in its place, each added to the stream, with RMSNorms before them, after
    them or both."""

    def __init__(self, key, config: TargetConfig, dtype, has_experts: bool = False):
        D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        keys = jax.random.split(key, 7)
        self.config = config
        bias = config.attention_bias or config.qkv_bias
        before, after = config.norms in ("before", "both"), config.norms in ("after", "both")
        self.input_norm = _norm(config, D, dtype) if before else None
        self.q = layers.Linear(keys[0], (D, H * C), layers.COLUMNS, dtype, bias)
        self.k = layers.Linear(keys[1], (D, K * C), layers.COLUMNS, dtype, bias)
        self.v = layers.Linear(keys[2], (D, K * C), layers.COLUMNS, dtype, bias)
        self.q_norm, self.k_norm = [_norm(config, C, dtype) if config.qk_norm == "head" else None for _ in range(2)]
        self.q_width_norm, self.k_width_norm = [
            _norm(config, heads * C, dtype, P("model")) if config.qk_norm == "width" else None for heads in (H, K)
        ]
        self.o = layers.Linear(keys[3], (H * C, D), layers.ROWS, dtype, config.attention_bias)
        self.attention_norm = _norm(config, D, dtype) if after else None
        self.post_norm = _norm(config, D, dtype) if before else None
        self.experts = Experts(keys[4], config, dtype) if has_experts else None
        if not has_experts:
            self.gate = layers.Linear(keys[4], (D, F), layers.COLUMNS, dtype, config.mlp_bias)
            self.up = layers.Linear(keys[5], (D, F), layers.COLUMNS, dtype, config.mlp_bias)
            self.down = layers.Linear(keys[6], (F, D), layers.ROWS, dtype, config.mlp_bias)
        self.mlp_norm = _norm(config, D, dtype) if after else None

    def __call__(self, x_BND, table, visible_BNN, cached, seen_BNS=None, prefixes=()) -> tuple[jax.Array, jax.Array, jax.Array]:
        config = self.config
        B, N, _ = x_BND.shape
        C, act = config.head_dim, ACTIVATIONS[config.activation]
        normed = self._normed(x_BND, self.input_norm)
        q_BNHC = _heads(self._normed(self.q(normed), self.q_width_norm), C)
        k_BNKC = _heads(self._normed(self.k(normed), self.k_width_norm), C)
        v_BNKC = _heads(self.v(normed), C)
        q_BNHC, k_BNKC = self._normed(q_BNHC, self.q_norm), self._normed(k_BNKC, self.k_norm)
        if table is not None:
            q_BNHC, k_BNKC = rope.rotate(q_BNHC, table), rope.rotate(k_BNKC, table)
        k_BKNC, v_BKNC = k_BNKC.transpose(0, 2, 1, 3), v_BNKC.transpose(0, 2, 1, 3)
        scores = attention.Scores(config.attention_scale, config.attention_cap)
        mixed = attention.attend(q_BNHC, k_BKNC, v_BKNC, visible_BNN, cached, seen_BNS, prefixes, scores)
        added_BND = self.o(jnp.reshape(mixed, (B, N, -1), out_sharding=P("data", None, "model")))
        x_BND = x_BND + layers.scaled(self._normed(added_BND, self.attention_norm), config.residual_scale)
        normed = self._normed(x_BND, self.post_norm)
        added_BND = self.experts(normed, act) if self.experts else self.down(act(self.gate(normed)) * self.up(normed))
        x_BND = x_BND + layers.scaled(self._normed(added_BND, self.mlp_norm), config.residual_scale)
        return x_BND, k_BKNC, v_BKNC

    def _normed(self, x: jax.Array, weight: nnx.Param | None) -> jax.Array:
        return x if weight is None else layers.rms_norm(x, weight[...], self.config.rms_norm_eps, self.config.norm_adds_one)


def _norm(config: TargetConfig, width: int, dtype, spec: P = P(None)) -> nnx.Param:
    """The weight of an RMSNorm that does not change what it norms."""
    return (layers.zeros if config.norm_adds_one else layers.ones)((width,), dtype=dtype, spec=spec)


def _heads(x_BNX: jax.Array, head_dim: int) -> jax.Array:
    B, N, width = x_BNX.shape
    shape = (B, N, width // head_dim, head_dim)
    return jnp.reshape(x_BNX, shape, out_sharding=P("data", None, "model", None))


class Target(nnx.Module):
    """``target(tokens, positions, visible, cache) -> Pass``; ``target.unembed(hidden) -> logits``.

    ``features``: layers, counted from 0, whose outputs a pass returns as well (`showing`).

    The output matrix is stored ``[D, V]``, also where it is tied to the embedding: XLA multiplies by ``[in, out]``
    weights up to twice as fast on CPU, and a tied matrix is small beside the rest.
    """

    def __init__(self, key, config: TargetConfig, dtype=jnp.float32):
        keys = jax.random.split(key, config.num_hidden_layers + 2)
        V, D = config.vocab_size, config.hidden_size
        self.config, self.features = config, ()
        self.embedding = layers.param(keys[0], (V, D), layers.COLUMNS, dtype, scale=D**-0.5)
        blocks = (Block(k, config, dtype, config.has_experts(layer)) for layer, k in enumerate(keys[2:]))
        if config.weight_format is not None:
            blocks = (layers.quantise_matrices(block, config.weight_format) for block in blocks)
        self.blocks = nnx.List(list(blocks))
        self.norm = _norm(config, D, dtype)
        self.lm_head = layers.param(keys[1], (D, V), layers.COLUMNS, dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """``[B, ...]`` ids -> ``[B, ..., D]``."""
        spec = P("data", *[None] * tokens.ndim)
        x = layers.gather_weight(self.embedding, layers.COLUMNS).at[tokens].get(out_sharding=spec, mode="promise_in_bounds")
        scale = self.config.embedding_scale
        return x if scale == 1 else x * jnp.asarray(scale, x.dtype)

    def __call__(
        self,
        tokens_BN: jax.Array,
        positions_BN: jax.Array,
        visible_BNN: jax.Array,
        kv: cache.KVCache | None = None,
        lengths_BN: jax.Array | None = None,
        seen_BNS: jax.Array | None = None,
        prefixes: tuple[int, ...] = (),
        slot_positions_BS: jax.Array | None = None,
    ) -> Pass:
        """One pass over N tokens per row.

        Args:
          visible_BNN: which of the N tokens each of them sees.
          kv: the cache, which is only read; None for an empty one.
          lengths_BN: for rotary scaling that depends on it, the length of the text that each token arrives with. A token that
            is decoded arrives alone (position + 1), the tokens of a prompt together; by default as `rope.lengths_alone` says.
          seen_BNS: which slots of the cache each token sees, if not all of the live ones.
          prefixes: see `attention.attend`.
          slot_positions_BS: the position of the token in each slot of the cache, for the windows; by default that of the slot.
        """
        config = self.config
        lengths_BN = rope.lengths_alone(config.rope, positions_BN, kv is not None) if lengths_BN is None else lengths_BN
        kinds = dict.fromkeys(map(config.rope_of, range(len(self.blocks))))
        tables = {kind: kind and rope.rope_table(kind, config.head_dim, positions_BN, lengths_BN) for kind in kinds}
        views = {0: (visible_BNN, seen_BNS)}
        for window in filter(None, dict.fromkeys(config.windows)):
            views[window] = _within(window, positions_BN, visible_BNN, kv, seen_BNS, slot_positions_BS)
        x_BND = self.embed(tokens_BN)
        keys, values, outputs = [], [], []
        for layer, block in enumerate(self.blocks):
            table, (visible, seen) = tables[config.rope_of(layer)], views[config.window_of(layer)]
            with jax.named_scope("layers"):  # so that a profile tells them from the head's
                x_BND, k, v = _traced_once(block, x_BND, table, visible, attention.layer_of(kv, layer), seen, prefixes)
            keys.append(k)
            values.append(v)
            outputs.append(x_BND)
        hidden_BND = layers.rms_norm(x_BND, self.norm[...], config.rms_norm_eps, config.norm_adds_one)
        wanted = jnp.concatenate([outputs[layer] for layer in self.features], axis=-1) if self.features else None
        return Pass(hidden_BND, cache.KVRows(tuple(keys), tuple(values)), wanted)

    def showing(self, features: tuple[int, ...]) -> "Target":
        """The same weights, with passes that return the outputs of these layers as well.

        Raises:
          BadInput: it has no such layer.
        """
        if features == self.features:
            return self
        if not all(0 <= layer < self.config.num_hidden_layers for layer in features):
            has = f"of a target that has {self.config.num_hidden_layers}"
            raise BadInput(f"what drafts reads layers {list(features)}, counted from 0, {has}")
        same = jax.tree.map(lambda leaf: leaf, self)  # a new module, the same arrays
        same.features = features
        return same

    def hidden_of(self, shown: jax.Array) -> jax.Array:
        """The hidden states ``[..., D]`` in what a draft head reads of them (`Pass.shown`)."""
        return shown[..., : self.config.hidden_size]

    def columns(self, ids: nnx.Variable | jax.Array | None = None) -> jax.Array:
        """The output matrix, ready to multiply: ``[D, V]``, or ``[D, U]`` of the tokens with these ids ``[U]``."""
        matrix_DV = layers.gather_weight(self.lm_head, layers.COLUMNS)
        if ids is None:
            return matrix_DV
        return matrix_DV.at[:, ids[...]].get(out_sharding=layers.COLUMNS, mode="promise_in_bounds")

    def unembed(self, hidden: jax.Array, ids: nnx.Variable | jax.Array | None = None) -> jax.Array:
        """float32 logits ``[B, ..., V]`` of hidden states ``[B, ..., D]``, split over ``model``; with ids ``[U]`` those of the
        tokens that they name, ``[B, ..., U]``."""
        return unembed(self.config, hidden, self.columns(ids))


@functools.partial(jax.jit, static_argnums=6)
def _traced_once(block: Block, *arguments) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a block returns. Of equal blocks JAX traces one; XLA inlines all of them."""
    return block(*arguments)


def _within(
    window: int, positions_BN: jax.Array, visible_BNN: jax.Array, kv: cache.KVCache | None, seen_BNS, slot_positions_BS
) -> tuple[jax.Array, jax.Array | None]:
    """What each token sees of the N tokens and of the cache's slots, if only those of its last ``window`` positions."""
    outside_BN1 = (positions_BN - window)[..., None]
    visible_BNN = visible_BNN & (positions_BN[:, None] > outside_BN1)
    if kv is None:
        return visible_BNN, seen_BNS
    slots_BS = jnp.arange(kv.slots)[None] if slot_positions_BS is None else slot_positions_BS
    inside_BNS = slots_BS[:, None] > outside_BN1
    return visible_BNN, inside_BNS if seen_BNS is None else seen_BNS & inside_BNS


def unembed(config: TargetConfig, hidden: jax.Array, columns: nnx.Param | jax.Array, added: jax.Array | None = None) -> jax.Array:
    """The one door to the vocabulary: hidden states ``[B, ..., E]`` by columns ``[E, U]`` to float32 logits ``[B, ..., U]``, to
    which a head may add its own.

    The columns are `Target.columns` or a draft head's own LM head. What a family does to its logits (a soft cap, a scale)
    goes here, after the product, so that the target, its heads and the losses do the same.
    """
    logits = layers.times(hidden, columns).astype(jnp.float32)
    return finish(config, logits if added is None else logits + added.astype(jnp.float32))


def finish(config: TargetConfig, logits: jax.Array) -> jax.Array:
    """What a family does to its logits after the product, a scale and a soft cap."""
    logits = logits if config.logits_divisor == 1 else logits / config.logits_divisor
    return logits if config.logits_cap is None else layers.capped(logits, config.logits_cap)
