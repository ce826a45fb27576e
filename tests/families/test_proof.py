"""Every family and flavour against transformers on torch, in float32, with random weights: what it computes, what it writes; and
that it decodes, speculates, trains and is split as a Llama is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from redrafter_jax.decode import prefill
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.small_model import SmallModel
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import config, weights
from redrafter_jax.loss import LossConfig
from redrafter_jax.model import attention, cache
from redrafter_jax.model.drafter import Drafter, slim
from tests.families import flavours
from tests.families.flavours import FLAVOURS, MULTIMODAL, VOCAB
from tests.support import put
from train.data import rows
from train.run import labels, step

QUICK = ("qwen3", "gemma3", "qwen3_moe")  # in the default suite whatever takes seconds
SLOWLY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FLAVOURS if name not in MULTIMODAL]
PROMPT = (np.arange(23) * 37 % 101 + 7).tolist()
PARENTS = [0, 0, 1, 2, 3, 0, 5, 2]  # of a tree that is deeper than the windows are wide


def logits_of(theirs, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("name", FLAVOURS)
def test_logits_of_a_prompt_of_a_cached_token_and_of_a_tree_are_equal(name):
    theirs, folder = flavours.make(name)
    target = weights.load_target(folder)
    lengths = np.array([21, 13])
    texts = np.random.default_rng(0).integers(3, VOCAB, (2, 32))
    T, N = 21, len(PARENTS)
    positions = np.broadcast_to(np.arange(T), (2, T))
    made = target(put(texts[:, :T], np.int32), put(positions, np.int32), attention.causal(put(positions < lengths[:, None])))
    shape = target.config
    kv = cache.empty(shape.num_hidden_layers, 2, shape.num_key_value_heads, 32, shape.head_dim, jnp.float32)
    kv = cache.append(kv, made.rows, put(lengths, np.int32))
    found = np.asarray(target.unembed(made.hidden))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row, :length], logits_of(theirs, texts[row, :length].tolist()), atol=1e-4)

    one = put(np.take_along_axis(texts, lengths[:, None], axis=1), np.int32)
    made = target(one, put(lengths[:, None], np.int32), put(np.ones((2, 1, 1), bool)), kv)
    kv = cache.append(kv, made.rows, put([1, 1], np.int32))
    found = np.asarray(target.unembed(made.hidden))
    for row, length in enumerate(lengths):
        expected = logits_of(theirs, texts[row, : length + 1].tolist())[-1]
        np.testing.assert_allclose(found[row, 0], expected, atol=1e-4)

    nodes = np.random.default_rng(1).integers(3, VOCAB, (2, N))
    paths = [path_to(node) for node in range(N)]
    depth, sees = [len(path) - 1 for path in paths], [[node in path for node in range(N)] for path in paths]
    at = lengths[:, None] + 1 + np.array(depth)
    visible = put(np.broadcast_to(np.array(sees), (2, N, N)))
    found = np.asarray(target.unembed(target(put(nodes, np.int32), put(at, np.int32), visible, kv).hidden))
    for row, length in enumerate(lengths):
        for node, path in enumerate(paths):
            expected = logits_of(theirs, [*texts[row, : length + 1], *nodes[row, path]])[-1]
            np.testing.assert_allclose(found[row, node], expected, atol=1e-4)


def path_to(node: int) -> list[int]:
    return [0] if node == 0 else [*path_to(PARENTS[node]), node]


@pytest.mark.parametrize("name", FLAVOURS)
def test_what_we_write_is_read_the_same_by_transformers_and_by_us(name, tmp_path):
    theirs, folder = flavours.make(name)
    target = weights.load_target(folder)
    weights.save_target(target, tmp_path)
    assert config.target_config(config.read_json(tmp_path, "")) == target.config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(logits_of(again, PROMPT), logits_of(theirs, PROMPT), atol=1e-6)


LAYOUTS = {
    "old": [
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    ],
    "new": [
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    ],
}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_both_layouts_of_a_multimodal_checkpoint_hold_the_same_text_model(name, tmp_path):
    _, folder = flavours.make(name)
    expected = weights.load_target(folder)
    for layout, rules in LAYOUTS.items():
        flavours.rename_tensors(folder, tmp_path / layout, rules)
        loaded = weights.load_target(tmp_path / layout)
        assert loaded.config == expected.config
        for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def random_head(target) -> Drafter:
    return jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), slim(VOCAB, target.config.hidden_size), jnp.float32)


@pytest.mark.parametrize("name", SLOWLY)
def test_greedy_text_is_that_of_generate_and_drafts_change_no_text(name, monkeypatch):
    theirs, folder = flavours.make(name)
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", 8)  # so that the prompt is read in several
    target = weights.load_target(folder)
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = [theirs.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist() for ids in (PROMPT, PROMPT[:9])]
    plain, drafting = Engine(target), Engine(target, Recurrent(random_head(target), Shape(2, 3)))
    texts = {}
    for engine in (plain, drafting):
        for how in (Sampling(), Sampling(0.8)):
            replies = list(engine.generate([PROMPT, PROMPT[:9]], how, Limits(40), batch=2))
            texts[engine is plain, how] = [reply.token_ids for reply in replies]
    assert texts[True, Sampling()] == expected
    assert texts[False, Sampling()] == expected
    assert texts[False, Sampling(0.8)] == texts[True, Sampling(0.8)] != expected


def test_a_small_model_with_windows_drafts_beams_and_changes_no_text():
    target = weights.load_target(flavours.make("gemma3")[1])
    expected = [reply.token_ids for reply in Engine(target).generate([PROMPT], Sampling(0.8), Limits(24))]
    drafting = Engine(target, SmallModel(target, Shape(2, 4)))
    replies = list(drafting.generate([PROMPT], Sampling(0.8), Limits(24)))
    assert [reply.token_ids for reply in replies] == expected
    assert replies[0].tokens_per_step > 4.5  # its drafts are the target's own choices, so all are taken


def learned(folder, mesh: tuple[int, int]) -> tuple[float, list[list[int]]]:
    """The loss of a training step, and a text, on a mesh."""
    jax.set_mesh(make_mesh(*mesh))
    target = weights.load_target(folder)
    schedule = step.Schedule(10, warmup=0)
    state = step.HeadState(jnp.int32(0), head := random_head(target), schedule.optimizer().init(head))
    batch = rows.put_unpacked(np.random.default_rng(0).integers(0, VOCAB, (8, 16)))
    after, metrics = jax.jit(step.step, static_argnums=(3, 4))(state, target, batch, schedule, LossConfig(2, 0.5))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(after.drafter))
    assert float(metrics.gradient_norm) > 1e-3
    engine = Engine(target, Recurrent(after.drafter, Shape(2, 2)))
    replies = engine.generate([PROMPT, PROMPT[:9]] * 4, Sampling(0.8), Limits(16), batch=8)
    return np.asarray(metrics.loss.loss).tolist(), [reply.token_ids for reply in replies]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gemma3" else pytest.mark.slow) for name in FLAVOURS if name not in MULTIMODAL]
)
def test_a_mesh_gives_the_loss_and_the_text_of_one_device(name):
    _, folder = flavours.make(name)
    loss, texts = learned(folder, (1, 1))
    other_loss, other_texts = learned(folder, (2, 4))
    assert np.all(np.isfinite(loss))
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    assert other_texts == texts


def test_a_norm_over_all_heads_is_split_over_devices_with_repeated_key_heads():
    """The cheaper part of the test above, for the one family whose norm reads all shards."""
    theirs, folder = flavours.make("olmo2")
    jax.set_mesh(make_mesh(2, 4))
    target = weights.load_target(folder)
    assert target.config.num_key_value_heads == 4
    ids = np.array([PROMPT, PROMPT[::-1]])
    positions = put(np.broadcast_to(np.arange(23), ids.shape), np.int32)
    found = target.unembed(target(put(ids, np.int32), positions, attention.causal(positions >= 0)).hidden)
    for row in range(2):
        np.testing.assert_allclose(np.asarray(found)[row], logits_of(theirs, ids[row].tolist()), atol=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "mistral with a window"])
def test_training_reads_packed_examples_and_labels_them_within_their_windows(name):
    theirs, folder = flavours.make(name)
    target = weights.load_target(folder)
    tokens = np.random.default_rng(2).integers(3, VOCAB, (1, 18))
    segments, positions = np.array([[1] * 10 + [2] * 8]), np.array([[*range(10), *range(8)]])
    batch = rows.Batch(*(put(each, np.int32) for each in (tokens, tokens, segments, positions)))
    text = step.read(target, batch)
    found = np.asarray(target.unembed(text.hidden))[0]
    paths = np.asarray(labels.paths(target, batch, text, 4))[0]
    for first, last in ((0, 10), (10, 18)):
        np.testing.assert_allclose(found[first:last], logits_of(theirs, tokens[0, first:last].tolist()), atol=1e-4)
        for place in range(first, last):
            ids = tokens[0, first : place + 1].tolist()
            for _ in range(4):
                ids.append(int(logits_of(theirs, ids)[-1].argmax()))
            assert paths[place].tolist() == ids[-4:]
