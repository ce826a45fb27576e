"""The shapes of well-known targets, for figures and plans where no weights are at hand. Not here: any weight.

The sizes are those of the models' published config.json; tests compare the parameters that they add up to with the published
numbers.
"""

import math

from redrafter_jax.model.rope import Rope
from redrafter_jax.model.target import TargetConfig

_LLAMA1_AND_2 = dict(vocab_size=32000, head_dim=128)
_LLAMA3 = dict(
    vocab_size=128256,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope=Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192),
    max_position_embeddings=131072,
)
_LLAMA32 = _LLAMA3 | dict(tie_word_embeddings=True, rope=Rope(500000.0, "llama3", 32.0, 1.0, 4.0, 8192))
_QWEN3 = dict(
    vocab_size=151936, head_dim=128, rope=Rope(1000000.0), qk_norm="head", max_position_embeddings=40960, model_type="qwen3"
)
_SMOLLM = dict(vocab_size=49152, head_dim=64, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=2048)
_PHI4_MINI_ROPE = Rope(
    kind="longrope",
    factor=32.0,
    original_length=4096,
    attention_factor=math.sqrt(1 + math.log(32) / math.log(4096)),
    short_factors=(1.0,) * 48,  # 48 numbers like the published ones; their values cost nothing
    long_factors=(1.0,) * 48,
    share=0.75,
    rereads=True,
)


def _gemma3(vocab: int, context: int, layers: int, query_scalar: int = 256, **sizes: int) -> TargetConfig:
    """Every sixth layer sees everything, and where the context is longer than 32768 tokens its positions are divided by 8."""
    window = 512 if context == 32768 else 1024
    return TargetConfig(
        vocab_size=vocab, max_position_embeddings=context, num_hidden_layers=layers, tie_word_embeddings=True, qk_norm="head",
        norms="both", norm_adds_one=True, activation="gelu_tanh", embedding_scale=sizes["hidden_size"] ** 0.5,
        attention_scale=query_scalar**-0.5, windows=tuple(window if (layer + 1) % 6 else 0 for layer in range(layers)),
        window_rope=Rope(10000.0, original_length=context), model_type="gemma3_text",
        rope=Rope(1000000.0) if context == 32768 else Rope(1000000.0, "linear", 8.0, original_length=context), **sizes,
    )  # fmt: skip


SHAPES = {
    "demo": TargetConfig(
        vocab_size=2048, hidden_size=320, intermediate_size=896, num_hidden_layers=6, num_attention_heads=5,
        num_key_value_heads=1, head_dim=64, tie_word_embeddings=True,
    ),
    "llama-7b": TargetConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
        rms_norm_eps=1e-5, max_position_embeddings=4096, **_LLAMA1_AND_2,
    ),
    "llama-13b": TargetConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=40,
        rms_norm_eps=1e-5, max_position_embeddings=4096, **_LLAMA1_AND_2,
    ),
    "llama-33b": TargetConfig(
        hidden_size=6656, intermediate_size=17920, num_hidden_layers=60, num_attention_heads=52, num_key_value_heads=52,
        rms_norm_eps=1e-6, max_position_embeddings=2048, **_LLAMA1_AND_2,
    ),
    "llama-3.1-8b": TargetConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **_LLAMA3,
    ),
    "llama-3.1-70b": TargetConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, **_LLAMA3,
    ),
    "llama-3.2-1b": TargetConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, **_LLAMA32 | {"head_dim": 64},
    ),
    "llama-3.2-3b": TargetConfig(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, **_LLAMA32,
    ),
    "smollm-135m": TargetConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, **_SMOLLM,
    ),
    "smollm-360m": TargetConfig(
        hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5, **_SMOLLM,
    ),
    "qwen3-0.6b": TargetConfig(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        tie_word_embeddings=True, **_QWEN3,
    ),
    "qwen3-1.7b": TargetConfig(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        tie_word_embeddings=True, **_QWEN3,
    ),
    "qwen3-4b": TargetConfig(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        tie_word_embeddings=True, **_QWEN3,
    ),
    "qwen3-8b": TargetConfig(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, **_QWEN3,
    ),
    "qwen3-32b": TargetConfig(
        hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64, num_key_value_heads=8, **_QWEN3,
    ),
    "qwen3-30b-a3b": TargetConfig(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
        **_QWEN3 | {"model_type": "qwen3_moe"},
    ),
    "gemma-3-1b": _gemma3(
        262144, 32768, 26, hidden_size=1152, intermediate_size=6912, num_attention_heads=4, num_key_value_heads=1, head_dim=256,
    ),
    "gemma-3-4b": _gemma3(
        262208, 131072, 34, hidden_size=2560, intermediate_size=10240, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
    ),
    "gemma-3-27b": _gemma3(
        262208, 131072, 62, query_scalar=168, hidden_size=5376, intermediate_size=21504, num_attention_heads=32,
        num_key_value_heads=16, head_dim=128,
    ),
    "mistral-7b": TargetConfig(
        vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5, rope=Rope(1000000.0), max_position_embeddings=32768,
        model_type="mistral",
    ),
    "phi-4-mini": TargetConfig(
        vocab_size=200064, hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5, rope=_PHI4_MINI_ROPE, tie_word_embeddings=True,
        max_position_embeddings=131072, model_type="phi3",
    ),
}  # fmt: skip
"""By name; `llama-7b` is also Vicuna's and Llama 2's, `demo` is the embedded pair's, `mistral-7b` is v0.3. Of Gemma 3 they are the
text models."""
