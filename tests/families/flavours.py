"""Tiny targets of every family and flavour, made by transformers with random weights, in the folders that it writes."""

import functools
import pathlib
import re
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

VOCAB, WINDOW = 132, 3
SIZES = {"vocab_size": VOCAB, "hidden_size": 40, "intermediate_size": 60, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # some families' own are outside such a vocabulary
MULTIPLIERS = {"embedding_multiplier": 3.5, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 2.5}
GEMMA = {"head_dim": 14, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
FULL, SLIDING = "full_attention", "sliding_attention"
GEMMA3 = GEMMA | {"layer_types": [SLIDING, FULL, SLIDING], "rope_parameters": TWO_ROPES}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 3.0, 6.0, 12.0]}
LONGROPE = {"partial_rotary_factor": 0.8, "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4} | FACTORS}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20}

# name: (the model's class of transformers without its ending, what its config says besides SIZES)
FLAVOURS = {
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 with windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 14}),
    "qwen3 with windows, biases, tied": (
        "Qwen3",
        {"head_dim": 14, "attention_bias": True, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": WINDOW,
         "layer_types": [SLIDING, FULL, SLIDING]},
    ),
    "mistral with a window": ("Mistral", {"sliding_window": WINDOW}),
    "mistral nemo": (
        "Mistral",
        {"sliding_window": None, "head_dim": 14, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2 with biases": ("Olmo2", {"attention_bias": True}),
    "granite": ("Granite", MULTIPLIERS | {"attention_bias": True, "mlp_bias": True}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "smollm3 with windows": (
        "SmolLM3",
        {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layers": [1, 0, 0], "tie_word_embeddings": False,
         "attention_bias": True, "mlp_bias": True},
    ),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2 without caps, untied": (
        "Gemma2",
        GEMMA
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False, "attention_bias": True},
    ),
    "gemma3": ("Gemma3", GEMMA3),
    "gemma3 with a cap": ("Gemma3", GEMMA3 | {"final_logit_softcapping": 3.0}),
    "phi3": ("Phi3", {}),
    "phi3 with a window": ("Phi3", {"sliding_window": WINDOW}),
    "phi3 with longrope": ("Phi3", {"original_max_position_embeddings": 30, "tie_word_embeddings": True} | LONGROPE),
    "qwen3_moe": ("Qwen3Moe", EXPERTS | {"head_dim": 14, "norm_topk_prob": True}),
    "qwen3_moe in every other layer": (
        "Qwen3Moe",
        EXPERTS | {"decoder_sparse_step": 2, "attention_bias": True, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
    "qwen3_moe in the layers that are not named": ("Qwen3Moe", EXPERTS | {"mlp_only_layers": [1], "tie_word_embeddings": True}),
    "gemma3 in a multimodal model": ("Gemma3", GEMMA3),
    "mistral in a multimodal model": ("Mistral3", {"sliding_window": None, "head_dim": 14}),
}  # fmt: skip
MULTIMODAL = tuple(name for name in FLAVOURS if name.endswith("multimodal model"))


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="families")


@functools.cache
def make(name: str) -> tuple[transformers.PreTrainedModel, pathlib.Path]:
    """transformers' model and its folder. No norm and no bias is what it was initialised as, which would hide a mistake."""
    ending = "ForConditionalGeneration" if name in MULTIMODAL else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, FLAVOURS[name][0] + ending)(config_of(name)).eval()
    with torch.no_grad():
        for path, tensor in model.named_parameters():
            if "norm" in path or path.endswith("bias"):
                tensor.add_(0.3 * torch.randn_like(tensor))
    path = pathlib.Path(folder().name, name.replace(" ", "_"))
    model.save_pretrained(path)
    return model, path


def config_of(name: str) -> transformers.PreTrainedConfig:
    kind, fields = FLAVOURS[name]
    fields = SIZES | SPECIAL | fields
    if name not in MULTIMODAL:
        return getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")(**fields)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14, "model_type": {"Gemma3": "siglip_vision_model", "Mistral3": "pixtral"}[kind]}  # fmt: skip
    if kind == "Mistral3":
        vision["head_dim"] = 8
    text = fields | {"model_type": {"Gemma3": "gemma3_text", "Mistral3": "mistral"}[kind]}
    outer = getattr(transformers, f"{kind}Config")
    return outer(text_config=text, vision_config=vision, tie_word_embeddings=kind == "Gemma3")


def rename_tensors(source: pathlib.Path, to: pathlib.Path, rules: list[tuple[str, str]]) -> None:
    """A copy of a folder whose tensors have other names: a pattern and what takes its place, one after the other."""
    to.mkdir()
    (to / "config.json").write_text((source / "config.json").read_text())
    rename = lambda name: functools.reduce(lambda name, rule: re.sub(*rule, name), rules, name)  # noqa: E731
    save_file({rename(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}, to / "model.safetensors")
