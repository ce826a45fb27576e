"""The shapes of well-known targets, for figures and plans where no weights are at hand. Not here: any weight."""

from redrafter_jax.model.layers import Rope
from redrafter_jax.model.target import TargetConfig

_LLAMA3 = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
_SMOLLM = dict(vocab_size=49152, head_dim=64, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=2048)

SHAPES = {
    "demo": TargetConfig(2048, 320, 896, 6, 5, 1, 64, tie_word_embeddings=True),
    "llama-7b": TargetConfig(32000, 4096, 11008, 32, 32, 32, 128, 1e-5, max_position_embeddings=4096),
    "llama-13b": TargetConfig(32000, 5120, 13824, 40, 40, 40, 128, 1e-5, max_position_embeddings=4096),
    "llama-33b": TargetConfig(32000, 6656, 17920, 60, 52, 52, 128, 1e-6, max_position_embeddings=2048),
    "llama-3.1-8b": TargetConfig(128256, 4096, 14336, 32, 32, 8, 128, 1e-5, _LLAMA3, max_position_embeddings=131072),
    "llama-3.1-70b": TargetConfig(128256, 8192, 28672, 80, 64, 8, 128, 1e-5, _LLAMA3, max_position_embeddings=131072),
    "smollm-135m": TargetConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, **_SMOLLM
    ),
    "smollm-360m": TargetConfig(
        hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5, **_SMOLLM
    ),
    "qwen3-0.6b": TargetConfig(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, rope=Rope(1000000.0), tie_word_embeddings=True, max_position_embeddings=40960,
    ),
}  # fmt: skip
"""By name; `llama-7b` is also Vicuna's and Llama 2's, `demo` is the embedded pair's, `qwen3-0.6b` a Llama of that model's sizes."""
