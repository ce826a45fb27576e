"""Training a head and the demo recipe, small: it learns, resumes exactly, holds files out, and refuses bad input."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infer.evaluate import metrics
from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.errors import BadInput
from redrafter_jax.files import checkpoint, weights
from tests.support import MODELS, load_target, put
from tests.training import examples, is_asked_to_end, recipe, same, stops_after
from train import main
from train.data import rows
from train.demo import __main__ as demo
from train.demo import corpus, pretrain, unlikelihood
from train.run import configuration, evaluation, labels, log, step, stop
from train.run import loop as run
from train.run.recipe import Recipe


@pytest.mark.parametrize("head", ["full", "slim"])
def test_a_head_learns_and_travels_through_apples_format(head, tmp_path):
    trained = run.train_head(load_target("mha"), examples(), recipe(30, head=head, rate=1e-2, log_every=5), tmp_path)
    lines = log.read(tmp_path)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    weights.save_drafter(trained, tmp_path / "head")
    again = weights.load_drafter(tmp_path / "head")
    assert again.config == trained.config
    same(again, trained)


def test_a_slim_head_is_exported_with_the_targets_lm_head_for_apples_code(tmp_path):
    target = load_target("mha")
    trained = run.train_head(target, examples(), recipe(2, head="slim"), tmp_path)
    weights.save_drafter(trained, tmp_path / "head", target)
    exported = weights.load_drafter(tmp_path / "head")
    assert not exported.config.tied
    np.testing.assert_array_equal(exported.lm_head[...], target.lm_head[...])


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch):
    target = load_target("mha")
    whole = run.train_head(target, examples(), recipe(6), tmp_path / "whole_")
    monkeypatch.setattr(run, "read_batches", stops_after(rows.read_batches, 4))
    with pytest.raises(KeyboardInterrupt):
        run.train_head(target, examples(), recipe(6), tmp_path / "cut_")
    monkeypatch.undo()
    same(run.train_head(target, examples(), recipe(6), tmp_path / "cut_"), whole)
    assert [line["step"] for line in log.read(tmp_path / "cut_")] == sorted({line["step"] for line in log.read(tmp_path / "cut_")})


def test_a_run_that_is_asked_to_end_saves_and_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    target = load_target("mha")
    whole = run.train_head(target, examples(), recipe(5), tmp_path / "whole_")

    is_asked_to_end(monkeypatch, batch=2)
    with pytest.raises(stop.Stopped) as stopped:
        run.train_head(target, examples(), recipe(5, save_every=100), tmp_path / "cut_")
    monkeypatch.undo()
    assert (stopped.value.step, stopped.value.code) == (3, 143)
    assert log.read(tmp_path / "cut_")[-1]["step"] == 3
    same(run.train_head(target, examples(), recipe(5), tmp_path / "cut_"), whole)


def test_accumulated_parts_make_the_update_of_the_whole_batch(tmp_path):
    target = load_target("mha")
    at_once = run.train_head(target, examples(), recipe(3, batch=4), tmp_path / "one")
    in_parts = run.train_head(target, examples(), recipe(3, batch=4, accumulate=2), tmp_path / "two")
    for ours, theirs in zip(jax.tree.leaves(in_parts), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_loss_that_is_no_number_names_the_step_what_it_read_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    target = load_target("mha")
    poisoned = lambda drafter, *rest: (jnp.nan * drafter.rnn_u.bias[...].sum(), loss_metrics())  # noqa: E731

    def loss_metrics():
        from redrafter_jax.loss import Metrics

        return Metrics(jnp.full(2, jnp.nan), jnp.zeros((2, 5)), *[jnp.zeros(2, jnp.int32)] * 2)

    monkeypatch.setattr(step, "evaluate", poisoned)
    with pytest.raises(BadInput, match="nan at step 1, which read example [0-9]+.*last good checkpoint is none"):
        run.train_head(target, examples(), recipe(4), tmp_path)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(evaluation.Evaluation, "loss", lambda self, *models: next(scores))
    run.train_head(load_target("mha"), examples(), recipe(12), tmp_path)
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as kept:
        assert sorted(kept.steps) == [4, 10, 12]


def test_an_evaluation_reports_loss_accuracy_and_tokens_per_step_on_held_out_examples(tmp_path):
    run.train_head(load_target("mha"), examples(), recipe(4, evaluate_every=4, evaluation_rows=4), tmp_path, examples(5))
    line = next(line for line in log.read(tmp_path) if "held_out_loss" in line)
    assert line["step"] == 4 and np.shape(line["held_out_accuracy"]) == (2, 5)
    assert 1 <= line["held_out_tokens_per_step_1x4"] <= 5 and 1 <= line["held_out_tokens_per_step_4x4"] <= 5
    board = list((tmp_path / "tensorboard").iterdir())
    assert board and board[0].stat().st_size > 1000


def test_a_run_compiles_its_step_once(tmp_path):
    counted = []
    original = step.step
    step_ = lambda *a, **k: counted.append(1) or original(*a, **k)  # noqa: E731  (a trace is a call)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "step", step_)
        run.train_head(load_target("mha"), examples(), recipe(5), tmp_path)
    assert len(counted) == 1


def test_another_configuration_of_what_matters_is_refused_with_the_difference(tmp_path):
    configuration.save(tmp_path, {"rate": 0.1, "save_every": 2}, "auto")
    (tmp_path / "checkpoints" / "2").mkdir()
    configuration.save(tmp_path, {"rate": 0.1, "save_every": 3}, "auto")
    with pytest.raises(BadInput, match="rate was 0.1 and is 0.2"):
        configuration.save(tmp_path, {"rate": 0.2, "save_every": 3}, "auto")
    with pytest.raises(BadInput, match="--resume"):
        configuration.save(tmp_path, {"rate": 0.1, "save_every": 3}, "never")


def test_held_out_files_are_chosen_by_name_and_never_trained_on():
    text = corpus.read()
    held_out = {source.name for source in text.held_out}
    assert held_out.isdisjoint(source.name for source in text.train)
    assert all(map(corpus.is_held_out, held_out))
    assert 0.02 < len(held_out) / (len(held_out) + len(text.train)) < 0.1
    assert not any("/test/" in f"/{source.name}" for source in text.train)


def test_a_text_that_repeats_itself_is_a_loop_and_another_is_not():
    assert metrics.is_loop([1, 2, 3] * 16, 24)
    assert metrics.is_loop([7] * 48, 24)
    assert not metrics.is_loop(list(range(48)), 24)
    assert not metrics.is_loop([1, 2, 3] * 15 + [1, 2, 4], 24)


@pytest.mark.slow
def test_the_demo_recipe_runs_from_source_to_figures_and_skips_what_is_done(tmp_path, monkeypatch):
    small = corpus.Corpus(corpus.read().train[:12], corpus.read().held_out[:4], [])
    monkeypatch.setattr(corpus, "read", lambda packages: small)
    monkeypatch.setattr(metrics, "SHAPES", ((2, 2),))
    monkeypatch.setattr(metrics, "TREES", ("search",))
    monkeypatch.setattr(metrics, "BATCH", 4)
    monkeypatch.setattr(demo, "HEADS", {"drafter_slim": "slim"})
    monkeypatch.setattr(metrics, "Prompts", lambda held_out, count=4, length=16: Prompts(held_out, min(count, 8), min(length, 32)))
    monkeypatch.setattr(evaluation, "EVALUATED_SHAPES", ())
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
        slim_steps=2,
        replies=8,
        unloop_rounds=1,
    )
    demo.main(options)
    result = json.loads((tmp_path / "pair" / "figures.json").read_text())
    assert 1 <= result["drafter_slim"][0]["coupled"] <= 3
    assert result["bits_per_byte"] > 0
    before = (tmp_path / "pair" / "drafter_slim" / "model.safetensors").stat().st_mtime_ns
    demo.main(options)
    assert (tmp_path / "pair" / "drafter_slim" / "model.safetensors").stat().st_mtime_ns == before


Prompts = metrics.Prompts


@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_greedy_labels_are_what_the_target_generates_from_every_place(name):
    """Two examples in a row, and padding; from each place, what plain decoding of that prefix of its example gives."""
    target, rng = load_target(name), np.random.default_rng(0)
    pieces = [{"tokens": rng.integers(1, 90, n).astype(np.int32), "labelled": np.ones(n, bool)} for n in (9, 4)]
    row = rows.Rows(pieces, 15)[0]
    batch = rows.put_batch({key: row[key][None] for key in ("tokens", "labels", "segments", "positions")})
    paths = np.asarray(jax.jit(lambda: labels.paths(target, batch, step.read(target, batch), 4))())
    prompts = [piece["tokens"][: end + 1].tolist() for piece in pieces for end in range(len(piece["tokens"]))]
    replies = Engine(target).generate(prompts, limits=Limits(4), batch=len(prompts))
    np.testing.assert_array_equal(paths[0, :13], [reply.token_ids for reply in replies])


def test_a_head_learns_from_greedy_labels(tmp_path):
    target = load_target("mha")
    paths = recipe(30, labels="greedy", distill_weight=0.0, rate=1e-2, log_every=5)
    run.train_head(target, examples(), paths, tmp_path)
    lines = log.read(tmp_path)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    with pytest.raises(BadInput, match="--labels greedy"):
        recipe(3, labels="greedy", distill_weight=0.5).check()


def test_repetitions_are_found_from_the_third_time_round_on():
    text = [9, 8, 0, *[1, 2, 3, 4, 5, 6, 7] * 4, 9, 8]
    found = unlikelihood.repetitions(np.array(text), 0)
    # the first copy begins at 3, the second at 10, the third at 17, and the last ends at 31
    assert np.flatnonzero(found).tolist() == list(range(3 + 7 + unlikelihood.MIN_REPETITION_TOKENS, 31))
    assert np.flatnonzero(unlikelihood.repetitions(np.array(text), 25)).tolist() == list(range(25, 31))
    assert not unlikelihood.repetitions(np.arange(200), 0).any()


def test_repetitions_are_those_of_their_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        row = np.concatenate([np.tile(rng.integers(0, 3, rng.integers(1, 20)), rng.integers(1, 6)) for _ in range(4)])

        def is_repetition(place, row=row):
            for period in range(1, unlikelihood.MAX_PERIOD_TOKENS + 1):
                needed = max(period, unlikelihood.MIN_REPETITION_TOKENS) + 1
                run = range(place - needed + 1, place + 1)
                if run[0] >= period and all(row[k] == row[k - period] for k in run):
                    return True
            return False

        expected = [is_repetition(place) for place in range(len(row))]
        np.testing.assert_array_equal(unlikelihood.repetitions(row, 0), expected)


def test_what_the_target_repeats_becomes_less_likely():
    """`unlikelihood.step` against its definition, and its effect."""
    rounds = unlikelihood.Rounds(count=1, steps=20, batch=2, muon_rate=0.02, adam_rate=5e-3, warmup=1)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 40))
    text, own = put(tokens, np.int32), put(np.tile(tokens[:, :10], (1, 4)), np.int32)
    repeated = put(np.arange(40) >= np.array([[20], [33]]), bool)
    learning = pretrain.PretrainSchedule(20, warmup=1)
    state = pretrain.begin(load_target("tied"), learning)
    learn = jax.jit(functools.partial(pretrain.step, schedule=learning))
    for _ in range(learning.steps):
        state, _ = learn(state, own)
    state = pretrain.begin(state.target, rounds.schedule())
    update = jax.jit(functools.partial(unlikelihood.step, rounds=rounds))
    likely = lambda state: np.exp(-np.asarray(pretrain.next_token_losses(state.target, own)))[np.asarray(repeated)[:, 1:]]  # noqa: E731
    before, nats = likely(state), float(pretrain.next_token_loss(state.target, text))
    state, losses = update(state, text, own, repeated)
    np.testing.assert_allclose(losses, [nats, -np.log(1 - before).mean()], rtol=1e-4)
    for _ in range(rounds.steps - 1):
        state, losses = update(state, text, own, repeated)
    assert before.mean() > 0.5 and likely(state).mean() < 0.2 and float(losses[0]) < nats


@pytest.mark.parametrize(
    "change, names",
    [({"steps": 0}, "--steps"), ({"distill_weight": 1.5}, "--distill-weight"), ({"row_length": 3}, "--row-length"),
     ({"rate": float("nan")}, "--rate"), ({"seed": -1}, "--seed"), ({"positions": 0}, "--positions"),
     ({"accumulate": 3}, "--accumulate"), ({"clip": 0.0}, "--clip"), ({"weight_decay": 1.0}, "--weight-decay")],
)  # fmt: skip
def test_numbers_out_of_range_are_named(change, names, tmp_path):
    options = main.Options(MODELS / "target_mha", text=(tmp_path,), output=tmp_path / "out", recipe=Recipe(**change))
    with pytest.raises(BadInput, match=names):
        main.main(options)
    assert not (tmp_path / "out").exists()
