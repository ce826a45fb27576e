"""A head says which target it was trained for, and a sentence says in what another differs."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from redrafter_jax.files import fingerprint, heads, medusa, provenance, weights
from tests import support
from tests.support import MODELS
from tests.texts import TEMPLATE, THINKING, with_tokenizer


@pytest.fixture
def target(tmp_path):
    return with_tokenizer(tmp_path / "target", template=True)


@pytest.fixture
def head(tmp_path, target):
    folder = tmp_path / "head"
    heads.save_head(support.load_pair("mha_rnn")[1], folder, trained_for=provenance.describe(target, "float32"))
    return folder


def change_config(target):
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"head_dim": 8}))


def change_one_tensor(target):
    tensors = load_file(target / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] *= 1.5
    save_file(tensors, target / "model.safetensors")


def change_tokenizer(target):
    file = target / "tokenizer.json"
    file.write_text(file.read_text().replace('"w300"', '"other"'))


def change_template(target):
    (target / "chat_template.jinja").write_text(THINKING)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_config, "head_dim 16 (this has 8)"),
        (change_one_tensor, "other weights"),
        (change_tokenizer, "another tokenizer"),
        (change_template, "another chat template"),
    ],
)
def test_what_differs_of_a_target_is_said_in_one_sentence(target, head, change, words):
    assert provenance.compare(head, target, "float32", variables={}) is None
    change(target)
    said = provenance.compare(head, target, "float32", variables={})
    assert said == f"the head in {head} was trained for {words}; acceptance may be low"


def test_several_differences_are_listed_with_the_number_format(target, head):
    change_tokenizer(target)
    change_one_tensor(target)
    said = provenance.compare(head, target, "int8 weights, bfloat16")
    how = "float32 (this is int8 weights, bfloat16)"
    assert f"trained for another tokenizer, other weights and {how}; acceptance may be low" in said


@pytest.mark.parametrize(
    ("then", "now", "matters"),
    [
        ("float32", "bfloat16", False),
        ("int8 weights, float32", "int8 weights, bfloat16", False),
        ("float32", "int8 weights, float32", True),
        ("int8 weights, bfloat16", "bfloat16", True),
        ("int8 weights, bfloat16", "fp8 weights, bfloat16", True),
        (None, "bfloat16", False),
    ],
)
def test_the_width_of_floats_is_not_said_and_eight_bits_are(target, head, then, now, matters):
    config = json.loads((head / "config.json").read_text())
    config["redrafter_jax_target"]["dtype"] = then
    (head / "config.json").write_text(json.dumps(config))
    said = provenance.compare(head, target, now)
    assert said == (f"the head in {head} was trained for {then} (this is {now}); acceptance may be low" if matters else None)


def test_a_head_that_says_nothing_or_something_else_is_not_compared(target, head):
    config = json.loads((head / "config.json").read_text())
    change_one_tensor(target)
    for record in (None, [], "x", {}, {"weights": None, "unknown": 1}, {"weights": "0"}):
        (head / "config.json").write_text(json.dumps(config | {"redrafter_jax_target": record}))
        said = provenance.compare(head, target, "bfloat16")
        assert said is None or "trained for other weights; acceptance" in said
    assert provenance.compare(MODELS / "drafter_mha_rnn", target, "bfloat16") is None


def test_every_kind_of_head_keeps_it_and_still_loads(target, tmp_path):
    said = provenance.describe(target, "float32", variables={"enable_thinking": False})
    medusas = support.medusa_heads(support.load_target("mha").config, 2)
    for layout in ("medusa", "vllm"):
        whole = support.load_target("mha")
        medusa.save_medusa(medusas, tmp_path / layout, layout, target=whole, trained_for=said)
    heads.save_head(medusas, tmp_path / "tied", trained_for=said)
    heads.save_head(support.load_pair("mha_rnn")[1], tmp_path / "recurrent", support.load_target("mha"), said)
    for name in ("medusa", "vllm", "tied", "recurrent"):
        assert provenance.read(tmp_path / name) == json.loads(json.dumps(said))
        heads.load_head(tmp_path / name)


def test_variables_of_the_chat_template_are_compared_where_both_write_conversations(target, tmp_path, head):
    said = provenance.describe(target, "float32", variables={"enable_thinking": False})
    weights.save_drafter(support.load_pair("mha_rnn")[1], head, trained_for=said)
    assert provenance.compare(head, target, "float32", variables=None) is None
    assert provenance.compare(head, target, "float32", variables={"enable_thinking": False}) is None
    told = provenance.compare(head, target, "float32", variables={})
    assert 'trained for chat_template_kwargs {"enable_thinking": false} (these are {})' in told
    same = {"enable_thinking": False}
    assert "another chat template" in provenance.compare(head, target, "float32", template=THINKING, variables=same)
    assert provenance.compare(head, target, "float32", template=TEMPLATE, variables=same) is None
    assert provenance.compare(head, target, "float32", template=THINKING) is None


def test_the_sample_of_the_weights_is_of_each_tensor_and_not_of_how_they_lie_in_files(target):
    before = fingerprint.sample_weights(target, "target")
    tensors = load_file(target / "model.safetensors")
    names = sorted(tensors)
    index = {}
    for number in range(3):
        own = {name: tensors[name] for name in names[number::3]}
        save_file(own, target / f"part-{number}.safetensors", {"format": "np"})
        index |= dict.fromkeys(own, f"part-{number}.safetensors")
    (target / fingerprint.WEIGHT_INDEX).write_text(json.dumps({"weight_map": index}))
    (target / "model.safetensors").unlink()
    assert fingerprint.sample_weights(target, "target") == before
    found = {before}
    for name in names:
        file = target / index[name]
        kept = load_file(file)
        save_file(kept | {name: kept[name] + np.float32(1e-3)}, file)
        found.add(fingerprint.sample_weights(target, "target"))
        save_file(kept, file)
    assert len(found) == 1 + len(names)


def test_a_large_model_is_sampled_in_bounded_time(target, monkeypatch):
    monkeypatch.setattr(fingerprint, "MAX_SAMPLED_TENSORS", 5)
    read, middle = [], fingerprint.weight_files.Place.read_middle
    monkeypatch.setattr(fingerprint.weight_files.Place, "read_middle", lambda self, size: read.append(size) or middle(self, size))
    fingerprint.sample_weights(target, "target")
    assert 1 < len(read) <= 5 and set(read) == {fingerprint.SAMPLE_BYTES}


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": TEMPLATE, "tokenizer_config.json": '{"chat_template": "other"}'},
        {"tokenizer_config.json": json.dumps({"chat_template": TEMPLATE})},
        {"chat_template.json": json.dumps({"chat_template": TEMPLATE})},
        {"tokenizer_config.json": json.dumps({"chat_template": [{"name": "tool_use", "template": "x"},
                                                               {"name": "default", "template": TEMPLATE}]})},
    ],
    ids=lambda files: " ".join(files),
)  # fmt: skip
def test_a_chat_template_is_found_in_whichever_file_it_is(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert fingerprint.read_chat_template(tmp_path) == TEMPLATE


def test_a_folder_without_tokenizer_or_template_has_none(tmp_path):
    assert fingerprint.hash_tokenizer(tmp_path) is fingerprint.read_chat_template(tmp_path) is None
    shutil.copytree(MODELS / "target_mha", tmp_path / "bare")
    assert provenance.describe(tmp_path / "bare", "float32")["tokenizer"] is None
