"""Quantised checkpoints are read as they are or refused in one sentence, and float ones are quantised alike on every mesh."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, quantisation, tensors, weights
from redrafter_jax.model import attention
from redrafter_jax.model.quantised import widen
from redrafter_jax.model.target import Target, TargetConfig
from tests import compressed
from tests.support import MODELS, put

CONFIG = TargetConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=136,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
)  # 17 inputs of `down` on each of eight shards, so that those packed by four are cut within a pack
KINDS = [("int8", False), ("int8", True), ("fp8", False)]
DOWN, GATE = "model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.gate_proj.weight"
INT8, FORM = compressed.arguments(), "int-quantized"
DYNAMIC = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}


@pytest.fixture(scope="module", params=KINDS, ids=["int8", "packed int8", "fp8"])
def checkpoint(request, tmp_path_factory):
    """The folders of a quantised target and of the float one that it stands for; the format."""
    kind, packed = request.param
    folders = compressed.compress(MODELS / "target_gqa", tmp_path_factory.mktemp("checkpoint"), kind, packed)
    return (*folders, kind)


@pytest.fixture
def folder(tmp_path):
    """A quantised target that a test can break."""
    return compressed.compress(MODELS / "target_mha", tmp_path)[0]


def refused(folder, *words: str, **options) -> str:
    with pytest.raises(BadInput) as error:
        weights.load_target(folder, what="--target", **options)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value) and str(error.value).startswith("--target: ")
    return str(error.value)


def test_a_quantised_checkpoint_is_read_as_it_is_and_computes_as_transformers_does_with_its_weights(checkpoint):
    folder, floats, kind = checkpoint
    target = weights.load_target(folder)
    assert target.config.weight_format == kind
    expected = weights.load_target(floats)
    for block, wide in zip(target.blocks, expected.blocks, strict=True):
        for part in ("q", "k", "v", "o", "gate", "up", "down"):
            np.testing.assert_array_equal(widen(getattr(block, part).weight), getattr(wide, part).weight[...])
    model = transformers.LlamaForCausalLM.from_pretrained(floats).eval()
    ids = np.random.default_rng(0).integers(0, 100, (2, 12))
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    positions = put(np.broadcast_to(np.arange(12), ids.shape), np.int32)
    hidden = target(put(ids, np.int32), positions, attention.causal(positions >= 0)).hidden
    np.testing.assert_allclose(target.unembed(hidden), theirs, atol=2e-4)


def test_what_compressed_tensors_makes_of_a_matrix_is_what_is_read(checkpoint):
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors.torch import load_file

    folder, floats, _ = checkpoint
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme.model_validate(said["config_groups"]["group_0"])
    stored = load_file(folder / "model.safetensors")
    prefix = DOWN.removesuffix("weight")
    parts = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    compressor = compressors.BaseCompressor.get_value_from_registry(said["format"])
    theirs = compressor.decompress(parts, scheme)["weight"].float().numpy()
    expected = load_file(floats / "model.safetensors")[DOWN].numpy()
    np.testing.assert_allclose(theirs, expected, rtol=1e-2)  # it multiplies in the scale's number format, bfloat16


@pytest.fixture(scope="module")
def splittable(tmp_path_factory):
    """A float target that eight shards can split, with two key-value heads, so that more than two repeat them."""
    jax.set_mesh(make_mesh())
    folder = tmp_path_factory.mktemp("splittable")
    weights.save_target(Target(jax.random.key(0), CONFIG), folder)
    return folder


@pytest.mark.parametrize(("kind", "packed"), KINDS)
def test_a_quantised_checkpoint_arrives_in_parts_as_it_was(splittable, tmp_path, kind, packed):
    folder, _ = compressed.compress(splittable, tmp_path, kind, packed)
    expected = {path: np.asarray(leaf) for path, leaf in tensors.leaves(weights.load_target(folder))}
    for mesh_shape in ((2, 4), (1, 8)):
        jax.set_mesh(make_mesh(*mesh_shape))
        for path, leaf in tensors.leaves(weights.load_target(folder)):
            np.testing.assert_array_equal(np.asarray(leaf), repeated(path, expected[path], mesh_shape[1] // 2))


def repeated(path: str, leaf: np.ndarray, copies: int) -> np.ndarray:
    """The leaf of a target whose key-value heads are repeated."""
    if ".k." not in path and ".v." not in path:
        return leaf
    K, C = CONFIG.num_key_value_heads, CONFIG.head_dim
    return np.repeat(leaf.reshape(*leaf.shape[:-1], K, C), max(1, copies), axis=-2).reshape(*leaf.shape[:-1], -1)


@pytest.mark.parametrize(("mesh_shape", "spread"), [((2, 4), False), ((4, 2), True)], ids=str)
def test_a_float_checkpoint_is_quantised_alike_on_every_mesh_and_split_as_the_float_matrices(splittable, mesh_shape, spread):
    expected = {path: np.asarray(leaf) for path, leaf in tensors.leaves(weights.load_target(splittable, weights="int8"))}
    jax.set_mesh(make_mesh(*mesh_shape))
    alike = dict(tensors.leaves(weights.load_target(splittable, spread=spread)))
    for path, leaf in tensors.leaves(weights.load_target(splittable, "bfloat16", spread=spread, weights="int8")):
        matrix, _, part = path.rpartition(".")
        if part not in ("values", "scale"):
            assert leaf.dtype == "bfloat16"
            continue
        # of the numbers in the file, whatever is computed in
        np.testing.assert_array_equal(np.asarray(leaf), repeated(path, expected[path], mesh_shape[1] // 2))
        split = alike[matrix].sharding.spec
        assert leaf.sharding.spec == (split if part == "values" else jax.P("model" if split[1] == "model" else None))


def test_matrices_are_quantised_one_by_one_while_the_next_are_read(monkeypatch):
    live = []
    original = weights.quantise

    def quantise(weight, name):
        live.append(sum(each.ndim == 2 and each.dtype == "float32" and each.shape in SHAPES for each in jax.live_arrays()))
        return original(weight, name)

    target = weights.load_target(MODELS / "target_tied")
    SHAPES = {leaf.shape for path, leaf in tensors.leaves(target) if path.endswith(".weight")}
    del target
    before = sum(each.ndim == 2 and each.shape in SHAPES for each in jax.live_arrays())
    monkeypatch.setattr(weights, "quantise", quantise)
    monkeypatch.setattr(tensors.reading, "in_turn", lambda tasks, sizes: (task() for task in tasks))  # nothing is read ahead
    weights.load_target(MODELS / "target_tied", weights="int8")
    assert len(live) > 10 and max(live) <= before + 2  # the one before it is dropped when the next is there


def said(**changes) -> dict:
    return compressed.config(compressed.arguments(**changes), "int-quantized")


REFUSED = {
    "activations": (compressed.config(compressed.arguments(), "int-quantized", DYNAMIC), ["activations", "weights int8"]),
    "four bits": (said(num_bits=4, strategy="group", group_size=128), ["4 bits in groups of 128", "'group'", "weights int8"]),
    "per tensor": (said(strategy="tensor"), ["strategy 'tensor'", "strategy channel"]),
    "two bits": (said(num_bits=2), ["2 bits", "type 'int'"]),
    "asymmetric": (said(symmetric=False), ["symmetric"]),
    "packed fp8": (compressed.config(compressed.arguments("fp8"), "pack-quantized"), ["fp8", "pack-quantized"]),
    "another form": (compressed.config(compressed.arguments(), "marlin-24"), ["format 'marlin-24'"]),
    "no groups": (compressed.config(INT8, FORM, config_groups={}), ["config_groups"]),
    "groups of text": (compressed.config(INT8, FORM, config_groups={"a": "W8A16"}), ["config_groups"]),
    "a quantised cache": (
        compressed.config(INT8, FORM, kv_cache_scheme={"a": 1}),
        ["kv_cache_scheme"],
    ),
    "sparse": (compressed.config(INT8, FORM, sparsity_config={"format": "24"}), ["sparsity_config"]),
    "fp8 in blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ["'fp8'", "float checkpoint", "weights int8"]),
    "awq": ({"quant_method": "awq", "bits": 4}, ["'awq'", "float checkpoint", "weights int8"]),
    "gptq": ({"quant_method": "gptq", "bits": 4}, ["'gptq'", "float checkpoint", "weights int8"]),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ["'bitsandbytes'", "float checkpoint"]),
    "no method": ({"bits": 8}, ["None", "float checkpoint"]),
    "no object": ("int8", ["quantization_config", "object"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_computed_otherwise_is_refused_by_its_name(folder, name):
    said, words = REFUSED[name]
    fields = json.loads((folder / "config.json").read_text()) | {"quantization_config": said}
    (folder / "config.json").write_text(json.dumps(fields))
    refused(folder, *words)


def test_the_weights_alone_are_taken_of_a_checkpoint_with_quantised_activations_where_they_are_asked_for(tmp_path):
    folder, _ = compressed.compress(MODELS / "target_mha", tmp_path, activations=DYNAMIC)
    assert weights.load_target(folder, weights="int8").config.weight_format == "int8"
    refused(folder, "stored in int8", "weights fp8", weights="fp8")


MATRIX = np.zeros((64, 64), np.int8)
BROKEN = {
    "no scale": (f"{DOWN}_scale", None, f"lacks the tensor {DOWN}_scale"),
    "a scale too few": (f"{DOWN}_scale", np.ones((63, 1), np.float32), "has shape [63, 1]; its config.json asks for [64, 1]"),
    "a scale per input": (f"{GATE}_scale", np.ones((1, 64), np.float32), "has shape [1, 64]"),
    "scales of whole numbers": (f"{DOWN}_scale", np.ones((64, 1), np.int64), "only floating-point"),
    "a scale that is NaN": (f"{DOWN}_scale", np.full((64, 1), np.nan, np.float32), "holds NaN or Inf"),
    "a scale that is infinite": (f"{DOWN}_scale", np.full((64, 1), np.inf, np.float32), "holds NaN or Inf"),
    "a negative scale": (f"{DOWN}_scale", np.full((64, 1), -0.5, np.float32), "holds the scale -0.5; scales are not negative"),
    "a matrix of floats": (DOWN, np.zeros((64, 172), np.float32), "is F32; its config.json asks for I8"),
    "a quantised LM head": ("lm_head.weight", np.zeros((503, 64), np.int8), "lm_head.weight"),
    "a tensor too many": ("model.layers.0.mlp.down_proj.weight_zero_point", MATRIX, "which its config.json has no place for"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_are_not_what_the_config_says_are_refused_by_their_names(folder, name):
    tensor, new, words = BROKEN[name]
    compressed.change(folder, tensor, new)
    assert tensor in refused(folder, words)


def test_nan_in_float8_is_noticed(tmp_path):
    folder, _ = compressed.compress(MODELS / "target_mha", tmp_path, "fp8")
    name = "model.layers.0.self_attn.q_proj.weight"
    compressed.change(folder, name, np.full((64, 64), np.nan, compressed.ml_dtypes.float8_e4m3fn))
    refused(folder, name, "holds NaN or Inf")


def test_a_quantised_target_is_not_written(tmp_path):
    target = weights.load_target(MODELS / "target_mha", weights="int8")
    with pytest.raises(BadInput, match="int8 weights is not written"):
        weights.save_target(target, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_float_checkpoint_has_the_format_that_is_wanted_and_a_quantised_one_its_own():
    assert quantisation.weight_format({}, None, "") is None and quantisation.weight_format({}, "fp8", "") == "fp8"
    assert quantisation.weight_format({"quantization_config": said()}, None, "") == "int8"
    fields = json.loads((MODELS / "target_mha" / "config.json").read_text())
    assert config.target_config(fields, "", "int8").weight_format == "int8"
