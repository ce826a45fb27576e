"""A draft vocabulary: fewer drafts, the same text; the loss; the table on disk and in training; the whole one for Apple's code."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from redrafter_jax import loss
from redrafter_jax.decode import loop
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose import recurrent
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.devices.mesh import is_spread, make_mesh, spread
from redrafter_jax.devices.mesh_choice import check
from redrafter_jax.devices.placement import Footprint
from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from redrafter_jax.model import vocabulary
from redrafter_jax.model.drafter import Drafter, DrafterConfig
from redrafter_jax.model.target import Target, TargetConfig
from tests.draft_vocabularies import HEADS, U, cut, random_head
from tests.support import PROMPTS, put
from tests.training import recipe, same
from train import main
from train.data import rows
from train.run import step


@pytest.fixture(scope="module")
def frequent(mha):
    """The U ids that the target says most, and plain decoding's text for greedy and coupled sampling."""
    ways = {way: list(Engine(mha[0]).generate(PROMPTS, way, Limits(60), batch=5)) for way in (Sampling(), Sampling(1.0))}
    said = [{"tokens": r.token_ids, "labelled": np.ones(len(r.token_ids))} for replies in ways.values() for r in replies]
    return rows.find_most_frequent(said, 503, U), {way: [r.token_ids for r in replies] for way, replies in ways.items()}


@pytest.mark.parametrize(
    "shape",
    [Shape(4, 4, tree="beams")]
    + [pytest.param(shape, marks=pytest.mark.slow) for shape in (Shape(1, 3), Shape(4, 3, draft_top_k=7))],
    ids=str,
)
@pytest.mark.parametrize("kind", [pytest.param("golden", marks=pytest.mark.slow), "slim"])
def test_fewer_drafts_are_possible_and_the_text_is_the_same(mha, frequent, kind, shape):
    target, drafter = mha
    ids, plain = frequent
    head = cut(drafter, ids) if kind == "golden" else random_head(target, kind, ids)
    engine = Engine(target, Recurrent(head, shape))
    for way, expected in plain.items():
        replies = list(engine.generate(PROMPTS, way, Limits(60), batch=5))
        assert [reply.token_ids for reply in replies] == expected
        accepted = {token for r in replies for token, is_draft in zip(r.token_ids, r.drafted, strict=True) if is_draft}
        assert accepted <= set(ids.tolist())
        assert accepted or kind == "slim"  # a random head need not be right


@pytest.mark.parametrize("kind", ["full", "slim"])
@pytest.mark.parametrize("sees_noise", [False, True])
def test_the_search_is_that_of_the_whole_head_with_the_other_tokens_ruled_out(mha, kind, sees_noise):
    target, _ = mha
    ids = np.sort(np.random.default_rng(0).permutation(503)[:U])
    head = random_head(target, kind)
    h, g = put(np.random.default_rng(1).normal(size=(2, 64)), np.float32), put([17, 400], np.int32)
    noise = put(np.random.default_rng(2).gumbel(size=(2, 3, 503)), np.float32)
    outside = put(np.broadcast_to(np.where(np.isin(np.arange(503), ids), 0, -np.inf), (2, 3, 503)), np.float32)
    found = recurrent.draft(target, cut(head, ids), h, g, 4, 3, None, noise if sees_noise else None)
    expected = recurrent.draft(target, head, h, g, 4, 3, None, outside + noise if sees_noise else outside)
    for ours, theirs in ((found.tokens, expected.tokens), (found.parents, expected.parents)):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_the_columns_of_a_slim_head_are_gathered_once(mha):
    target, _ = mha
    head = random_head(target, "slim", np.arange(7, 7 + U))
    ready = Engine(target, Recurrent(head)).proposer.head
    assert ready.lm_head[...].shape == (64, U) and ready.config == dataclasses.replace(head.config, tied=False)
    np.testing.assert_array_equal(ready.lm_head[...], target.lm_head[...][:, 7 : 7 + U])
    assert Engine(target, Recurrent(ready)).proposer.head is ready


def test_requests_of_a_bucket_still_share_one_program(mha):
    engine = Engine(mha[0], Recurrent(cut(mha[1], np.arange(U)), Shape(2, 3)))
    list(engine.generate([[1, 2, 3]], Sampling(0.7), Limits(40)))
    before = loop.start._cache_size(), loop.run._cache_size()
    list(engine.stream([[9] * 17], Sampling(1.3), Limits(33), seeds=[5], rounds=2))
    other = Engine(mha[0], Recurrent(cut(mha[1], np.arange(100, 100 + U)), Shape(2, 3)))  # which ids is data, not shape
    list(other.generate([[4, 5]], Sampling(0.2), Limits(64)))
    assert (loop.start._cache_size(), loop.run._cache_size()) == before


# On disk


@pytest.mark.parametrize("kind", ["full", "slim"])
def test_a_head_and_its_table_travel_through_a_folder_byte_for_byte(mha, kind, tmp_path):
    ids = np.arange(400, 503, 2)  # not whole in bfloat16
    head = vocabulary.cast(random_head(mha[0], kind, ids), jnp.bfloat16)
    weights.save_drafter(head, tmp_path / "one")
    again = weights.load_drafter(tmp_path / "one", "bfloat16")
    assert again.config == head.config
    same(again, head)
    weights.save_drafter(again, tmp_path / "two")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    "kind, blocks",
    [pytest.param(*case, marks=pytest.mark.slow) for case in (("full", 2), ("full", 0), ("slim", 1))] + [("slim", 2)],
)
def test_written_for_apples_code_the_drafts_are_the_same_and_the_rest_is_never_drafted(mha, frequent, kind, blocks, tmp_path):
    target, _ = mha
    ids, plain = frequent
    head = random_head(target, kind, ids, blocks)
    weights.save_drafter(head, tmp_path / "head", target)
    fields = json.loads((tmp_path / "head" / "config.json").read_text())
    assert not {"draft_vocab_size", "tied_lm_head"} & set(fields) and fields["vocab_size"] == 503
    exported = weights.load_drafter(tmp_path / "head")
    assert exported.ids is None and exported.lm_head[...].shape == (exported.config.exit_size, 503)
    rng = np.random.default_rng(1)
    h, state = (put(rng.normal(size=(4, 64)), np.float32) for _ in range(2))
    logits, whole = (x.unembed(x.exit(x.context(h), state), target) for x in (head, exported))
    np.testing.assert_allclose(np.asarray(whole)[:, ids], logits, atol=1e-4)
    outside = np.setdiff1d(np.arange(503), ids)
    np.testing.assert_array_equal(np.asarray(whole)[:, outside], vocabulary.LOGIT_OF_OTHERS)
    engines = [Engine(target, Recurrent(each, Shape(4, 4))) for each in (head, exported)]
    for way, expected in plain.items():
        original, other = (list(engine.generate(PROMPTS, way, Limits(60), batch=5)) for engine in engines)
        assert [reply.token_ids for reply in other] == expected
        assert [reply.drafted for reply in other] == [reply.drafted for reply in original]


@pytest.mark.parametrize(
    "table, words",
    [([5, 4], "ascending ids from 0 to 502"), ([4, 4], "each once"), ([4, 503], "from 0 to 502"), ([-1, 4], "from 0"),
     ([4.0, 5.0], "draft_ids in .* whole numbers"), ([4], "draft_ids in .* shape"), (None, "lacks the tensor draft_ids")],
)  # fmt: skip
def test_a_table_that_is_none_is_refused(mha, table, words, tmp_path):
    weights.save_drafter(random_head(mha[0], "slim", np.arange(2)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if table is None:
        del tensors["draft_ids"]
    else:
        tensors["draft_ids"] = np.asarray(table, np.float32 if isinstance(table[0], float) else np.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=words):
        weights.load_drafter(tmp_path)


def test_a_config_with_more_drafts_than_tokens_is_refused(mha, tmp_path):
    weights.save_drafter(random_head(mha[0], "slim", np.arange(2)), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"draft_vocab_size": 2', '"draft_vocab_size": 504'))
    with pytest.raises(BadInput, match="draft_vocab_size in config.json should be at most vocab_size 503"):
        weights.load_drafter(tmp_path)


def test_a_mesh_that_does_not_divide_the_draft_vocabulary_is_refused():
    target = TargetConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=8,
    )
    with pytest.raises(BadInput, match="--mesh 1 8: 8 does not divide the head's draft vocabulary of 12 tokens"):
        check(
            Footprint(target, DrafterConfig(vocab_size=256, hidden_size=64, exit_size=128, draft_vocab=12)),
            (1, 8),
            8,
            what="--mesh",
        )
    in_training = main.load_of(main.Options(pathlib.Path("target"), recipe=recipe(1, head_vocab=12, batch=8)), target)
    assert in_training.why_not(1, 8) == "8 does not divide the head's draft vocabulary of 12 tokens"
    assert in_training.why_not(1, 4) is None


# Meshes


def decode(mesh: tuple[int, int], kind: str, sampling: Sampling) -> tuple[list, list]:
    jax.set_mesh(make_mesh(*mesh))
    target = jax.jit(Target, static_argnums=(1, 2))(
        jax.random.key(0),
        TargetConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=8,
        ),
        jnp.float32,
    )
    config = dataclasses.replace(HEADS[kind](256, 64), draft_vocab=64)
    drafter = jax.jit(Drafter, static_argnums=(1, 2))(jax.random.key(1), config, jnp.float32, jnp.arange(3, 256, 4)[:64])
    prompts = [[row + 1] * (row + 2) for row in range(8)]
    replies = list(Engine(target, Recurrent(drafter, Shape(4, 3))).generate(prompts, sampling, Limits(24), batch=8))
    return [reply.token_ids for reply in replies], [reply.accepted_histogram for reply in replies]


@pytest.mark.slow
@pytest.mark.parametrize("kind, sampling", [("full", Sampling()), ("slim", Sampling(1.0))], ids=["full", "slim, coupled"])
def test_every_mesh_drafts_and_decodes_what_one_device_does(kind, sampling):
    expected = decode((1, 1), kind, sampling)
    for mesh in ((1, 8), (2, 4)):
        assert decode(mesh, kind, sampling) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_a_step_on_a_mesh_is_that_of_one_device(kind):
    """And so is what the head then drafts, also where the weights are split over both axes."""
    losses, replies = [], []
    for mesh, over_data in (((1, 1), False), ((2, 4), False), ((2, 4), True)):
        jax.set_mesh(make_mesh(*mesh))
        shapes = TargetConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=8,
        )
        target = jax.jit(lambda: spread(Target(jax.random.key(0), shapes, jnp.float32), over_data))()  # noqa: B023
        schedule, config = step.Schedule(10, warmup=0), dataclasses.replace(HEADS[kind](256, 64), draft_vocab=64)
        state = jax.jit(functools.partial(step.start, jax.random.key(1), config, schedule, np.arange(64) * 4, over_data))()
        update = jax.jit(functools.partial(step.step, schedule=schedule, config=loss.LossConfig(2, 0.5)))
        batch = rows.put_unpacked(np.random.default_rng(0).integers(0, 256, (4, 16)))
        for _ in range(2):
            state, metrics = update(state, target, batch)
        losses.append(np.asarray(metrics.loss.loss))
        assert state.drafter.ids[...].tolist() == list(range(0, 256, 4))
        assert is_spread(state.drafter) == over_data
        prompts = [[row + 1] * (row + 2) for row in range(4)]
        decoded = Engine(target, Recurrent(state.drafter, Shape(2, 2))).generate(prompts, Sampling(), Limits(8), batch=4)
        replies.append([(reply.token_ids, reply.drafted) for reply in decoded])
    for other in (1, 2):
        np.testing.assert_allclose(losses[0], losses[other], rtol=1e-5)
        assert replies[other] == replies[0]
