"""Weights that are NaN, broken, twice or elsewhere are refused by name; what is written can be read by anyone."""

import json
import os
import shutil
import stat

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from redrafter_jax.errors import BadInput
from redrafter_jax.files import hub, weight_files, weights
from tests.damaged import DEEP
from tests.support import MODELS, load_pair

DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)

LONG = "x" * 5000


@pytest.fixture
def folder(tmp_path):
    """A copy of a golden target that a test can break."""
    return shutil.copytree(MODELS / "target_mha", tmp_path / "target")


def refused(load, folder, words: str, dtype: str = "float32"):
    with pytest.raises(BadInput) as error:
        load(folder, dtype, "--option")
    assert str(error.value).startswith("--option: ") and "\n" not in str(error.value)
    assert words in str(error.value)


def change(folder, name: str, value: float, dtype=np.float32, only_one: bool = False):
    """Sets one number of a tensor, or all of them."""
    tensors = load_file(folder / "model.safetensors")
    changed = tensors[name].astype(dtype)
    changed[(-1,) * changed.ndim if only_one else ...] = value
    save_file(tensors | {name: changed}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "stored", "dtype", "why"),
    [
        ("model.norm.weight", np.nan, np.float32, "float32", "the first is nan"),
        ("model.norm.weight", np.nan, np.float32, "bfloat16", "the first is nan"),
        ("lm_head.weight", -np.inf, np.float32, "float32", "the first is -inf"),
        ("lm_head.weight", np.inf, ml_dtypes.bfloat16, "bfloat16", "the first is inf"),
        ("lm_head.weight", 1e300, np.float64, "float32", "1e+300 is too large for float32"),
        ("lm_head.weight", -3.4e38, np.float32, "bfloat16", "-3.4e+38 is too large for bfloat16"),
    ],
)
def test_one_nan_or_infinite_number_of_a_target_is_found_and_its_tensor_named(folder, name, value, stored, dtype, why):
    change(folder, name, value, stored, only_one=True)
    refused(weights.load_target, folder, f"{name} in {folder / 'model.safetensors'} holds NaN or Inf ({why})", dtype)


def test_a_head_of_nan_is_refused(tmp_path):
    head = shutil.copytree(MODELS / "drafter_mha_rnn", tmp_path / "head")
    for name in load_file(head / "model.safetensors"):
        change(head, name, np.nan)
    refused(weights.load_drafter, head, "holds NaN or Inf (the first is nan)")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_look_at_the_bits_sees_what_isfinite_sees(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    fine = np.asarray([[0.0, -0.0, 1.5, largest], [-largest, -1e-3, 1e-7, -largest]]).astype(dtype)
    assert weight_files.is_finite(fine) and weight_files.is_finite(fine.T) and weight_files.is_finite(fine[:0])
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        for at in np.ndindex(fine.shape):
            broken = fine.copy()
            broken[at] = value
            assert not weight_files.is_finite(broken)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/{other}", "..", "", "a\\b", "C:x", "x\0y", LONG])
def test_an_index_that_names_files_outside_its_folder_is_refused(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "other")
    name = name.replace("/{other}", str(tmp_path / "other" / "model.safetensors"))
    index = {"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), name)}
    (folder / weight_files.WEIGHT_INDEX).write_text(json.dumps(index))
    words = "File name too long" if name == LONG else "it should name files of its own folder"
    refused(weights.load_target, folder, words)


@pytest.mark.parametrize("content", [DEEP, "[]", "{"], ids=lambda text: text[:5])
def test_an_index_that_is_no_json_object_is_refused(folder, content):
    (folder / weight_files.WEIGHT_INDEX).write_text(content)
    refused(weights.load_target, folder, weight_files.WEIGHT_INDEX)


def test_a_tensor_that_is_there_twice_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    parts = {"a.safetensors": tensors, "b.safetensors": {"model.norm.weight": tensors["model.norm.weight"] + 1}}
    for name, part in parts.items():
        save_file(part, folder / name)
    index = dict.fromkeys(tensors, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    (folder / weight_files.WEIGHT_INDEX).write_text(json.dumps({"weight_map": index}))
    refused(weights.load_target, folder, "a.safetensors and b.safetensors in")
    (folder / weight_files.WEIGHT_INDEX).unlink()
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for name, at in (("x", 0), ("y", 0))}
    raw = json.dumps(header).replace('"y"', '"\\u0078"').encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    refused(weights.load_target, folder, "has the tensor x twice")


def test_weights_that_are_no_file_are_refused(folder):
    path = folder / "model.safetensors"
    path.unlink()
    path.mkdir()
    refused(weights.load_target, folder, f"{path} is not a file")
    path.rmdir()
    path.symlink_to(path)
    refused(weights.load_target, folder, f"{path} is not a file")


@pytest.mark.parametrize("name", [LONG, "~nobody-of-this-name/model"])
def test_a_folder_name_that_cannot_be_one_is_refused(name):
    with pytest.raises(BadInput, match="--target: '.* should be the folder of a model, or a name on the hub") as error:
        hub.locate(name, "--target")
    assert len(str(error.value)) < 300


def test_a_head_is_written_with_ordinary_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        weights.save_drafter(load_pair("mha_rnn")[1], tmp_path / "head")
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "head").iterdir()} == dict.fromkeys(
        ("model.safetensors", "config.json"), 0o640
    )
