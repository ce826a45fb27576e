"""Adapters in PEFT's format, merged into a target while it is read: PEFT's own sum, in every option that is honoured; and one
sentence for what is not."""

import copy
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config as configs
from redrafter_jax.files import peft, tensors, weights
from redrafter_jax.model.target import Target
from tests.families import flavours
from tests.support import MODELS

FIELDS = {"model_type": "llama", "vocab_size": 104, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
          "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64}  # fmt: skip
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj", "lm_head")
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> pathlib.Path:
    jax.set_mesh(make_mesh())
    folder = tmp_path_factory.mktemp("target")
    weights.save_target(Target(jax.random.key(0), configs.target_config(FIELDS)), folder)
    return folder


def write(
    folder: pathlib.Path, target: pathlib.Path, ranks: dict[str, int] | int = 3, dtype="float32", modules=MODULES, **fields
) -> pathlib.Path:
    """An adapter of these modules of the target, as PEFT writes it, with random factors."""
    stored, rng, factors = load_file(target / "model.safetensors"), np.random.default_rng(5), {}
    for module in modules:
        rank = ranks if isinstance(ranks, int) else ranks.get(module, 3)
        height, width = stored[f"{module}.weight"].shape
        for factor, shape in (("A", (rank, width)), ("B", (height, rank))):
            factors[f"base_model.model.{module}.lora_{factor}.weight"] = rng.normal(size=shape).astype(dtype)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | fields))
    return folder


def merged(
    target: pathlib.Path, adapter: pathlib.Path, folder: pathlib.Path, scales: dict[str, float] | float, modules=MODULES
) -> pathlib.Path:
    """The target with W + scale B A in its files."""
    shutil.copytree(target, folder)
    stored, factors = load_file(target / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for module in modules:
        a, b = (factors[f"base_model.model.{module}.lora_{factor}.weight"].astype(np.float64) for factor in "AB")
        scale = scales if isinstance(scales, float) else scales[module]
        stored[f"{module}.weight"] = (stored[f"{module}.weight"] + scale * (b @ a)).astype(np.float32)
    save_file(stored, folder / "model.safetensors")
    return folder


def assert_near(ours, theirs, atol: float = 1e-5) -> None:
    for (path, one), (_, other) in zip(tensors.leaves(ours), tensors.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), atol=atol, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("ranks", "fields", "scales"),
    [
        (3, {}, 2.0),
        (3, {"use_rslora": True}, 6 / math.sqrt(3)),
        (
            {MODULES[0]: 5},
            {"rank_pattern": {"0.self_attn.q_proj": 5}, "alpha_pattern": {"^model.layers.1.mlp.down_proj": 12, "k_pro.": 3}},
            dict(zip(MODULES, (6 / 5, 1.0, 4.0, 2.0), strict=True)),
        ),
        (3, {"use_dora": False, "modules_to_save": None, "init_lora_weights": True, "unknown": "field"}, 2.0),
    ],
    ids=["alpha / r", "rslora", "patterns", "fields that change nothing"],
)
def test_a_target_with_an_adapter_is_w_plus_scale_b_a(target, tmp_path, ranks, fields, scales):
    adapter = write(tmp_path / "adapter", target, ranks, **fields)
    ours = weights.load_target(target, adapter=peft.read(adapter, "--lora"))
    assert_near(ours, weights.load_target(merged(target, adapter, tmp_path / "merged", scales)))
    moved = np.abs(np.asarray(ours.lm_head) - np.asarray(weights.load_target(target).lm_head)).max()
    assert moved > 0.1


FUSED = ("model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj", "model.layers.2.self_attn.o_proj")
PATTERNS = {
    "rank_pattern": {"qkv_proj": 5},
    "alpha_pattern": {r"layers\.1\.mlp\.gate_up_proj": 12, "qkv_proj": 3},
}


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_an_adapter_of_fused_tensors_is_added_to_each_of_their_parts(tmp_path, mesh):
    folder = flavours.make("phi3")[1]
    adapter = write(tmp_path / "adapter", folder, {FUSED[0]: 5}, modules=FUSED, **PATTERNS)
    with_sum = merged(folder, adapter, tmp_path / "merged", dict(zip(FUSED, (3 / 5, 12 / 3, 6 / 3), strict=True)), FUSED)
    with jax.set_mesh(make_mesh(*mesh)):
        ours = weights.load_target(folder, adapter=peft.read(adapter, "--lora"))
        plain, theirs = (weights.load_target(each) for each in (folder, with_sum))
    assert_near(ours, theirs)
    for layer, parts in enumerate((("q", "k", "v"), ("gate", "up"), ("o",))):
        one, other = ours.blocks[layer], plain.blocks[layer]
        moved = {name for name in ("q", "k", "v", "o", "gate", "up", "down") if _apart(getattr(one, name), getattr(other, name))}
        assert moved == set(parts)


def _apart(one, other) -> bool:
    return np.abs(np.asarray(one.weight[...]) - np.asarray(other.weight[...])).max() > 0.1


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own, of transformers
def test_an_adapter_of_fused_tensors_is_merged_as_peft_merges_it(tmp_path):
    library = pytest.importorskip("peft", reason="peft is not installed; it is no requirement")
    model, folder = flavours.make("phi3")
    how = library.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["qkv_proj", "gate_up_proj", "o_proj"],
        use_rslora=True,
        init_lora_weights="gaussian",
        **PATTERNS,
    )
    adapted = library.get_peft_model(copy.deepcopy(model), how)
    for name, factor in adapted.named_parameters():
        if "lora_B" in name:
            factor.data.normal_()
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)  # else it asks the hub for the target
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    ours = weights.load_target(folder, adapter=peft.read(tmp_path / "adapter", "--lora"))
    assert_near(ours, weights.load_target(tmp_path / "merged"))
    assert _apart(ours.blocks[1].up, weights.load_target(folder).blocks[1].up)


def test_on_a_mesh_each_device_adds_its_own_part_also_where_heads_are_repeated(target, tmp_path):
    adapter = peft.read(write(tmp_path / "adapter", target), "--lora")
    expected = weights.load_target(target, adapter=adapter)
    with jax.set_mesh(make_mesh(2, 4)):
        plain, split = (weights.load_target(target, spread=True, adapter=each) for each in (None, adapter))
    k, original = np.asarray(expected.blocks[0].k.weight), np.asarray(weights.load_target(target).blocks[0].k.weight)
    copies = split.config.num_key_value_heads // expected.config.num_key_value_heads
    width = expected.config.head_dim
    repeated = np.repeat(k.reshape(len(k), -1, width), copies, axis=1).reshape(len(k), -1)
    np.testing.assert_allclose(np.asarray(split.blocks[0].k.weight), repeated, atol=1e-5)
    np.testing.assert_allclose(np.asarray(split.lm_head), np.asarray(expected.lm_head), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(split.blocks[0].v.weight), np.asarray(plain.blocks[0].v.weight))
    assert np.abs(k - original).max() > 0.1 and split.lm_head.sharding.spec != P(None, None)


def test_the_sum_is_rounded_once_to_the_targets_number_format(target, tmp_path):
    adapter = write(tmp_path / "adapter", target, dtype="float16")
    ours = weights.load_target(target, "bfloat16", adapter=peft.read(adapter, "--lora"))
    exact = weights.load_target(merged(target, adapter, tmp_path / "merged", 2.0))
    theirs = np.asarray(exact.lm_head).astype(ours.lm_head.dtype)
    assert (np.asarray(ours.lm_head) == theirs).mean() > 0.999  # a sum in another order may fall on the other side of a tie


def test_chunks_of_a_matrix_get_their_own_rows_of_the_sum(target, tmp_path, monkeypatch):
    adapter = peft.read(write(tmp_path / "adapter", target), "--lora")
    whole = weights.load_target(target, adapter=adapter)
    monkeypatch.setattr("redrafter_jax.files.stored.CHUNK_BYTES", 1024)
    assert_near(weights.load_target(target, adapter=adapter), whole, atol=1e-6)


def changed(folder: pathlib.Path, change) -> pathlib.Path:
    file = folder / "adapter_model.safetensors"
    factors = load_file(file)
    change(factors)
    save_file(factors, file)
    return folder


NAME = f"base_model.model.{MODULES[0]}.lora_A.weight"


def rename(new: str):
    return lambda factors: factors.update({new: factors.pop(NAME)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda factors: factors.pop(NAME), "model.layers.0.self_attn.q_proj in .* has lora_B alone; lora_A is missing"),
        (lambda factors: factors[NAME].fill(np.nan), "lora_A.weight in .* holds NaN or Inf"),
        (lambda factors: factors.update({NAME: factors[NAME][:2]}), r"they should be \[3, in\] and \[out, 3\]"),
        (lambda factors: factors.update({NAME: factors[NAME].astype(np.int8)}), "is I8; it should hold floating-point"),
        (rename("base_model.model.lm_head.weight"), "has the tensor base_model.model.lm_head.weight, and should hold lora_A"),
        (rename(NAME.replace("lora_A.weight", "lora_magnitude_vector")), "lora_magnitude_vector, and should hold lora_A"),
        (lambda factors: factors.clear(), "is empty; it should hold lora_A"),
    ],
)
def test_a_broken_adapter_is_one_sentence(target, tmp_path, change, words):
    with pytest.raises(BadInput, match=f"^--lora: .*{words}") as caught:
        peft.read(changed(write(tmp_path / "adapter", target), change), "--lora")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        *(
            ({name: value}, f"{name} .* is not supported; merge it")
            for name, value in {
                "use_dora": True, "bias": "lora_only", "modules_to_save": ["lm_head"], "fan_in_fan_out": True, "lora_bias": True,
                "init_lora_weights": "pissa", "trainable_token_indices": [3], "target_parameters": ["experts.up"],
                "layer_replication": [[0, 2]],
            }.items()
        ),
        ({"peft_type": "IA3"}, "peft_type in .* should be 'LORA', not 'IA3'"),
        ({"r": 0}, "r in .* should be a whole number above 0"),
        ({"r": 4}, r"they should be \[4, in\]"),
        ({"lora_alpha": "16"}, "lora_alpha in .* should be a number above 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha in .* should be a number above 0"),
        ({"use_rslora": 1}, "use_rslora in .* should be true or false"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern in .* should be an object"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern: q_proj in .* should be a number above 0"),
        ({"rank_pattern": {"(": 3}}, r"'\(' in .* is no regular expression"),
    ],
    ids=str,
)  # fmt: skip
def test_an_option_of_pefts_that_is_not_honoured_is_refused_by_name(target, tmp_path, fields, words):
    with pytest.raises(BadInput, match=f"^--lora: {words}|^--lora: .*{words}"):
        peft.read(write(tmp_path / "adapter", target, **fields), "--lora")


def test_an_adapter_of_another_target_is_one_sentence(target, tmp_path):
    adapter = peft.read(write(tmp_path / "adapter", target), "--lora")
    with pytest.raises(BadInput, match="^--lora: what .* adds to .* is for a matrix of shape .*; it is for another target"):
        weights.load_target(MODELS / "target_mha", adapter=adapter)
    other = changed(write(tmp_path / "other", target), rename(NAME.replace("q_proj", "qkv_proj")))
    changed(other, lambda factors: factors.update({NAME.replace("q_proj", "qkv_proj").replace("_A", "_B"): factors.pop(
        NAME.replace("_A", "_B"))}))  # fmt: skip
    with pytest.raises(BadInput, match=r"^--lora: .* adapts model.layers.0.self_attn.qkv_proj, which the target in .* \(1 of 4"):
        weights.load_target(target, adapter=peft.read(other, "--lora"))


def test_a_folder_without_an_adapter_and_a_pickled_one_are_named(target, tmp_path):
    with pytest.raises(BadInput, match="has no adapter_config.json, so it is no adapter"):
        peft.read(target, "--lora")
    adapter = write(tmp_path / "adapter", target)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(BadInput, match="adapter_model.bin, which is not read, because unpickling runs code"):
        peft.read(adapter, "--lora")


def test_adapters_are_told_apart_by_what_they_add(target, tmp_path):
    one, same, scaled = (peft.read(write(tmp_path / name, target, **more), "--lora") for name, more in (
        ("one", {}), ("same", {"task_type": "CAUSAL_LM"}), ("scaled", {"lora_alpha": 7})))  # fmt: skip
    moved = changed(write(tmp_path / "moved", target), lambda factors: factors[NAME].__setitem__((0, 0), 9.0))
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, scaled.fingerprint, peft.read(moved, "--lora").fingerprint}) == 3
