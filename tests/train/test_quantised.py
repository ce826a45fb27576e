"""A head trains on the states of the quantised target, and its run, its card and its replies say so."""

import inspect
import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.files import weights
from tests.jsonl import write_talk
from tests.texts import with_tokenizer
from train import drift, export, main
from train.distill import __main__ as distill
from train.fit import __main__ as fit

SMALL = ["--batch", "2", "--row-length", "32", "--positions", "2", "--warmup", "1", "--log-every", "1", "--head", "slim"]


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> pathlib.Path:
    return with_tokenizer(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> pathlib.Path:
    return write_talk(tmp_path_factory.mktemp("talk"))


def train(target, talk, output, *more) -> int:
    ends = ["--steps", "3", "--save-every", "2", "--evaluate-every", "0", "--rate", "0.01"]
    return main.command(["--target", str(target), "--conversations", str(talk), "--output", str(output), *SMALL, *ends, *more])


class Loaded(Exception):
    """Carries how the target was to be loaded."""


@pytest.mark.parametrize("command", [main, distill], ids=["train.main", "train.distill"])
def test_the_target_is_loaded_quantised(command, target, talk, tmp_path, monkeypatch):
    real = weights.load_target

    def load(*given, **more):
        raise Loaded(inspect.signature(real).bind(*given, **more).arguments["weights"])

    monkeypatch.setattr(weights, "load_target", load)
    more = SMALL if command is main else []
    with pytest.raises(Loaded, match="^int8$"):
        options = ["--target", target, "--conversations", talk, "--output", tmp_path / "out", "--weights", "int8", *more]
        command.command(list(map(str, options)))


@pytest.mark.slow
def test_a_head_is_trained_on_the_quantised_targets_states_and_says_so(target, talk, tmp_path, capsys):
    for name, more in (("int8", ["--weights", "int8"]), ("float", [])):
        assert train(target, talk, tmp_path / name, *more) == 0
    card = (tmp_path / "int8" / "head" / "README.md").read_text()
    assert "--target target --weights int8 --drafter THIS_FOLDER" in card and "| weights | int8 |" in card
    assert "train.main --target target" in card and card.count("--weights int8") == 2
    assert "weights" not in (tmp_path / "float" / "head" / "README.md").read_text()
    heads = [load_file(tmp_path / name / "head" / "model.safetensors") for name in ("int8", "float")]
    assert any(not np.array_equal(heads[0][name], heads[1][name]) for name in heads[0])
    capsys.readouterr()
    assert train(target, talk, tmp_path / "int8") == 2  # it was another target's
    assert "weights was int8 and is None" in capsys.readouterr().err
    given = ["--run", tmp_path / "int8", "--target", target, "--output", tmp_path / "whole", "--whole"]
    assert export.command(list(map(str, given))) == 0


@pytest.mark.slow
def test_replies_are_the_quantised_targets(target, talk, tmp_path, capsys):
    files = ["--target", target, "--conversations", talk, "--output", tmp_path / "own.jsonl", "--max-new-tokens", 6]
    assert distill.command(list(map(str, [*files, "--weights", "int8"]))) == 0
    lines = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    prompts = [line["token_ids"][: line["prompt_tokens"]] for line in lines]
    engine = Engine(weights.load_target(target, weights="int8"), stop_ids=[2])
    expected = engine.generate(prompts, limits=Limits(6), batch=64)
    assert [line["token_ids"][line["prompt_tokens"] :] for line in lines] == [reply.token_ids for reply in expected]
    capsys.readouterr()
    assert distill.command(list(map(str, files))) == 2
    assert 'weights was "int8" and is null' in capsys.readouterr().err


def test_what_quantising_costs_is_measured(target, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}. " for n in range(200)))
    given = ["--target", target, "--against", target, "--text", tmp_path / "text.txt", "--rows", 4, "--row-length", 32]
    assert drift.command(list(map(str, [*given, "--weights", "int8", "--json"]))) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["weights"] == "int8" and 0 < result["kl"] < 0.1 and 0.8 < result["agreement"] <= 1
    assert result["bits_per_byte"] != result["against_bits_per_byte"]
    assert drift.command(list(map(str, [*given, "--weights", "int8"]))) == 0
    assert "in int8" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train.main", "train.fit"])
def test_adapters_are_not_trained_on_a_quantised_target(command, target, talk, tmp_path, capsys):
    lora = ["--weights", "int8", "--train-target", "lora"]
    if command == "train.main":
        code = train(target, talk, tmp_path / "run", *lora)
    else:
        code = fit.main(["--model", str(target), "--row-length", "64", *lora])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("error: --train-target lora adds to float matrices, and the target's are int8; leave out --weights")
