"""Training a head and the demo recipe, small: it learns, resumes exactly, holds files out, and refuses bad input."""

import json

import jax
import numpy as np
import pytest

from redrafter_jax import weights
from redrafter_jax.errors import BadInput
from tests.support import MODELS, load_target
from train import corpus, data, demo, figures, main


def recipe(steps: int, **other) -> main.Recipe:
    return main.Recipe(steps=steps, batch=2, row_length=32, positions=2, save_every=2, **other)


def stream(vocab: int = 503) -> np.ndarray:
    return np.tile(np.arange(16, dtype=np.int32) * 7 % vocab, 60)


@pytest.mark.parametrize("head", ["full", "slim"])
def test_a_head_learns_and_travels_through_apples_format(head, tmp_path):
    target = load_target("mha")
    trained = main.train_head(target, stream(), recipe(30, head=head, rate=1e-2), tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    weights.save_drafter(trained, tmp_path / "head")
    again = weights.load_drafter(tmp_path / "head")
    assert again.config == trained.config
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(trained), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_slim_head_is_exported_with_the_targets_lm_head_for_apples_code(tmp_path):
    target = load_target("mha")
    trained = main.train_head(target, stream(), recipe(2, head="slim"), tmp_path)
    weights.save_drafter(trained, tmp_path / "head", target)
    exported = weights.load_drafter(tmp_path / "head")
    assert not exported.config.tied
    np.testing.assert_array_equal(exported.lm_head[...], target.lm_head[...])


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch):
    target = load_target("mha")
    whole = main.train_head(target, stream(), recipe(6), tmp_path / "whole_")
    monkeypatch.setattr(data, "rows", stops_after(data.rows, 4))
    with pytest.raises(KeyboardInterrupt):
        main.train_head(target, stream(), recipe(6), tmp_path / "cut_")
    monkeypatch.undo()
    resumed = main.train_head(target, stream(), recipe(6), tmp_path / "cut_")
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def stops_after(rows, count: int):
    def interrupted(*arguments):
        for index, batch in enumerate(rows(*arguments)):
            if index == count:
                raise KeyboardInterrupt
            yield batch

    return interrupted


def test_what_a_step_reads_depends_on_seed_and_step_alone():
    ids = np.arange(1000, dtype=np.int32)
    whole = list(data.rows(ids, 10, 4, 1, 0, 60))
    np.testing.assert_array_equal(whole[40:], list(data.rows(ids, 10, 4, 1, 40, 60)))
    assert not np.array_equal(whole[0], next(data.rows(ids, 10, 4, 2, 0, 1)))
    first_epoch = np.sort(np.concatenate(whole[:25]).ravel())
    np.testing.assert_array_equal(first_epoch, ids)


def test_held_out_files_are_chosen_by_name_and_never_trained_on():
    text = corpus.read()
    held_out = {source.name for source in text.held_out}
    assert held_out.isdisjoint(source.name for source in text.train)
    assert all(map(corpus.is_held_out, held_out))
    assert 0.02 < len(held_out) / (len(held_out) + len(text.train)) < 0.1
    assert not any("/test/" in f"/{source.name}" for source in text.train)


def test_a_text_that_repeats_itself_is_a_loop_and_another_is_not():
    assert figures.is_loop([1, 2, 3] * 16, 24)
    assert figures.is_loop([7] * 48, 24)
    assert not figures.is_loop(list(range(48)), 24)
    assert not figures.is_loop([1, 2, 3] * 15 + [1, 2, 4], 24)


def test_the_demo_recipe_runs_from_source_to_figures_and_skips_what_is_done(tmp_path, monkeypatch):
    small = corpus.Corpus(corpus.read().train[:12], corpus.read().held_out[:4], [])
    monkeypatch.setattr(corpus, "read", lambda packages: small)
    monkeypatch.setattr(figures, "SHAPES", ((2, 2),))
    monkeypatch.setattr(figures, "TREES", ("search",))
    monkeypatch.setattr(figures, "BATCH", 4)
    monkeypatch.setattr(demo, "HEADS", {"drafter_slim": "slim"})
    monkeypatch.setattr(figures, "Prompts", lambda held_out, count=4: figures_prompts(held_out))
    options = demo.Options(
        work=tmp_path,
        vocab=300,
        width=32,
        layers=1,
        heads=2,
        feed_forward=64,
        row_length=32,
        batch=2,
        steps=3,
        save_every=2,
        head_steps=2,
    )
    demo.main(options)
    result = json.loads((tmp_path / "pair" / "figures.json").read_text())
    assert 1 <= result["drafter_slim"][0]["coupled"] <= 3
    assert result["bits_per_byte"] > 0
    before = (tmp_path / "pair" / "drafter_slim" / "model.safetensors").stat().st_mtime_ns
    demo.main(options)
    assert (tmp_path / "pair" / "drafter_slim" / "model.safetensors").stat().st_mtime_ns == before


Prompts = figures.Prompts


def figures_prompts(held_out) -> Prompts:
    return Prompts(held_out, count=4, length=16)


@pytest.mark.parametrize(
    "change, names",
    [({"steps": 0}, "--steps"), ({"distill_weight": 1.5}, "--distill-weight"), ({"row_length": 3}, "--row-length"),
     ({"rate": float("nan")}, "--rate"), ({"seed": -1}, "--seed"), ({"positions": 0}, "--positions")],
)  # fmt: skip
def test_numbers_out_of_range_are_named(change, names, tmp_path):
    options = main.Options(MODELS / "target_mha", (tmp_path,), tmp_path / "out", recipe=main.Recipe(**change))
    with pytest.raises(BadInput, match=names):
        main.main(options)
    assert not (tmp_path / "out").exists()


def test_text_that_is_missing_or_empty_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(BadInput, match="no file or folder"):
        data.read_text((tmp_path / "none",), None)
    with pytest.raises(BadInput, match="no text"):
        data.read_text((tmp_path / "empty.txt",), None)
    with pytest.raises(BadInput, match="do not fill"):
        next(data.rows(np.arange(5), 4, 2, 0, 0, 1))
