"""`train.candidates`: the decomposition, the command, and what it refuses."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from redrafter_jax.files import weights
from redrafter_jax.model import attention, vocabulary
from redrafter_jax.model.drafter import Drafter, full, slim
from tests.draft_vocabularies import random_head
from tests.support import MODELS, load_target, medusa_heads, put, with_features, with_parts
from tests.texts import with_tokenizer
from tests.training import same
from train import candidates
from train.run import beginning


def test_the_factors_are_those_of_numpys_singular_values(monkeypatch):
    monkeypatch.setattr(candidates, "COLUMNS_AT_ONCE", 7)
    matrix = np.random.default_rng(0).normal(size=(12, 40)).astype(np.float32)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    for rank in (1, 5, 12):
        down, up, share = candidates.decompose(matrix, rank)
        assert down.shape == (12, rank) and up.shape == (rank, 40) and down.dtype == up.dtype == np.float32
        np.testing.assert_allclose(down @ up, left[:, :rank] @ (values[:rank, None] * right[:rank]), atol=1e-5)
        assert share == pytest.approx((values[:rank] ** 2).sum() / (values**2).sum(), rel=1e-5)


def test_a_matrix_with_fewer_tokens_than_features_is_decomposed_too():
    matrix = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    down, up, share = candidates.decompose(matrix, 12)
    np.testing.assert_allclose(down @ up, matrix, atol=1e-5)
    assert share == pytest.approx(1)


def test_with_exits_the_factors_are_the_best_for_their_logits():
    """Against NumPy's own factors of the logits; exits that stay in few directions need no greater rank."""
    rng = np.random.default_rng(0)
    matrix, exits = rng.normal(size=(12, 40)), rng.normal(size=(500, 12)) * 2.0 ** -np.arange(12)
    exits = exits @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
    down, up, share = candidates.decompose(matrix, 4, exits.T @ exits / len(exits))
    left, values, right = np.linalg.svd(exits @ matrix, full_matrices=False)
    best = ((values[4:]) ** 2).sum() / (values**2).sum()
    off = lambda *factors: ((exits @ matrix - exits @ factors[0] @ factors[1]) ** 2).sum() / (values**2).sum()  # noqa: E731
    assert best <= off(down, up) < 1.05 * best and share == pytest.approx(1 - best, abs=0.01)
    assert off(*candidates.decompose(matrix, 4)[:2]) > 10 * best  # the control


def test_the_squares_are_of_the_heads_exits_along_the_text(monkeypatch):
    monkeypatch.setattr(candidates, "ROWS", 8)
    monkeypatch.setattr(candidates, "ROW_TOKENS", 16)
    target, head = load_target("mha"), random_head(load_target("mha"), "slim")
    stream = np.random.default_rng(0).integers(0, 503, 16)
    found = candidates.squares_of_exits(target, head, stream)  # eight times the same row
    tokens = put(stream[None], np.int32)
    hidden = target(tokens, put(np.arange(16)[None], np.int32), attention.causal(tokens >= 0)).hidden
    expected, count = np.zeros((64, 64)), 0
    for place in range(16 - candidates.POSITIONS):
        state, h = put(np.zeros((1, 64)), np.float32), hidden[:, place]
        for ahead in stream[place + 1 : place + 1 + candidates.POSITIONS]:
            state = head.advance(state, target.embed(put([ahead], np.int32)))
            z = np.asarray(head.exit(head.context(h), state))[0]
            expected, count = expected + np.outer(z, z), count + 1
    np.testing.assert_allclose(found, expected / count, rtol=1e-3, atol=1e-4)


def test_a_text_makes_other_factors_of_the_same_head(tmp_path, capsys):
    target = load_target("mha")
    weights.save_drafter(random_head(target, "slim"), tmp_path / "head")
    (tmp_path / "notes.txt").write_text("".join(f"{n} times {n} is {n * n}. " for n in range(300)))
    folder, found = str(with_tokenizer(tmp_path / "target")), []
    for more in ((), ("--text", str(tmp_path / "notes.txt"))):
        assert run(tmp_path / "head", tmp_path / f"few{len(found)}", "--target", folder, *more) == 0
        found.append(load_file(tmp_path / f"few{len(found)}" / "model.safetensors"))
    assert "of the logits, squared" in capsys.readouterr().out
    changed = {name for name in found[0] if not np.array_equal(found[0][name], found[1][name])}
    assert changed == {"candidates.down.weight", "candidates.up.weight"}
    assert run(tmp_path / "head", tmp_path / "few", "--glob", "*.md") == 2
    assert "--glob chooses among the files of --text" in capsys.readouterr().err


HEADS = {
    "slim": lambda target: random_head(target, "slim"),
    "full": lambda target: random_head(target, "full"),
    "with parts": lambda target: with_parts(random_head(target, "slim")),
}


def run(head, output, *more) -> int:
    given = ["--target", str(MODELS / "target_mha"), "--drafter", str(head), "--output", str(output)]
    return candidates.command([*given, "--rank", "8", "--candidates", "32", *more])


def test_the_exits_of_a_head_that_reads_inner_layers_are_those_with_them():
    target = load_target("mha")
    slim = random_head(target, "slim")
    stream, grown = np.random.default_rng(0).integers(0, 503, 2000).tolist(), with_features(slim)
    untrained = beginning.grow(slim, grown.config.make(jax.random.key(0)))
    plain, zero, reads = (candidates.squares_of_exits(target, head, stream) for head in (slim, untrained, grown))
    np.testing.assert_allclose(zero, plain, atol=1e-6 * np.abs(plain).max())
    assert np.abs(reads - plain).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize("kind", HEADS)
def test_the_command_writes_the_same_head_with_candidates(kind, tmp_path, capsys):
    head = HEADS[kind](load_target("mha"))
    weights.save_drafter(head, tmp_path / "head", trained_for={"vocab_size": 503})
    (tmp_path / "head" / "README.md").write_text("a card")
    assert run(tmp_path / "head", tmp_path / "few") == 0
    out = capsys.readouterr().out
    assert out.startswith("rank 8 keeps ") and str(tmp_path / "few") in out
    few = weights.load_drafter(tmp_path / "few")
    assert (few.config.candidates, few.config.candidate_rank) == (32, 8)
    same(vocabulary.without_candidates(few), head)
    assert vocabulary.without_candidates(few).config == head.config
    before, now = (load_file(tmp_path / name / "model.safetensors") for name in ("head", "few"))
    assert set(now) - set(before) == {"candidates.down.weight", "candidates.up.weight"} and set(before) <= set(now)
    for name, value in before.items():
        np.testing.assert_array_equal(now[name], value)
    matrix = np.asarray(head.columns(load_target("mha")))
    matrix = matrix if head.bigram is None else np.concatenate([matrix, np.asarray(head.bigram.columns[...])])
    expected = candidates.decompose(matrix, 8)
    np.testing.assert_array_equal(now["candidates.down.weight"].T, expected[0])
    np.testing.assert_array_equal(now["candidates.up.weight"].T, expected[1])
    assert "with 32 candidates of rank 8" in (tmp_path / "few" / "README.md").read_text()
    fields = json.loads((tmp_path / "few" / "config.json").read_text())
    assert fields["redrafter_jax_target"] == {"vocab_size": 503}


def test_a_head_with_candidates_gets_others_and_begins_a_run_without_them(tmp_path):
    target = load_target("mha")
    head = random_head(target, "full")
    weights.save_drafter(head, tmp_path / "head")
    assert run(tmp_path / "head", tmp_path / "few") == 0
    assert run(tmp_path / "few", tmp_path / "more", "--rank", "16", "--candidates", "64") == 0
    more = weights.load_drafter(tmp_path / "more")
    assert (more.config.candidates, more.config.candidate_rank) == (64, 16)
    same(vocabulary.without_candidates(more), head)
    same(beginning.load(tmp_path / "more", full(503, 64)), head)


def test_a_head_in_bfloat16_stays_in_it(tmp_path):
    head = vocabulary.cast(random_head(load_target("mha"), "full"), "bfloat16")
    weights.save_drafter(head, tmp_path / "head")
    assert run(tmp_path / "head", tmp_path / "few") == 0
    few = weights.load_drafter(tmp_path / "few", "bfloat16")
    same(vocabulary.without_candidates(few), head)
    assert json.loads((tmp_path / "few" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.fixture(scope="module")
def slim_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("candidates") / "head"
    weights.save_drafter(Drafter(jax.random.key(1), slim(503, 64)), place)
    return place


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--rank", "65"), "error: --rank should be from 1 to 64, the rank of the LM head's matrix, not 65"),
        (("--rank", "0"), "error: --rank should be from 1 to 64"),
        (("--candidates", "504"), "error: --candidates should be from 1 to the vocabulary of 503, not 504"),
        (("--candidates", "0"), "error: --candidates should be from 1 to"),
        (("--target", str(MODELS / "target_gqa")), "error: --drafter: the head is for a target with hidden_size 64"),
    ],
)
def test_wrong_options_are_one_sentence(more, sentence, slim_folder, tmp_path, capsys):
    assert run(slim_folder, tmp_path / "few", *more) == 2
    assert capsys.readouterr().err.startswith(sentence) and not (tmp_path / "few").exists()


def test_other_heads_and_the_heads_own_folder_are_refused(slim_folder, tmp_path, capsys):
    target = load_target("mha")
    weights.save_drafter(random_head(target, "slim", np.arange(48)), tmp_path / "cut")
    assert run(tmp_path / "cut", tmp_path / "few") == 2
    assert "--candidates are of all tokens, and this head has a draft vocabulary of 48" in capsys.readouterr().err
    from redrafter_jax.files import heads

    heads.save_head(medusa_heads(target.config), tmp_path / "medusa")
    assert run(tmp_path / "medusa", tmp_path / "few") == 2
    assert "are Medusa's; give a recurrent head" in capsys.readouterr().err
    assert run(slim_folder, slim_folder) == 2
    assert "--output is the folder of --drafter, which is kept" in capsys.readouterr().err
