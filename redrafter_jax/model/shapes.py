"""The shapes of well-known targets, for figures and plans where no weights are at hand. Not here: any weight."""

from redrafter_jax.model.layers import Rope
from redrafter_jax.model.target import TargetConfig

_LLAMA3 = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)

SHAPES = {
    "demo": TargetConfig(2048, 320, 896, 6, 5, 1, 64, tie_word_embeddings=True),
    "llama-7b": TargetConfig(32000, 4096, 11008, 32, 32, 32, 128, 1e-5, max_position_embeddings=4096),
    "llama-13b": TargetConfig(32000, 5120, 13824, 40, 40, 40, 128, 1e-5, max_position_embeddings=4096),
    "llama-33b": TargetConfig(32000, 6656, 17920, 60, 52, 52, 128, 1e-6, max_position_embeddings=2048),
    "llama-3.1-8b": TargetConfig(128256, 4096, 14336, 32, 32, 8, 128, 1e-5, _LLAMA3, max_position_embeddings=131072),
    "llama-3.1-70b": TargetConfig(128256, 8192, 28672, 80, 64, 8, 128, 1e-5, _LLAMA3, max_position_embeddings=131072),
}
"""By name; `llama-7b` is also Vicuna's and Llama 2's, `demo` is the embedded pair's."""
