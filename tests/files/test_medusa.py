"""Medusa's heads in the layouts of others: read, written, counted, refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from redrafter_jax.errors import BadInput
from redrafter_jax.files import medusa as files
from redrafter_jax.files import tensors
from redrafter_jax.model.medusa import MedusaConfig, MedusaHeads

D, V = 8, 24


def drawn(seed: int = 0, **other) -> dict[str, np.ndarray]:
    """v0.1's tensors of 3 heads with 2 blocks."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for k in range(3):
        for l in range(2):  # noqa: E741
            arrays[f"{k}.{l}.linear.weight"] = rng.normal(size=(D, D)).astype(np.float32)
            arrays[f"{k}.{l}.linear.bias"] = rng.normal(size=(D,)).astype(np.float32)
        arrays[f"{k}.2.weight"] = rng.normal(size=(V, D)).astype(np.float32)
    return arrays


def write(folder, arrays, fields=None, file=files.HEAD_FILE):
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / file)
    (folder / "config.json").write_text(json.dumps(fields or {"medusa_num_heads": 2, "medusa_num_layers": 1}))
    return folder


def same(one: MedusaHeads, other: MedusaHeads) -> bool:
    pairs = zip(tensors.leaves(one), tensors.leaves(other), strict=True)
    return one.config == other.config and all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)


def test_heads_are_counted_in_the_tensors_and_not_in_the_config(tmp_path):
    heads = files.load_medusa(write(tmp_path / "it", drawn()))
    assert heads.config == MedusaConfig(vocab_size=V, hidden_size=D, num_heads=3, num_blocks=2, tied=False)
    assert np.array_equal(heads.blocks[1][0].weight[...], drawn()["1.0.linear.weight"].T)
    assert np.array_equal(heads.lm_heads[2][...], drawn()["2.2.weight"].T)


def test_the_three_layouts_hold_the_same_heads(tmp_path):
    expected = files.load_medusa(write(tmp_path / "v0", drawn()))
    merged = {f"medusa_head.{name}": array for name, array in drawn().items()} | {"lm_head.weight": np.ones((V, D), np.float32)}
    assert same(expected, files.load_medusa(write(tmp_path / "v1", merged, file="model.safetensors")))
    expected.config = dataclasses.replace(expected.config, tree=((0,), (0, 1)))
    for layout in ("medusa", "vllm"):
        files.save_medusa(expected, tmp_path / layout, layout)
        assert same(expected, files.load_medusa(tmp_path / layout))
    stored = load_file(tmp_path / "vllm" / "model.safetensors")
    assert np.array_equal(stored["medusa_heads.blocks.0.layers.1.weight"], drawn()["0.1.linear.weight"])
    bare = {name.removeprefix("medusa_heads."): array for name, array in stored.items()}
    fields = {"model_type": "medusa", "medusa_choices": [[0], [0, 1]]}
    assert same(expected, files.load_medusa(write(tmp_path / "bare", bare, fields, "model.safetensors")))
    written = json.loads((tmp_path / "vllm" / "config.json").read_text())
    assert written["num_heads"] == 3 and written["num_hidden_layers"] == 2 and written["truncated_vocab_size"] == V


def test_heads_that_share_the_targets_lm_head(tmp_path, mha):
    target = mha[0]
    config = MedusaConfig(vocab_size=target.config.vocab_size, hidden_size=target.config.hidden_size, num_heads=2)
    heads = MedusaHeads(jax.random.key(1), config)
    files.save_medusa(heads, tmp_path / "tied")
    found = files.load_medusa(tmp_path / "tied")
    assert same(heads, found) and found.config.tied
    with pytest.raises(BadInput, match="give the target"):
        files.save_medusa(heads, tmp_path / "none", "vllm")
    files.save_medusa(heads, tmp_path / "vllm", "vllm", target=target)
    own = files.load_medusa(tmp_path / "vllm")
    assert not own.config.tied
    h = target.embed(jax.device_put(jnp.zeros((2, 1), jnp.int32), jax.P("data", None)))[:, 0]
    np.testing.assert_allclose(own.logits(h, target), heads.logits(h, target), rtol=1e-5, atol=1e-5)


def test_a_table_of_a_draft_vocabulary_is_read(tmp_path):
    arrays = drawn()
    for k in range(3):
        arrays[f"{k}.2.weight"] = arrays[f"{k}.2.weight"][:5]
    fields = {"model_type": "medusa", "vocab_size": V, "truncated_vocab_size": 5}
    table = np.array([1, 2, 5, 9, 20], np.int64)
    heads = files.load_medusa(write(tmp_path / "cut", arrays | {"token_map": table}, fields))
    assert heads.config.draft_vocab == 5 and np.asarray(heads.ids[...]).tolist() == table.tolist()
    with pytest.raises(BadInput, match="token_map.*ascending"):
        files.load_medusa(write(tmp_path / "odd", arrays | {"token_map": table[::-1].copy()}, fields))


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"medusa_num_heads": 2}')
    (pickled / "medusa_lm_head.pt").write_bytes(b"")
    some = drawn()
    del some["1.2.weight"]
    gap = drawn()
    del gap["1.0.linear.weight"]
    bad = {
        "unpickling": pickled,
        "no Medusa heads": write(tmp_path / "none", {"a": np.zeros(2, np.float32)}),
        "all of them or none": write(tmp_path / "some", some),
        "lacks the tensor 1.0.linear.weight": write(tmp_path / "gap", gap),
        "no place for": write(tmp_path / "extra", drawn() | {"other": np.zeros(2, np.float32)}),
        "NaN": write(tmp_path / "nan", drawn() | {"0.0.linear.bias": np.full(D, np.nan, np.float32)}),
        "vocab_size": write(tmp_path / "tied", {n: a for n, a in drawn().items() if "linear" in n}),
    }
    for word, folder in bad.items():
        with pytest.raises(BadInput, match=word):
            files.load_medusa(folder, what="--drafter")
    with pytest.raises(BadInput, match="list of lists"):
        files.read_tree(write(tmp_path / "tree", drawn(), {"medusa_choices": [1, 2]}))
