"""`--lora`: every command reads the adapter before anything else, merges it as the target is read, and says so."""

import pathlib

import pytest
from safetensors.numpy import load_file, save_file

import infer
from infer.benchmark import __main__ as benchmark
from infer.evaluate import __main__ as evaluate
from infer.generate import __main__ as generate
from infer.generate import hashes, session
from infer.tune import __main__ as tune
from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from tests.adapters import write
from tests.fakes import Fake
from tests.support import MODELS
from tests.texts import with_tokenizer
from train import main
from train.distill import __main__ as distill

HEAD = str(MODELS / "drafter_mha_rnn")


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> pathlib.Path:
    return with_tokenizer(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(scope="module")
def adapter(target, tmp_path_factory) -> pathlib.Path:
    return write(tmp_path_factory.mktemp("adapter") / "lora", target)


def test_with_an_adapter_the_text_is_that_of_the_adapted_target_and_the_head_stays(target, adapter, tmp_path, capsys):
    stored, factors = load_file(target / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in stored:
        a, b = (factors.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{factor}.weight") for factor in "AB")
        stored[name] = stored[name] if a is None else stored[name] + 4 * (b @ a)
    by_hand = with_tokenizer(tmp_path / "by-hand")
    save_file(stored, by_hand / "model.safetensors")
    how = {"max_new_tokens": 24, "temperature": 0.8, "seed": 3}
    adapted = infer.load(str(target), HEAD, lora=str(adapter)).complete([5, 17, 200], **how)
    assert "lora is merged into the target; its text is exactly that of the adapted target" in capsys.readouterr().err
    assert adapted.reply.rounds < 24
    assert adapted.text == infer.load(str(target), lora=str(adapter)).complete([5, 17, 200], **how).text
    assert adapted.text == infer.load(str(by_hand)).complete([5, 17, 200], **how).text
    assert adapted.text != infer.load(str(target)).complete([5, 17, 200], **how).text


TEXT = ["--text", "notes.txt"]
COMMANDS = {
    "generate": (generate.main, ["--drafter", HEAD, "--prompt", "x"]),
    "benchmark": (benchmark.main, ["--drafter", HEAD, "--max-new-tokens", "4", "--prompts", "ids.jsonl"]),
    "evaluate": (evaluate.main, ["--method", f"recurrent:{HEAD}:2x2", "--suite", "ids.jsonl", "--max-new-tokens", "4"]),
    "evaluate heads": (evaluate.main, ["--drafter", HEAD, *TEXT, "--prompts", "2", "--contexts", "2"]),
    "tune": (tune.main, ["--drafter", HEAD, "--prompts", "ids.jsonl", "--output", "settings.json", "--batch", "1"]),
    "distill": (distill.command, [*TEXT, "--output", "own.jsonl", "--prompt-tokens", "8", "--stride", "64"]),
    "train": (main.command, [*TEXT, "--output", "run", "--row-length", "32", "--steps", "2"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_merges_the_adapter_and_refuses_a_broken_one(name, target, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("".join(f"{n} times {n} is {n * n}. " for n in range(200)))
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1, 5, 9]}\n')

    def stop(*given, adapter=None, **_):
        found = adapter or next(each for each in given if hasattr(each, "deltas"))
        raise BadInput(f"{len(found.deltas)} matrices of {found.folder.name}")

    monkeypatch.setattr(weights, "load_target", stop)
    command, arguments = COMMANDS[name]
    arguments = ["--target", str(target), *arguments]
    assert command([*arguments, "--lora", str(adapter)]) == 2
    assert "error: 6 matrices of lora" in capsys.readouterr().err.splitlines()[-1]
    assert command([*arguments, "--lora", str(target)]) == 2
    assert "--lora: " in capsys.readouterr().err.splitlines()[-1]


def test_another_adapter_is_another_run_of_replies(target, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session.pair, "fill", lambda resolved, tokenizer, *_: session.pair.Pair(Fake(), tokenizer))
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1, 5, 9]}\n')
    files = ["--target", target, "--prompts", tmp_path / "ids.jsonl", "--output", tmp_path / "out.jsonl"]
    arguments = [*map(str, files), "--decoding", "autoregressive", "--max-new-tokens", "3", "--cache-dir", str(tmp_path / "cache")]
    assert generate.main([*arguments, "--lora", str(adapter)]) == 0
    assert generate.main([*arguments, "--lora", str(adapter)]) == 0
    stronger = write(tmp_path / "stronger", target, alpha=9)
    for other in ([], ["--lora", str(stronger)]):
        capsys.readouterr()
        assert generate.main([*arguments, *other]) == 2
        assert "belongs to another run" in capsys.readouterr().err
    assert hashes.fingerprint.fingerprint(target) == hashes.fingerprint.fingerprint(target, None)


def test_options_that_read_the_targets_own_files_do_not_go_with_an_adapter(target, adapter, capsys):
    lora = ["--target", str(target), "--lora", str(adapter)]
    for command, arguments, words in (
        (benchmark.main, ["--drafter", HEAD, "--against-transformers"], "leave it out with --lora"),
        (main.command, ["--text", "x", "--train-target", "lora"], "leave out --lora"),
    ):
        assert command([*lora, *arguments]) == 2
        assert words in capsys.readouterr().err
    assert benchmark.main(["--shape", "demo", "--lora", str(adapter)]) == 2
    assert "--shape has random weights" in capsys.readouterr().err
