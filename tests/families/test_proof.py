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
from redrafter_jax.decode.propose import small_model
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import config, weights
from redrafter_jax.loss import LossConfig
from redrafter_jax.model import attention, cache
from redrafter_jax.model.drafter import Drafter, slim
from redrafter_jax.model.layers import take_rows
from redrafter_jax.model.target import Pass
from tests.families import flavours
from tests.families.flavours import FLAVOURS, MULTIMODAL, VOCAB
from tests.support import put
from train.data import rows
from train.run import labels, step

QUICK = ("gemma3",)  # whose windows, ropes and norms are those of the others; in the default suite also where it takes seconds
SLOWLY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FLAVOURS if name not in MULTIMODAL]
PROMPT = (np.arange(23) * 37 % 101 + 7).tolist()
PARENTS = [0, 0, 1, 2, 3, 0, 5, 2]  # of a tree that is deeper than the windows are wide


def logits_of(theirs, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("name", FLAVOURS)
def test_logits_of_a_prompt_and_of_a_tree_behind_a_cache_are_equal(name):
    """The tree's root is a token that is decoded alone."""
    theirs, folder = flavours.make(name)
    target = weights.load_target(folder)
    lengths, N = np.array([21, 13]), len(PARENTS)
    texts = np.random.default_rng(0).integers(3, VOCAB, (2, 21))
    made, kv = read(target, texts, lengths)
    found = np.asarray(target.unembed(made.hidden))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row, :length], logits_of(theirs, texts[row, :length].tolist()), atol=1e-4)

    nodes = np.random.default_rng(1).integers(3, VOCAB, (2, N))
    paths = [path_to(node) for node in range(N)]
    depth, sees = [len(path) - 1 for path in paths], [[node in path for node in range(N)] for path in paths]
    at = lengths[:, None] + np.array(depth)
    visible = put(np.broadcast_to(np.array(sees), (2, N, N)))
    found = np.asarray(target.unembed(run(target, put(nodes, np.int32), put(at, np.int32), visible, kv).hidden))
    for row, length in enumerate(lengths):
        for node, path in enumerate(paths):
            expected = logits_of(theirs, [*texts[row, :length], *nodes[row, path]])[-1]
            np.testing.assert_allclose(found[row, node], expected, atol=1e-4)


def read(target, texts: np.ndarray, lengths: np.ndarray) -> tuple[Pass, cache.KVCache]:
    """A pass over left-aligned texts, and the cache behind them; of shapes that several tests share, to compile them once."""
    shape, positions = target.config, put(np.broadcast_to(np.arange(texts.shape[1]), texts.shape), np.int32)
    made = run(target, put(texts, np.int32), positions, attention.causal(positions < put(lengths, np.int32)[:, None]))
    kv = cache.empty(shape.num_hidden_layers, len(texts), shape.num_key_value_heads, 64, shape.head_dim, jnp.float32)
    return made, cache.append(kv, made.rows, put(lengths, np.int32))


compiled = jax.jit(lambda target, *given: target(*given))


def run(target, *given) -> Pass:
    """A pass. The operations of most families are compiled one by one, and shared by tests; those of experts cannot be."""
    return compiled(target, *given) if target.config.num_experts else target(*given)


def path_to(node: int) -> list[int]:
    return [0] if node == 0 else [*path_to(PARENTS[node]), node]


@pytest.mark.parametrize("name", FLAVOURS)
def test_what_we_write_is_read_the_same_by_transformers_and_by_us(name, tmp_path):
    theirs, folder = flavours.make(name)
    target = weights.load_target(folder)
    weights.save_target(target, tmp_path, **flavours.SPECIAL)
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
    prompts, ways = [PROMPT, PROMPT[:9], PROMPT, PROMPT[:9]], [Sampling(), Sampling(), Sampling(0.8), Sampling(0.8)]
    greedy = [theirs.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist() for ids in prompts[:2]]
    engines = [Engine(target), Engine(target, Recurrent(random_head(target), Shape(2, 3)))]
    plain, drafting = [[r.token_ids for r in engine.generate(prompts, ways, Limits(40), batch=4)] for engine in engines]
    assert plain[:2] == greedy
    assert drafting == plain
    assert plain[2:] != greedy


def test_a_beam_of_a_small_model_sees_its_own_drafts_within_its_windows():
    """Each drafted position takes as many slots of the cache as there are beams, so that slots are no positions there."""
    theirs, folder = flavours.make("gemma3")
    model = weights.load_target(folder)
    lengths, beams = np.array([21, 13]), 8
    texts = np.random.default_rng(0).integers(3, VOCAB, (2, 21))
    made, kv = read(model, texts, lengths)
    behind = model.unembed(take_rows(made.hidden, put(lengths - 1, np.int32)[:, None]))[:, 0]
    reader = small_model._Reader(model, kv, behind, put(lengths - 1, np.int32), beams)
    _, state = reader.step(reader.start(), put(np.zeros((2, beams)), np.int32))  # behind the text, whose last token is g
    drafts = np.random.default_rng(1).integers(3, VOCAB, (2, beams, 4))
    for depth in range(4):
        found, state = reader.step(state, put(drafts[:, :, depth], np.int32))
    for row, length in enumerate(lengths):
        for beam in range(beams):
            expected = logits_of(theirs, [*texts[row, :length], *drafts[row, beam]])[-1]
            np.testing.assert_allclose(np.asarray(found)[row, beam], expected, atol=1e-4)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FLAVOURS if name not in MULTIMODAL])
def test_a_mesh_gives_the_loss_and_the_text_of_one_device(name):
    _, folder = flavours.make(name)
    loss, texts = learned(folder, (1, 1))
    other_loss, other_texts = learned(folder, (2, 4))
    assert np.all(np.isfinite(loss))
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    assert other_texts == texts


@pytest.mark.parametrize("name", ["olmo2", "gemma3", "qwen3_moe"])
def test_what_is_split_over_a_mesh_with_repeated_key_heads_computes_the_same(name):
    """The cheaper part of the test above, for the norm that reads all shards, for experts, and for a family that has all else."""
    theirs, folder = flavours.make(name)
    jax.set_mesh(make_mesh(2, 4))
    target = weights.load_target(folder)
    assert target.config.num_key_value_heads == 4
    ids = np.array([PROMPT[:21], PROMPT[:1:-1]])
    made, _ = read(target, ids, np.array([21, 21]))
    found = np.asarray(target.unembed(made.hidden))
    for row in range(2):
        np.testing.assert_allclose(found[row], logits_of(theirs, ids[row].tolist()), atol=1e-4)


@pytest.mark.parametrize("name", ["gemma3", pytest.param("mistral with a window", marks=pytest.mark.slow)])
def test_training_reads_packed_examples_and_labels_them_within_their_windows(name):
    theirs, folder = flavours.make(name)
    target = weights.load_target(folder)
    tokens = np.random.default_rng(2).integers(3, VOCAB, (2, 21))
    segments, positions = np.array([[1] * 12 + [2] * 9] * 2), np.array([[*range(12), *range(9)]] * 2)
    batch = rows.Batch(*(put(each, np.int32) for each in (tokens, tokens, segments, positions)))
    text = step.read(target, batch)
    found = np.asarray(target.unembed(text.hidden))[0]
    paths = np.asarray(labels.paths(target, batch, text, 3))[0]
    for first, last in ((0, 12), (12, 21)):
        np.testing.assert_allclose(found[first:last], logits_of(theirs, tokens[0, first:last].tolist()), atol=1e-4)
        for place in range(first, last):
            ids = tokens[0, first : place + 1].tolist()
            for _ in range(3):
                ids.append(int(logits_of(theirs, ids)[-1].argmax()))
            assert paths[place].tolist() == ids[-3:]
