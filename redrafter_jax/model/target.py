"""The target: a Llama-family decoder whose output we reproduce. It is frozen; only ``train.demo`` ever trains one.

One call serves prompts, trees and training text alike: N tokens with their positions and the mask of who sees whom,
on top of a cache or of nothing. It reads the cache and returns the new keys and values; the caller writes them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from redrafter_jax.model import attention, cache, layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """The shapes of a target, under the names of a Hugging Face Llama ``config.json`` where it has one; and the format of its
    matrices, where that is not the one that is computed in."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope: layers.Rope = layers.Rope()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 2048
    weight_format: str | None = None  # of the matrices of the layers, where it is one of `quantised.FORMATS`

    @property
    def draft_vocab(self) -> int:
        """Of a model that drafts for another, as in the configs of heads: 0, for it can draft every token."""
        return 0

    @property
    def has_fixed_tree(self) -> bool:
        """Likewise: False, for its search has any shape."""
        return False


def wrong_draft_model(target: TargetConfig, model: TargetConfig) -> str | None:
    """Why a model cannot draft for a target, in words; None where it can."""
    if model.vocab_size != target.vocab_size:
        return f"should share the target's vocabulary of {target.vocab_size} tokens, but has vocab_size {model.vocab_size}"
    ours, theirs = target.max_position_embeddings, model.max_position_embeddings
    return f"should read as many tokens as the target, {ours}, but its context is {theirs}" if theirs < ours else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pass:
    """The result of a target pass over N tokens.

    hidden: ``[B, N, D]`` after the last norm; rows: the keys and values of the N tokens, not yet in any cache; features:
    ``[B, N, F*D]``, the outputs of the F layers that were asked for, side by side and without any norm; None if none was.
    """

    hidden: jax.Array
    rows: cache.KVRows
    features: jax.Array | None = None


class Block(nnx.Module):
    """Attention and the gated feed-forward, each behind an RMSNorm and added to the stream."""

    def __init__(self, key, config: TargetConfig, dtype):
        D, F, C = config.hidden_size, config.intermediate_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        keys = jax.random.split(key, 7)
        self.config = config
        self.input_norm = layers.ones((D,), dtype)
        self.q = layers.Linear(keys[0], (D, H * C), layers.COLUMNS, dtype, config.attention_bias)
        self.k = layers.Linear(keys[1], (D, K * C), layers.COLUMNS, dtype, config.attention_bias)
        self.v = layers.Linear(keys[2], (D, K * C), layers.COLUMNS, dtype, config.attention_bias)
        self.o = layers.Linear(keys[3], (H * C, D), layers.ROWS, dtype, config.attention_bias)
        self.post_norm = layers.ones((D,), dtype)
        self.gate = layers.Linear(keys[4], (D, F), layers.COLUMNS, dtype, config.mlp_bias)
        self.up = layers.Linear(keys[5], (D, F), layers.COLUMNS, dtype, config.mlp_bias)
        self.down = layers.Linear(keys[6], (F, D), layers.ROWS, dtype, config.mlp_bias)

    def __call__(self, x_BND, table, visible_BNN, cached, seen_BNS=None, prefixes=()) -> tuple[jax.Array, jax.Array, jax.Array]:
        config = self.config
        B, N, _ = x_BND.shape
        C, eps = config.head_dim, config.rms_norm_eps
        normed = layers.rms_norm(x_BND, self.input_norm[...], eps)
        q_BNHC = layers.rotate(_heads(self.q(normed), C), table)
        k_BNKC = layers.rotate(_heads(self.k(normed), C), table)
        v_BNKC = _heads(self.v(normed), C)
        k_BKNC, v_BKNC = k_BNKC.transpose(0, 2, 1, 3), v_BNKC.transpose(0, 2, 1, 3)
        mixed = attention.attend(q_BNHC, k_BKNC, v_BKNC, visible_BNN, cached, seen_BNS, prefixes)
        x_BND = x_BND + self.o(jnp.reshape(mixed, (B, N, -1), out_sharding=P("data", None, "model")))
        normed = layers.rms_norm(x_BND, self.post_norm[...], eps)
        x_BND = x_BND + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed))
        return x_BND, k_BKNC, v_BKNC


def _heads(x_BNX: jax.Array, head_dim: int) -> jax.Array:
    B, N, width = x_BNX.shape
    shape = (B, N, width // head_dim, head_dim)
    return jnp.reshape(x_BNX, shape, out_sharding=P("data", None, "model", None))


class Target(nnx.Module):
    """``target(tokens, positions, visible, cache) -> Pass``; ``target.unembed(hidden) -> logits``.

    The output matrix is stored ``[D, V]``, also where it is tied to the embedding: XLA multiplies by ``[in, out]``
    weights up to twice as fast on CPU, and a tied matrix is small beside the rest.
    """

    def __init__(self, key, config: TargetConfig, dtype=jnp.float32):
        keys = jax.random.split(key, config.num_hidden_layers + 2)
        V, D = config.vocab_size, config.hidden_size
        self.config = config
        self.embedding = layers.param(keys[0], (V, D), layers.COLUMNS, dtype, scale=D**-0.5)
        blocks = (Block(k, config, dtype) for k in keys[2:])
        if config.weight_format is not None:
            blocks = (layers.quantise_matrices(block, config.weight_format) for block in blocks)
        self.blocks = nnx.List(list(blocks))
        self.norm = layers.ones((D,), dtype)
        self.lm_head = layers.param(keys[1], (D, V), layers.COLUMNS, dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """``[B, ...]`` ids -> ``[B, ..., D]``."""
        spec = P("data", *[None] * tokens.ndim)
        return layers.gather_weight(self.embedding, layers.COLUMNS).at[tokens].get(out_sharding=spec, mode="promise_in_bounds")

    def __call__(
        self,
        tokens_BN: jax.Array,
        positions_BN: jax.Array,
        visible_BNN: jax.Array,
        kv: cache.KVCache | None = None,
        lengths_BN: jax.Array | None = None,
        seen_BNS: jax.Array | None = None,
        prefixes: tuple[int, ...] = (),
        features: tuple[int, ...] = (),
    ) -> Pass:
        """One pass over N tokens per row.

        Args:
          visible_BNN: which of the N tokens each of them sees.
          kv: the cache, which is only read; None for an empty one.
          lengths_BN: for `dynamic` rotary scaling, the length of the text that each token arrives with. A token that is
            decoded arrives alone (position + 1, the default), the tokens of a prompt together.
          seen_BNS: which slots of the cache each token sees, if not all of the live ones.
          prefixes: see `attention.attend`.
          features: layers, counted from 0, whose outputs are returned as well.
        """
        config = self.config
        lengths_BN = positions_BN + 1 if lengths_BN is None else lengths_BN
        table = layers.rope_table(config.rope, config.head_dim, positions_BN, lengths_BN)
        x_BND = self.embed(tokens_BN)
        keys, values, outputs = [], [], []
        for layer, block in enumerate(self.blocks):
            with jax.named_scope("layers"):  # so that a profile tells them from the head's
                x_BND, k, v = block(x_BND, table, visible_BNN, attention.layer_of(kv, layer), seen_BNS, prefixes)
            keys.append(k)
            values.append(v)
            outputs.append(x_BND)
        hidden_BND = layers.rms_norm(x_BND, self.norm[...], config.rms_norm_eps)
        wanted = jnp.concatenate([outputs[layer] for layer in features], axis=-1) if features else None
        return Pass(hidden_BND, cache.KVRows(tuple(keys), tuple(values)), wanted)

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


def unembed(config: TargetConfig, hidden: jax.Array, columns: nnx.Param | jax.Array) -> jax.Array:
    """The one door to the vocabulary: hidden states ``[B, ..., E]`` by columns ``[E, U]`` to float32 logits ``[B, ..., U]``.

    The columns are `Target.columns` or a draft head's own LM head. What a family does to its logits (a soft cap, a scale)
    goes here, after the product, so that the target, its heads and the losses do the same.
    """
    del config  # no family does anything to its logits yet
    return layers.times(hidden, columns).astype(jnp.float32)
