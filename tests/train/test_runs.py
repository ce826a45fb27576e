"""What a run saves, compares and refuses: its configuration, checkpoints, log, evaluations and card."""

import dataclasses
import json
import math
import pathlib
import shutil
import time

import jax.numpy as jnp
import pytest

from redrafter_jax.errors import BadInput
from redrafter_jax.files import checkpoint, damage, weights
from tests.damaged import empty_all
from tests.support import load_target
from tests.texts import with_tokenizer
from tests.training import examples, idle, is_asked_to_end, metrics, recipe, stops_after
from train import export, main, plot
from train.data import rows
from train.run import configuration, evaluation, log, loop, step, stop

SMALL = ["--batch", "2", "--row-length", "32", "--positions", "2", "--warmup", "2", "--log-every", "1"]


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> pathlib.Path:
    return with_tokenizer(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("private") / "notes.txt"
    folder.write_text("".join(f"{n} times {n} is {n * n}. " for n in range(200)))
    return folder


@pytest.fixture(scope="module")
def trained(target, text, tmp_path_factory) -> pathlib.Path:
    """A run of 4 steps with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main.command(training(target, text, folder, "--steps", 4, "--save-every", 2, "--head", "slim", "--no-rnn")) == 0
    return folder


def training(target, text, output, *more) -> list[str]:
    return ["--target", str(target), "--text", str(text), "--output", str(output), *SMALL, *map(str, more)]


def saved(folder: pathlib.Path, *steps: int) -> pathlib.Path:
    for number in steps:
        (folder / str(number)).mkdir(parents=True)
    return folder


def stopped(*_, **__):
    raise stop.Stopped(1, 143)


# Checkpoints and configurations


def test_a_run_removes_what_an_interrupted_save_left(tmp_path):
    unfinished = tmp_path / "4.orbax-checkpoint-tmp" / "head"
    unfinished.mkdir(parents=True)
    with checkpoint.Checkpoints(tmp_path):
        end = time.monotonic() + 10  # it is removed by a thread
        while unfinished.exists() and time.monotonic() < end:
            time.sleep(0.01)
    assert not unfinished.exists()


def test_export_only_reads(target, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    unfinished = folder / "checkpoints" / "6.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert export.command(["--run", str(folder), "--target", str(target), "--output", str(tmp_path / "head")]) == 0
    assert unfinished.exists()


def test_checkpoints_are_compared_by_themselves_whatever_the_output(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    configuration.save(tmp_path / "one", {"rate": 0.1}, "auto", str(elsewhere))
    saved(elsewhere, 2)
    configuration.save(tmp_path / "two", {"rate": 0.1}, "auto", str(elsewhere))
    with pytest.raises(BadInput, match="--checkpoints: .*elsewhere .* rate was 0.1 and is 0.2"):
        configuration.save(tmp_path / "three", {"rate": 0.2}, "auto", str(elsewhere))
    with pytest.raises(BadInput, match="--checkpoints: .*--resume auto"):
        configuration.save(tmp_path / "three", {"rate": 0.1}, "never", str(elsewhere))
    assert not (tmp_path / "three").exists()


def test_checkpoints_without_a_configuration_are_refused_with_what_to_do(tmp_path):
    elsewhere = saved(tmp_path / "elsewhere", 2)
    with pytest.raises(BadInput, match="--checkpoints: .*config.json.*copy it"):
        configuration.save(tmp_path / "new", {"rate": 0.1}, "auto", str(elsewhere))
    (elsewhere / "config.json").write_text("[")
    with pytest.raises(BadInput, match="config.json should be"):
        configuration.save(tmp_path / "new", {"rate": 0.1}, "auto", str(elsewhere))


def test_a_configuration_without_a_checkpoint_binds_nobody(tmp_path):
    configuration.save(tmp_path, {"rate": 0.1}, "auto")
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    configuration.save(tmp_path, {"rate": 0.2}, "never")
    assert json.loads((tmp_path / "config.json").read_text()) == {"rate": 0.2}


def test_the_targets_number_format_is_compared_and_an_older_runs_was_float32(tmp_path):
    saved(tmp_path / "checkpoints", 2)
    (tmp_path / "checkpoints" / "config.json").write_text(json.dumps({"rate": 0.1}))
    configuration.save(tmp_path, {"rate": 0.1, "dtype": "float32"}, "auto")
    with pytest.raises(BadInput, match="dtype was float32 and is bfloat16"):
        configuration.save(tmp_path, {"rate": 0.1, "dtype": "bfloat16"}, "auto")


def test_the_command_compares_before_it_trains_and_keeps_all_options(target, text, trained, tmp_path, capsys):
    again = training(target, text, trained, "--steps", 4, "--save-every", 2, "--head", "slim", "--no-rnn")
    assert main.command([*again, "--dtype", "bfloat16"]) == 2
    assert "dtype was float32 and is bfloat16" in capsys.readouterr().err
    elsewhere = ["--checkpoints", str(trained / "checkpoints"), "--output", str(tmp_path / "new")]
    assert main.command([*again, *elsewhere, "--rate", "0.5"]) == 2
    assert "rate was 0.002 and is 0.5" in capsys.readouterr().err
    assert main.command([*again, *elsewhere, "--resume", "never"]) == 2
    assert "--resume" in capsys.readouterr().err and not (tmp_path / "new" / "head").exists()
    kept = json.loads((trained / "config.json").read_text())
    assert kept["dtype"] == "float32" and kept["not_compared"]["text"] == [str(text)]
    assert kept == json.loads((trained / "checkpoints" / "config.json").read_text())


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "step", idle)
    loop.train_head(load_target("mha"), examples(), recipe(4), tmp_path)
    saves = tmp_path / "checkpoints"
    empty_all(saves / "4")
    loop.train_head(load_target("mha"), examples(), recipe(4), tmp_path)
    told = capsys.readouterr().err
    assert f"checkpoint 4 in {saves} cannot be read (" in told and "it is 4.damaged now\ngoing on from step 2\n" in told
    assert damage.list_steps(saves) == [2, 4] and (saves / "4.damaged").is_dir()
    assert [line["step"] for line in log.read(tmp_path)] == [1, 2, 3, 4]


# Losses that are no numbers


def test_a_gradient_that_is_no_number_is_never_saved(tmp_path, monkeypatch):
    def poisoned(state, target, batch, **how):
        state, given = idle(state)
        return state, dataclasses.replace(given, gradient_norm=jnp.where(state.step == 4, jnp.inf, 1.0))

    monkeypatch.setattr(step, "step", poisoned)
    with pytest.raises(BadInput, match="norm of the gradient is inf at step 4, which read example.*last good checkpoint is step 2"):
        loop.train_head(load_target("mha"), examples(), recipe(6), tmp_path)
    assert damage.list_steps(tmp_path / "checkpoints") == [2]


@pytest.mark.parametrize("every", [1, 100])
def test_a_held_out_loss_that_is_no_number_is_never_saved(every, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "step", idle)
    monkeypatch.setattr(evaluation.Evaluation, "_metrics", lambda *_: {"loss": math.nan})
    monkeypatch.setattr(evaluation, "EVALUATED_SHAPES", ())
    with pytest.raises(BadInput, match="held-out examples is nan after step .*last good checkpoint is none"):
        loop.train_head(load_target("mha"), examples(), recipe(6, evaluate_every=every), tmp_path, examples(3))
    assert not any("held_out_loss" in line for line in log.read(tmp_path))


def test_a_resumed_run_is_measured_against_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "step", idle)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "read_batches", stops_after(rows.read_batches, 3))
        loop.train_head(load_target("mha"), examples(), recipe(6), tmp_path)
    first, *rest = log.read(tmp_path)
    log.path(tmp_path).write_text("".join(json.dumps(line) + "\n" for line in [first | {"loss": 0.1}, *rest]))
    with pytest.raises(loop.Diverged, match="the loss is 2.0 at step 3"):
        loop.train_head(load_target("mha"), examples(), recipe(6), tmp_path)


# What there is to train on


def test_nothing_to_train_on_names_the_option(target, tmp_path, capsys, monkeypatch):
    (tmp_path / "short.txt").write_text("One example.")
    monkeypatch.setattr("train.data.datasets.is_held_out", lambda *_: True)
    assert main.command(training(target, tmp_path / "short.txt", tmp_path / "run", "--steps", 2, "--held-out", 0.5)) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("error: --held-out 0.5") and not (tmp_path / "run" / "config.json").exists()


def test_a_run_without_held_out_examples_says_so(target, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "train_pair", stopped)
    assert main.command(training(target, text, tmp_path / "run", "--steps", 1, "--held-out", 0)) == 143
    assert capsys.readouterr().err.count("no example is held out") == 1


def test_rows_longer_than_the_targets_context_are_refused(target, text, tmp_path, capsys):
    assert main.command(training(target, text, tmp_path / "run", "--row-length", 513, "--steps", 1)) == 2
    assert "--row-length should be at most the target's context of 512, not 513" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# The log


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    log.path(tmp_path).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    assert [line["step"] for line in log.read(tmp_path)] == [1, 2]
    with log.Log(tmp_path, recipe(4), 1, 1.0):
        assert log.path(tmp_path).read_text() == '{"step": 1, "loss": 2.0}\n'
    log.path(tmp_path).write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(BadInput, match="log.jsonl, line 2 should be"):
        log.read(tmp_path)


def test_the_log_is_never_half_there(tmp_path, monkeypatch):
    log.path(tmp_path).write_text('{"step": 1}\n')

    def half(file, text):
        file.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(pathlib.Path, "write_text", half)
    with pytest.raises(OSError):
        log.Log(tmp_path, recipe(4), 1, 1.0)
    assert log.path(tmp_path).read_bytes() == b'{"step": 1}\n'


def test_a_line_is_the_mean_of_an_updates_parts(tmp_path):
    with log.Log(tmp_path, recipe(4), 0, 1.0) as lines:
        lines.step(1, [metrics(2.0, 1.0, 0.5), metrics(4.0, 3.0, 1.0)], 0.1)
    line = log.read(tmp_path)[0]
    assert (line["loss"], line["gradient_norm"], line["fill"], line["accuracy"][0][0]) == (3.0, 2.0, 0.75, 0.3)


def test_speed_leaves_out_what_an_evaluation_took_and_nothing_else(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with log.Log(tmp_path, recipe(20), 0, 1.0) as lines:
        now[0] = 3.0  # three steps of a second
        with lines.pause():
            now[0] = 103.0
        lines.evaluation(3, {"loss": 1.0})
        now[0] = 105.0  # two more
        lines.step(5, [metrics(1.0, 1.0)], 0.1)
    assert log.read(tmp_path)[-1]["tokens_per_second"] == 2 * 32


# Evaluations


@pytest.mark.parametrize(("every", "count"), [(0, 0), (3, 4)])
def test_the_held_out_loss_is_computed_once_a_step_and_not_at_all_without_evaluations(every, count, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(step, "step", idle)
    monkeypatch.setattr(evaluation.Evaluation, "_metrics", lambda *_: counted.append(1) or {"loss": 1.0})
    monkeypatch.setattr(evaluation, "EVALUATED_SHAPES", ())
    loop.train_head(load_target("mha"), examples(), recipe(6, evaluate_every=every), tmp_path, examples(3))
    assert len(counted) == count


def test_a_run_that_is_asked_to_end_at_its_last_step_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "step", idle)
    is_asked_to_end(monkeypatch, batch=1)
    monkeypatch.setattr(evaluation, "EVALUATED_SHAPES", ())
    loop.train_head(load_target("mha"), examples(), recipe(2), tmp_path, examples(3))
    assert log.read(tmp_path)[-1]["held_out_loss"] > 0


# Exports and cards


def exporting(run_, target, output, *more) -> list[str]:
    return list(map(str, ["--run", run_, "--target", target, "--output", output, *more]))


def test_only_a_whole_head_needs_the_targets_weights(target, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "load_target", None)
    assert export.command(exporting(trained, target, tmp_path / "head")) == 0
    assert (tmp_path / "head" / "model.safetensors").exists()


def test_another_target_than_the_runs_is_refused(target, trained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(target, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 12345.0}))
    assert export.command(exporting(trained, other, tmp_path / "head")) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --target: ") and "another target" in err and not (tmp_path / "head").exists()
    older = tmp_path / "older"
    shutil.copytree(trained, older)
    for file in (older / "config.json", older / "checkpoints" / "config.json"):
        file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "target"}))
    assert export.command(exporting(older, other, tmp_path / "head")) == 0


def test_a_card_has_the_figures_of_its_own_step_and_the_command_without_folders(target, text, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    figures = [{"step": number, "held_out_loss": float(number), "held_out_accuracy": []} for number in (1, 3, 4)]
    log.path(folder).write_text("".join(json.dumps(line) + "\n" for line in figures))
    assert loop.read_last_evaluation(folder, 2)["held_out_loss"] == 1.0 and loop.read_last_evaluation(folder, 0) == {}
    assert export.command(exporting(folder, target, tmp_path / "head", "--step", 2)) == 0
    card = (tmp_path / "head" / "README.md").read_text()
    assert (
        "held-out examples after 1 updates" in card
        and "| loss per drafted position | 0.500 |" in card
        and "2 updates of `train.main`" in card
    )
    assert "| data | notes.txt |" in card and str(text.parent) not in card and str(tmp_path) not in card
    line = next(line for line in card.splitlines() if "train.main --target" in line)
    assert main.parse(line.split()[3:]).recipe == dataclasses.replace(
        main.parse(training(target, text, folder, "--steps", 4, "--head", "slim", "--no-rnn")).recipe, log_every=10
    )


# Curves


def test_runs_that_share_a_name_are_told_apart():
    one, two, three = map(pathlib.Path, ("a/run", "b/run", "c/other"))
    assert plot.names((one, two, three)) == {"a/run": one, "b/run": two, "other": three}
