"""What only Phi has: texts that outgrow the context of the short factors, and tensors that hold several matrices."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from redrafter_jax.decode import pack, prefill, reject, reread
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.errors import BadInput
from redrafter_jax.files import adapters, weights
from redrafter_jax.model import attention, lora
from redrafter_jax.model.drafter import Drafter, slim
from tests import support
from tests.families import flavours
from tests.families.flavours import VOCAB
from tests.support import put
from train.data import rows
from train.run import step

NAME, ORIGINAL = "phi3 with longrope", 30
TEXT = (np.arange(64) * 37 % 101 + 7).tolist()
LENGTHS = (5, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 40)  # of prompts, before and behind the crossing
NEW = 33


@pytest.fixture(scope="module")
def model():
    """transformers' model, and ours."""
    theirs, folder = flavours.make(NAME)
    return theirs, weights.load_target(folder)


def drafting(target) -> Recurrent:
    head = jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), slim(VOCAB, target.config.hidden_size), jnp.float32)
    return Recurrent(head, Shape(2, 3))


PROMPTS = [TEXT[:length] for length in LENGTHS] * 2
HOW = [Sampling()] * len(LENGTHS) + [Sampling(0.9)] * len(LENGTHS)  # in one batch, which one program decodes


def decode(engine: Engine) -> list[list[int]]:
    replies = engine.generate(PROMPTS, HOW, Limits(NEW), [1] * len(PROMPTS), batch=len(PROMPTS))
    return [reply.token_ids for reply in replies]


@pytest.fixture(scope="module")
def texts(model):
    """What plain decoding gives, greedy and then sampled."""
    return decode(Engine(model[1]))


def test_greedy_text_is_that_of_generate_on_either_side_of_the_crossing(model, texts):
    theirs = model[0]
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for length, found in zip(LENGTHS, texts, strict=False):
        assert found == theirs.generate(torch.tensor([TEXT[:length]]), **settings)[0, length:].tolist()


def test_without_reading_again_the_text_would_be_another(model, texts):
    """So the tests beside this one would notice."""
    config = model[1].config
    stays = dataclasses.replace(config, rope=dataclasses.replace(config.rope, rereads=False))
    leaves, like = jax.tree.leaves(model[1]), jax.eval_shape(lambda: type(model[1])(jax.random.key(0), stays))
    other = Engine(jax.tree.unflatten(jax.tree.structure(like), leaves))
    found = next(other.generate([TEXT[: LENGTHS[0]]], limits=Limits(NEW))).token_ids
    common = ORIGINAL - LENGTHS[0]
    assert found[:common] == texts[0][:common] and found != texts[0]


def test_drafts_change_no_text_across_the_crossing(model, texts):
    assert decode(Engine(model[1], drafting(model[1]))) == texts
    assert texts[len(LENGTHS) :] != texts[: len(LENGTHS)]


def test_a_round_that_is_run_by_itself_crosses_too(model, texts):
    """Streaming runs few rounds per call."""
    *_, last = Engine(model[1]).stream([TEXT[: LENGTHS[1]]], limits=Limits(8), rounds=1)
    assert last.replies[0].token_ids == texts[1][:8]


def test_the_text_read_again_has_the_cache_of_a_prompt_of_its_length(model):
    target = model[1]
    state = support.started(target, [TEXT[:ORIGINAL], TEXT[:20]], 8, 3)
    after = reread.at_crossing(target, state)
    whole = prefill.read(target, put([TEXT[:40]]), put([40], np.int32), 64)[0]  # long factors throughout
    for found, before, expected in zip(after.cache.keys, state.cache.keys, whole.keys, strict=True):
        np.testing.assert_allclose(found[0, :, :ORIGINAL], expected[0, :, :ORIGINAL], atol=1e-5)
        assert np.abs(np.asarray(before[0, :, :ORIGINAL] - expected[0, :, :ORIGINAL])).max() > 0.1
        np.testing.assert_array_equal(found[1], before[1])
    assert np.abs(np.asarray(after.h[0] - state.h[0])).max() > 1e-3
    np.testing.assert_array_equal(after.h[1], state.h[1])
    np.testing.assert_array_equal(after.cache.length, state.cache.length)
    done = dataclasses.replace(state, done=put([True, False]))
    np.testing.assert_array_equal(reread.at_crossing(target, done).cache.keys[0], state.cache.keys[0])


def test_a_program_whose_rows_cannot_cross_has_no_part_of_it(model):
    target = model[1]
    assert not reread.crosses(target, ORIGINAL) and reread.crosses(target, ORIGINAL + 1)
    assert not reread.crosses(support.load_target("mha"), 10**6)
    tree = pack.root_only(put([3], np.int32))
    assert reread.cut(target, tree, put([ORIGINAL], np.int32), ORIGINAL) is tree


def test_no_node_is_scored_at_a_position_whose_keys_would_need_the_other_factors(model):
    drawn = pack.Drawn(put(np.full((4, 2, 3), 5), np.int32), put(np.zeros((4, 2, 3, VOCAB), np.float32)))
    tree = pack.of_chains(put([3] * 4, np.int32), drawn, put(np.zeros((4, 2, 3), np.float32)))
    lengths = put([ORIGINAL - 4, ORIGINAL - 2, ORIGINAL - 1, ORIGINAL], np.int32)
    valid = np.asarray(reread.cut(model[1], tree, lengths, 64).valid)
    assert valid.sum(axis=1).tolist() == [7, 3, 1, 7]  # with three depths of two nodes, one, none; and all with long factors


def test_a_draft_that_was_cut_off_is_neither_accepted_nor_rejected():
    policy = support.policy(1, 1.0, rule="rejection")
    drawn = pack.Drawn(put(np.full((1, 1, 2), 5), np.int32), put(np.full((1, 1, 2, 8), -30.0, np.float32)))
    drawn.logits.at[..., 5].set(30.0)
    tree = pack.of_chains(put([3], np.int32), drawn, put(np.zeros((1, 1, 2), np.float32)))
    warped = put(np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32))
    tree = dataclasses.replace(tree, valid=put([[True, False, False]]))
    node, p = reject.walk(policy, tree, warped, put([9], np.int32))
    assert node.tolist() == [0]
    np.testing.assert_allclose(p, jax.nn.softmax(warped[:, 0]), rtol=1e-6)


@pytest.mark.parametrize("length", [20, 50])
def test_a_prompt_is_read_with_the_factors_of_its_length_on_a_mesh_too(model, length):
    theirs, folder = flavours.make(NAME)
    jax.set_mesh(make_mesh(2, 4))
    target = weights.load_target(folder)
    assert target.config.num_key_value_heads == 4  # two, each repeated, of rows within a tensor
    ids = np.array([TEXT[:length], TEXT[:length][::-1]])
    positions = put(np.broadcast_to(np.arange(length), ids.shape), np.int32)
    read = jax.jit(lambda target, ids: target.unembed(target(ids, positions, attention.causal(positions >= 0)).hidden))
    found = np.asarray(read(target, put(ids, np.int32)))
    with torch.no_grad():
        np.testing.assert_allclose(found, theirs(torch.tensor(ids)).logits.numpy(), atol=1e-4)


def test_training_reads_an_example_as_it_is_in_the_end(model):
    theirs, target = model
    first, second = TEXT[:40], TEXT[3:20]
    tokens = np.array([first + second])
    segments, positions = np.array([[1] * 40 + [2] * 17]), np.array([[*range(40), *range(17)]])
    batch = rows.Batch(*(put(each, np.int32) for each in (tokens, tokens, segments, positions)))
    found = np.asarray(target.unembed(jax.jit(step.read)(target, batch).hidden))[0]
    with torch.no_grad():
        for ids, part in ((first, found[:40]), (second, found[40:])):
            np.testing.assert_allclose(part, theirs(torch.tensor([ids])).logits[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["self_attn.qkv_proj", "mlp.gate_up_proj"])
def test_a_tensor_of_several_matrices_with_another_height_is_refused(tmp_path, name):
    _, folder = flavours.make("phi3")
    tensors, name = load_file(folder / "model.safetensors"), f"model.layers.2.{name}.weight"
    rows, columns = tensors[name].shape
    save_file(tensors | {name: tensors[name][:-1]}, tmp_path / "model.safetensors")
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    with pytest.raises(BadInput) as caught:
        weights.load_target(tmp_path)
    wrong = f"has shape [{rows - 1}, {columns}]; its config.json asks for [{rows}, {columns}]"
    assert str(caught.value) == f"target: {name} in {tmp_path} {wrong}"


def test_the_earlier_names_of_longrope_mean_the_same(model):
    config = json.loads((flavours.make(NAME)[1] / "config.json").read_text())
    parameters = dict(config["rope_parameters"])
    theta, share = parameters.pop("rope_theta"), parameters.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    del config["rope_parameters"], parameters["rope_type"]
    for kind in ("su", "yarn", "longrope"):
        older = config | {"rope_theta": theta, "partial_rotary_factor": share, "rope_scaling": parameters | {"type": kind}}
        assert weights.configs.target_config(older) == model[1].config


def test_an_adapter_of_matrices_in_one_tensor_is_written_and_merged(tmp_path):
    _, folder = flavours.make("phi3")
    target = weights.load_target(folder)
    adapter = lora.Adapter(jax.random.key(0), target.config, lora.LoraConfig(2, 3.0))
    adapter = jax.tree.map(lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), adapter)
    adapters.save_merged(adapter, tmp_path / "merged", folder, "base")
    found, expected = weights.load_target(tmp_path / "merged"), lora.merge(target, adapter)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    adapters.save_peft(adapter, tmp_path / "alone", folder, "base")
    fields = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    factors = load_file(tmp_path / "alone" / "adapter_model.safetensors")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "merged"))
    for module in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        name = f"model.layers.1.{module}"
        a, b = (factors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        rank, alpha = (fields[f"{kind}_pattern"].get(name, fields[key]) for kind, key in (("rank", "r"), ("alpha", "lora_alpha")))
        assert a.shape[0] == b.shape[1] == rank
        np.testing.assert_allclose(after[f"{name}.weight"] - before[f"{name}.weight"], alpha / rank * b @ a, atol=1e-5)
