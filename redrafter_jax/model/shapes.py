"""The shapes of well-known targets, for figures and plans where no weights are at hand. Not here: any weight."""

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
_SMOLLM = dict(vocab_size=49152, head_dim=64, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=2048)

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
    "smollm-135m": TargetConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, **_SMOLLM,
    ),
    "smollm-360m": TargetConfig(
        hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5, **_SMOLLM,
    ),
    "qwen3-0.6b": TargetConfig(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, rope=Rope(1000000.0), tie_word_embeddings=True, max_position_embeddings=40960,
    ),
}  # fmt: skip
"""By name; `llama-7b` is also Vicuna's and Llama 2's, `demo` is the embedded pair's, `qwen3-0.6b` a Llama of that model's sizes."""
