"""The shapes of a target, and what its family does otherwise than Llama. Not here: what it computes (`target.py`)."""

import dataclasses

from redrafter_jax.model.rope import Rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """The shapes of a target, under the names of a Hugging Face Llama ``config.json`` where it has one. The defaults of what
    follows them are what Llama does.

    model_type: the family that the config is of and is written as; nothing is computed by it.
    qkv_bias: queries, keys and values have a bias, and the output has none (``attention_bias``: all four have).
    qk_norm: an RMSNorm of queries and keys before they turn: none, of each ``head``, or of all heads together (``width``).
    norms: where a layer's RMSNorms are: ``before`` attention and feed-forward, ``after`` them, or ``both``.
    norm_adds_one: every RMSNorm multiplies by 1 + its weight, in float32.
    activation: of the feed-forward's gate, ``silu`` or ``gelu_tanh``.
    embedding_scale: the embedding is multiplied by it, as the number format of the weights has it.
    residual_scale: what attention and feed-forward add is multiplied by it.
    attention_scale: a query times a key is multiplied by it; None: 1 / sqrt(head_dim).
    logits_divisor: logits are divided by it.
    attention_cap, logits_cap: soft limits on attention's scores and on the logits, cap * tanh(x / cap); None: none.
    windows: for each layer how many tokens a token sees, itself included; 0: all before it. (): all layers see all.
    window_rope: the rotary positions of the layers with a window; None: ``rope``, as of the others.
    unrotated: the layers, counted from 0, whose queries and keys do not turn.
    num_experts, num_experts_per_tok, moe_intermediate_size: experts of a layer, 0 for a feed-forward of ``intermediate_size`` in
    their place; how many of them a token has; and the width of each. norm_topk_prob: a token's weights of them are divided by
    their sum. decoder_sparse_step, mlp_only_layers: only every so many layers have experts, and these have none.
    weight_format: of `quantised.FORMATS`, that of the layers' matrices; None: the one that is computed in.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 2048
    model_type: str = "llama"
    qkv_bias: bool = False
    qk_norm: str = "none"
    norms: str = "before"
    norm_adds_one: bool = False
    activation: str = "silu"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    logits_divisor: float = 1.0
    attention_cap: float | None = None
    logits_cap: float | None = None
    windows: tuple[int, ...] = ()
    window_rope: Rope | None = None
    unrotated: tuple[int, ...] = ()
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    weight_format: str | None = None

    @property
    def draft_vocab(self) -> int:
        """Of a model that drafts for another, as in the configs of heads: 0, for it can draft every token."""
        return 0

    @property
    def candidates(self) -> int:
        """Likewise: 0, for it looks every token up."""
        return 0

    @property
    def has_fixed_tree(self) -> bool:
        """Likewise: False, for its search has any shape."""
        return False

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts in place of its feed-forward."""
        return self.num_experts > 0 and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    def window_of(self, layer: int) -> int:
        """How many tokens a token of this layer sees; 0: all."""
        return self.windows[layer] if self.windows else 0

    def rope_of(self, layer: int) -> Rope | None:
        """The rotary positions of a layer; None: it has none."""
        if layer in self.unrotated:
            return None
        return self.window_rope if self.window_rope and self.window_of(layer) else self.rope


def wrong_draft_model(target: TargetConfig, model: TargetConfig) -> str | None:
    """Why a model cannot draft for a target, in words; None where it can."""
    if model.vocab_size != target.vocab_size:
        return f"should share the target's vocabulary of {target.vocab_size} tokens, but has vocab_size {model.vocab_size}"
    ours, theirs = target.max_position_embeddings, model.max_position_embeddings
    return f"should read as many tokens as the target, {ours}, but its context is {theirs}" if theirs < ours else None
