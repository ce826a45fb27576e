"""Random targets of every supported config flavour against transformers' own Llama on torch, float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.files import config, weights
from redrafter_jax.model import attention
from tests.support import put

FLAVOURS = {
    "mha": {"num_key_value_heads": 4},
    "gqa_head_dim_given": {"head_dim": 24},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, "max_position_embeddings": 32},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_theta": 500000.0,
        }
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn", "factor": 8.0, "beta_fast": 8.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0,
        }
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=FLAVOURS)
def model(request, tmp_path_factory):
    """transformers' model with random weights and biases, and the folder it was saved to."""
    torch.manual_seed(0)
    base = {"vocab_size": 131, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15}  # fmt: skip
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**base | FLAVOURS[request.param])).eval()
    for name, tensor in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.2)
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder, max_shard_size="100KB" if request.param == "mha" else "5GB")
    return made, folder


def test_logits_are_equal(model):
    theirs, folder = model
    ids = np.random.default_rng(0).integers(0, 131, (2, 60))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    target = weights.load_target(folder)
    positions, lengths = (put(np.broadcast_to(x, ids.shape), np.int32) for x in (np.arange(60), np.int64(60)))
    hidden = target(put(ids, np.int32), positions, attention.causal(positions >= 0), None, lengths).hidden
    np.testing.assert_allclose(target.unembed(hidden), expected, atol=2e-4)


def test_what_we_write_is_read_the_same_by_transformers_and_by_us(model, tmp_path):
    theirs, folder = model
    target = weights.load_target(folder)
    weights.save_target(target, tmp_path)
    assert config.target_config(config.read_json(tmp_path, "")) == target.config
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(120).reshape(2, 60)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)


def test_greedy_text_is_equal(model):
    folder = model[1]
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()  # 5.0.0 keeps what a longer text has made of `dynamic`
    prompt = [5, 99, 23, 7, 1, 64]
    settings = {"max_new_tokens": 48, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
    reply = next(Engine(weights.load_target(folder)).generate([prompt], limits=Limits(48, length=64)))
    assert reply.token_ids == expected


def test_a_sharded_checkpoint_with_an_index_is_what_was_loaded(model):
    _, folder = model
    index = folder / "model.safetensors.index.json"
    if index.exists():
        assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1
    target = weights.load_target(folder)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(target))
