"""No command overwrites a file that it did not write, and a command that refuses leaves no file behind."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure

from infer import programs
from infer.benchmark import __main__ as benchmark
from infer.benchmark import checks
from infer.generate import __main__ as generate
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, weights
from tests.support import MODELS, load_pair
from tests.texts import with_tokenizer
from train import export, main, plot
from train.demo import __main__ as demo
from train.demo import corpus
from train.distill import __main__ as distill
from train.run import card, configuration, folders, log

TARGET, HEAD = MODELS / "target_mha", MODELS / "drafter_mha_rnn"
RUN = {"steps": 2, "batch": 2, "rate": 0.1}


def contents(folder: pathlib.Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that should refuse with one sentence and change no file; returns the sentence."""

    def run(command, *arguments) -> str:
        before = contents(tmp_path)
        assert command(list(map(str, arguments))) == 2
        assert contents(tmp_path) == before
        told = capsys.readouterr().err.splitlines()[-1]  # after progress bars
        assert told.startswith("error: ")
        return told

    return run


@pytest.fixture
def model(tmp_path) -> pathlib.Path:
    return with_tokenizer(tmp_path / "model")


@pytest.fixture
def text(tmp_path) -> pathlib.Path:
    (tmp_path / "text.txt").write_text("Some words. " * 50)
    return tmp_path / "text.txt"


def training(target, text, *more) -> list:
    return ["--target", target, "--text", text, "--steps", 1, *more]


def drawn(path: pathlib.Path, **how) -> pathlib.Path:
    Figure().savefig(path, **how)
    return path


# Folders


def test_training_does_not_write_into_the_targets_own_folder(refused, model, text):
    told = refused(main.command, *training(model, text, "--output", model))
    assert f"--output: {model} holds a model (config.json)" in told and "name another folder" in told


@pytest.mark.parametrize("left", ["model.safetensors", "tokenizer.json"])
def test_a_model_is_known_by_any_of_its_files(refused, model, text, tmp_path, left):
    (tmp_path / "rest").mkdir()
    shutil.copy(model / left, tmp_path / "rest")
    told = refused(main.command, *training(model, text, "--output", tmp_path / "rest"))
    assert f"rest holds a model ({left})" in told


def test_training_does_not_write_over_a_head_nor_beside_one(refused, model, text, tmp_path):
    shutil.copytree(HEAD, tmp_path / "other" / "head")
    for output in (tmp_path / "other" / "head", tmp_path / "other"):
        assert "holds a draft head" in refused(main.command, *training(model, text, "--output", output))


def test_checkpoints_are_not_put_into_a_models_folder(refused, model, text, tmp_path):
    told = refused(main.command, *training(model, text, "--output", tmp_path / "run", "--checkpoints", model))
    assert f"--checkpoints: {model} holds a model" in told


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
def test_a_file_of_another_program_in_the_runs_folder_is_kept(refused, model, text, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"port": 80}\n')
    told = refused(main.command, *training(model, text, "--output", tmp_path / "run"))
    assert f"{name} is not of a run of train.main" in told


def test_a_run_goes_on_in_its_own_folder(tmp_path):
    with folders.claim(tmp_path / "run"):
        configuration.save(tmp_path / "run", RUN, "auto")
    log.path(tmp_path / "run").write_text("{}\n")
    card.write(load_pair("mha_rnn")[1], None, tmp_path / "run" / "head", f"{claims.CARD_SIGNATURE}---\n")
    folders.check_run(tmp_path / "run", str(tmp_path / "run" / "checkpoints"))


def test_a_refused_run_leaves_no_empty_folders(refused, model, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff" * 10)
    told = refused(main.command, *training(model, tmp_path / "binary.txt", "--output", tmp_path / "deep" / "run"))
    assert "malformed" in told or "UTF-8" in told


def test_a_refused_run_keeps_the_datasets_that_were_there(tmp_path):
    kept = tmp_path / "datasets" / "text" / "data"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    with pytest.raises(KeyError), folders.claim(tmp_path):
        (tmp_path / "datasets" / "empty" / "1.1.0").mkdir(parents=True)
        raise KeyError
    assert contents(tmp_path) == {"datasets": None, "datasets/text": None, "datasets/text/data": b"x"}


def test_an_export_does_not_replace_a_model(refused, model, tmp_path):
    told = refused(export.command, "--run", tmp_path / "run", "--target", model, "--output", model)
    assert f"--output: {model} holds a model (config.json), not of an earlier export" in told


def test_an_export_replaces_an_earlier_one_and_no_other_head(refused, model, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    card.write(load_pair("mha_rnn")[1], None, ours, f"{claims.CARD_SIGNATURE}---\n")
    claims.check_head(ours, "--output")
    (ours / "config.json").unlink()  # as after an interrupted export
    claims.check_head(ours, "--output")
    shutil.copytree(HEAD, theirs)
    asked = ["--run", tmp_path / "run", "--target", model, "--output"]
    assert "holds a draft head" in refused(export.command, *asked, theirs)
    shutil.copy(model / "config.json", ours)
    assert "holds a model" in refused(export.command, *asked, ours)
    configuration.save(tmp_path / "run", RUN, "auto")
    assert "holds config.json" in refused(export.command, *asked, tmp_path / "run")


def test_the_demo_works_in_a_folder_of_its_own(refused, model, tmp_path):
    assert "--work: " in refused(demo.command, "--work", model)
    assert "that are not of a run of train.demo" in refused(demo.command, "--work", tmp_path)


def test_a_corpus_is_written_into_no_other_folder_of_its_names(refused, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpus.installed, "read_files", lambda folder: [corpus.SourceFile("a.py", "x = 1\n")])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.py").write_text("mine")
    assert "holds files (a.py) that are not of train.demo.corpus" in refused(corpus.command, "--output", tmp_path)
    for _ in range(2):
        assert corpus.command(["--output", str(tmp_path / "corpus")]) == 0


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "-cached"])
def test_programs_are_not_kept_among_other_files(refused, tmp_path, name):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).write_text("x")
    cache, output = tmp_path / "cache", tmp_path / "out.jsonl"
    told = refused(generate.main, "--cache-dir", cache, "--prompt", "x", "--output", output)
    assert f"--cache-dir: {cache} holds files ({name})" in told


def test_a_folder_of_programs_is_known(tmp_path):
    for name in ("jit_run-1a-cache", "jit_run-1a-atime", ".lockfile", "xla_gpu_kernel_cache_file", "fingerprints.json"):
        (tmp_path / name).touch()
    programs.check_cache(tmp_path)


# Files


def test_a_report_replaces_a_report_and_nothing_else(refused, model, tmp_path):
    quick = ["--target", TARGET, "--drafter", HEAD, "--output"]
    told = refused(benchmark.main, *quick, model / "config.json")
    assert "config.json is not a report of infer.benchmark and is kept" in told
    for content in ('{"commands": 1}', '{"command": "python -m other"}', "[]", "x"):
        (tmp_path / "file.json").write_text(content)
        assert "is not a report" in refused(benchmark.main, *quick, tmp_path / "file.json")
    report = tmp_path / "report.json"
    options = benchmark.Options(output=report)
    benchmark._write({"command": "python -m infer.benchmark --shape demo", "rows": []}, options)
    claims.check_replaceable(report, "--output", checks.is_report, "a report")
    claims.check_replaceable(tmp_path / "new.json", "--output", checks.is_report, "a report")
    assert not (tmp_path / "new.json").exists()


def test_a_picture_replaces_one_of_its_command_and_nothing_else(refused, tmp_path, model):
    photo, ours = drawn(tmp_path / "photo.png"), drawn(tmp_path / "ours.png", metadata={"Software": checks.SOFTWARE})
    claims.check_picture(ours, "--plot", checks.SOFTWARE)
    shutil.copy(model / "config.json", tmp_path / "config.png")
    (tmp_path / "cut.png").write_bytes(claims.PNG_SIGNATURE)
    for path in (photo, tmp_path / "config.png", tmp_path / "cut.png"):
        assert f"--plot: {path} is not a picture that redrafter_jax infer.benchmark wrote" in refused(
            benchmark.main, "--plot", path
        )
    told = refused(plot.command, "--run", tmp_path, "--output", ours)
    assert "is not a picture that redrafter_jax train.plot wrote" in told
    assert "should end in .png" in refused(plot.command, "--run", tmp_path, "--output", tmp_path / "curves.json")


def test_pictures_of_both_commands_can_be_drawn_again(tmp_path):
    log.path(tmp_path).write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    for _ in range(2):
        assert plot.command(["--run", str(tmp_path), "--output", str(tmp_path / "curves.png")]) == 0
    row = {"shape": "2x3", "speedup": 1.0, "tokens_per_step": 2.0}
    report = {"subject": "a pair", "device": "a CPU", "acceptance": "real", "rows": [row]}
    path = tmp_path / "plot.png"
    benchmark._write(report, benchmark.Options(plot=path))
    claims.check_picture(path, "--plot", checks.SOFTWARE)


def test_replies_are_not_written_beside_settings_of_something_else(refused, model, tmp_path):
    talk, settings = tmp_path / "talk.jsonl", tmp_path / "own.jsonl.settings.json"
    talk.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')
    settings.write_text('{"theme": "dark"}')
    asked = ["--target", model, "--conversations", talk, "--max-new-tokens", 4]
    told = refused(distill.command, *asked, "--output", tmp_path / "own.jsonl")
    assert "own.jsonl.settings.json, where the settings of" in told
    assert "is not of this command" in refused(distill.command, *asked, "--output", model / "model.safetensors")


def test_what_can_be_no_file_is_refused(tmp_path):
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("", "nothing", "circle"):
        with pytest.raises(BadInput, match="--output: .* is not a file"):
            claims.check_file(tmp_path / name, "--output")
    with pytest.raises(BadInput, match="--output: there is no folder"):
        claims.check_file(tmp_path / "no" / "x", "--output")
    assert {path.name for path in tmp_path.iterdir()} == {"nothing", "circle"}
    for check in (claims.check_file, claims.check_folder):
        with pytest.raises(BadInput, match="--output: .*too long"):
            check(tmp_path / ("x" * 300), "--output")


def test_every_head_that_is_written_can_be_told_from_a_model(tmp_path):
    weights.save_drafter(load_pair("mha_rnn")[1], tmp_path)
    assert claims.describe_model(tmp_path) == "a draft head (config.json)"
    assert claims.describe_model(TARGET) == "a model (config.json)" and claims.describe_model(tmp_path / "none") is None


def test_the_cache_of_programs_does_not_grow_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "MAX_CACHE_BYTES", 20_000)
    programs.use_cache(tmp_path)
    for number in range(1, 9):
        jax.block_until_ready(jax.jit(lambda x, number=number: x * number + 1)(jnp.ones(number)))
    kept = [path.stat().st_size for path in tmp_path.glob("*-cache")]
    assert kept and sum(kept) <= 20_000
    programs.check_cache(tmp_path)


def test_a_folder_of_programs_that_was_filled_without_a_limit_takes_more(tmp_path):
    (tmp_path / "jit_old-1a-cache").write_bytes(b"a program")  # and no jit_old-1a-atime beside it
    programs.use_cache(tmp_path)
    jax.block_until_ready(jax.jit(lambda x: x * 11 + 1)(jnp.ones(11)))  # a warning here is an error
    assert len(list(tmp_path.glob("*-cache"))) > 1
    assert int.from_bytes((tmp_path / "jit_old-1a-atime").read_bytes(), "little") > 10**18  # nanoseconds
    programs.check_cache(tmp_path)
