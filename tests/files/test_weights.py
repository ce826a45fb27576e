"""What cannot be loaded is refused in one sentence that names it."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, weight_files, weights
from tests.support import MODELS


@pytest.fixture
def folder(tmp_path):
    """A copy of a golden target that a test can break."""
    return shutil.copytree(MODELS / "target_mha", tmp_path / "target")


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder, words: str):
    with pytest.raises(BadInput, match=words) as error:
        weights.load_target(folder)
    assert "\n" not in str(error.value)


def test_a_missing_or_empty_folder(tmp_path):
    refused(tmp_path / "none", "no folder")
    refused(tmp_path, "no config.json")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"sliding_window": 512}, "sliding_window = 512"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "rope type 'proportional'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor in config.json should be a number above 0"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": -1}, "num_key_value_heads in config.json should be a whole number from 1 to 4"),
        ({"head_dim": 15}, "head_dim should be even"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps in config.json should be a number"),
        ({"rope_theta": None}, "rope_theta in config.json should be a number"),
        ({"rope_scaling": "linear"}, "should be an object"),
        ({"max_position_embeddings": None}, "max_position_embeddings in config.json"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings in config.json should be true or false"),
        ({"layer_types": 5}, "layer_types = 5"),
        ({"vocab_size": "many"}, "vocab_size in config.json"),
        ({"hidden_size": 128}, "shape"),
        ({"num_hidden_layers": 4}, "lacks the tensor model.layers.3"),
        ({"num_hidden_layers": 2}, "has the tensor model.layers.2"),
        ({"attention_bias": True}, "lacks the tensor .*bias"),
    ],
)
def test_a_config_that_cannot_be_honoured_or_does_not_fit_the_tensors(folder, fields, words):
    change(folder, **fields)
    refused(folder, words)


def test_a_broken_config_or_weight_file(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(folder, "not a whole safetensors file")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    refused(folder, r"convert them with transformers, AutoModelForCausalLM.from_pretrained\(.*\).save_pretrained")
    (folder / "config.json").write_text("{")
    refused(folder, "cannot be read as JSON")


def test_pickled_weights_on_the_hub_are_converted_by_the_models_name(tmp_path):
    assert weight_files.conversion(tmp_path) == ""
    of_hub = tmp_path / "models--owner--a-model" / "snapshots" / "1234"
    assert "from_pretrained('owner/a-model')" in weight_files.conversion(of_hub)


def test_pickled_weights_of_a_head_are_not_converted_by_what_does_not_know_heads(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "recurrent_drafting_drafter"}))
    with pytest.raises(BadInput, match="safetensors.torch.save_file"):
        weight_files.files_of_tensors(tmp_path, "--drafter")


def test_a_checkpoint_in_several_files_with_a_file_or_a_tensor_missing_or_cut(folder):
    tensors = load_file(folder / "model.safetensors")
    halves = {f"model-{half}.safetensors": dict(list(tensors.items())[half::2]) for half in range(2)}
    for name, half in halves.items():
        save_file(half, folder / name)
    index = {tensor: name for name, half in halves.items() for tensor in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    expected = jax.tree.leaves(weights.load_target(MODELS / "target_mha"))
    for ours, theirs in zip(jax.tree.leaves(weights.load_target(folder)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    last = max(halves["model-1.safetensors"])
    save_file(
        {name: value for name, value in halves["model-1.safetensors"].items() if name != last}, folder / "model-1.safetensors"
    )
    refused(folder, f"lacks the tensor {re.escape(last)} \\(1 missing")
    save_file(halves["model-1.safetensors"] | {last: np.zeros((3, 5), np.float32)}, folder / "model-1.safetensors")
    refused(folder, rf"{re.escape(last)} in .* has shape \[3, 5\]; its config.json asks for \[")
    data = (folder / "model-1.safetensors").read_bytes()
    (folder / "model-1.safetensors").write_bytes(data[:-4])
    refused(folder, "model-1.safetensors is not a whole safetensors file")
    (folder / "model-1.safetensors").unlink()
    refused(folder, "has no model-1.safetensors")


@pytest.mark.parametrize("index", [{"weight_map": {}}, {"weight_map": {"a": 5}}, {"weight_map": {"a": ["x"]}}, {}])
def test_a_broken_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "is not a safetensors index")


def test_a_tensor_of_whole_numbers(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype("int8")
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "lm_head.weight .* is I8")


def test_heads_and_targets_are_not_mistaken_for_each_other():
    with pytest.raises(BadInput, match="this is a draft head"):
        weights.load_target(MODELS / "drafter_mha_rnn")
    with pytest.raises(BadInput, match="is not a draft head"):
        weights.load_drafter(MODELS / "target_mha")


@pytest.mark.parametrize("name, words", [("gqa_proj", "hidden_size 96"), ("tied_nornn", "hidden_size 80")])
def test_a_head_for_another_target(name, words):
    target = config.target_config(config.read_json(MODELS / "target_mha", "target"))
    head = config.drafter_config(config.read_json(MODELS / f"drafter_{name}", "drafter"))
    with pytest.raises(BadInput, match=re.escape(words)):
        config.check_pair(target, head)
