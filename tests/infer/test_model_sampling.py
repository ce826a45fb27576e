"""`--sampling model`: what a model's own generation_config.json says, by name and never silently."""

import dataclasses
import json

import pytest
import transformers

from infer import model_sampling
from infer.generate import __main__ as generate
from infer.generate import checks, session
from redrafter_jax.decode.request import Sampling
from redrafter_jax.errors import BadInput
from tests.options import PAIR
from tests.texts import with_tokenizer

LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}


def read(folder, config, own=(), given=Sampling(), vocab_size=1000):
    (folder / "generation_config.json").write_text(json.dumps(config))
    return model_sampling.read(folder, vocab_size, given, own)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA, Sampling(0.6, 50, 0.9)),
        ({"do_sample": True, "top_k": 20}, Sampling(1.0, top_k=20)),
        ({"temperature": 0.9, "top_p": 0.6}, Sampling()),  # Vicuna's: nothing is sampled without do_sample
        ({"do_sample": True, "temperature": None, "top_k": -1, "repetition_penalty": 1.0}, Sampling(1.0)),
        ({"do_sample": True, "top_k": None}, Sampling(1.0, top_k=50)),
        ({"do_sample": True, "top_k": 0}, Sampling(1.0)),
        ({"do_sample": True, "top_k": 5000}, Sampling(1.0, top_k=1000)),
    ],
)
def test_the_file_decides_as_transformers_reads_it(tmp_path, config, expected):
    assert read(tmp_path, config) == expected


def test_what_is_given_goes_before_it(tmp_path):
    assert read(tmp_path, LLAMA, ("top_p",), Sampling(top_p=0.5, rule="independent")) == Sampling(0.6, 50, 0.5, "independent")


@pytest.mark.parametrize(
    "config", [LLAMA, {"do_sample": True}, {"do_sample": True, "top_k": None}, {"do_sample": True, "top_k": 0}]
)
def test_transformers_reads_the_same_numbers(tmp_path, config):
    theirs = transformers.GenerationConfig.from_dict(config)
    theirs.update(**theirs._get_default_generation_params(), defaults_only=True)  # as its `generate` does
    ours = read(tmp_path, config)
    assert (ours.temperature, ours.top_k, ours.top_p) == (theirs.temperature, theirs.top_k, theirs.top_p)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"do_sample": True, "temperature": -1}, "generation_config.json: temperature should be 0"),
        ({"do_sample": True, "top_k": "x"}, "generation_config.json: top_k should be from"),
        ({"no_repeat_ngram_size": 3}, "asks for no_repeat_ngram_size 3, which is not supported"),
        ({"do_sample": True, "min_p": 0.1}, "asks for min_p 0.1, which is not supported"),
    ],
)
def test_what_it_asks_for_and_cannot_have_is_named(tmp_path, config, sentence):
    with pytest.raises(BadInput, match=sentence):
        read(tmp_path, config)


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(BadInput, match="--sampling model: .* has no generation_config.json; give --temperature"):
        model_sampling.read(tmp_path, 1000, Sampling(), ())


@pytest.fixture
def prepared(tmp_path):
    """Makes the command's task, and the sampling that its model decides."""
    target = with_tokenizer(tmp_path / "target")

    def run(*arguments, config=LLAMA):
        (target / "generation_config.json").write_text(json.dumps(config))
        given = ["--target", str(target), *PAIR[2:], *map(str, arguments)]
        options = generate.read_options(generate.Options, "infer.generate", given)
        checks.alone(options)
        return session.prepare(generate.task_of(options)).task.decoding.sampling

    return run


def test_the_command_says_what_it_took_and_greedy_stays_the_default(prepared, capsys):
    assert prepared() == Sampling() and capsys.readouterr().err == ""
    assert prepared("--sampling", "model", "--top-k", 7) == Sampling(0.6, 7, 0.9)
    said = "sampling by the model's generation_config.json: temperature 0.6, top-k 7, top-p 0.9"
    assert capsys.readouterr().err.splitlines() == [said]


ASKS = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", 0.0), ("top_k", 0), ("top_p", 1.0), ("repetition_penalty", 1.0)], ids=str
)
def test_a_default_that_is_given_is_given(prepared, option, value, capsys):
    by_the_file = Sampling(0.6, 20, 0.9, repetition_penalty=1.1)
    assert prepared("--sampling", "model", config=ASKS) == by_the_file
    said = prepared("--sampling", "model", f"--{option.replace('_', '-')}", value, config=ASKS)
    assert said == dataclasses.replace(by_the_file, **{option: value})
    assert "no do_sample" not in capsys.readouterr().err


def test_several_replies_are_fine_where_the_model_samples_and_only_there(prepared):
    model = ("--sampling", "model", "--n", 2)
    assert prepared(*model).temperature == 0.6
    with pytest.raises(BadInput, match="--n should be 1 at --temperature 0, where all replies are the same, not 2"):
        prepared(*model, "--temperature", 0)
    greedy = "--n should be 1 with --sampling model, by which this model is greedy and all replies are the same, not 2; give a"
    with pytest.raises(BadInput, match=greedy):
        prepared(*model, config={"temperature": 0.9})
    assert prepared(*model, "--temperature", 0.5, config={"temperature": 0.9}).temperature == 0.5
    with pytest.raises(BadInput, match="--n should be 1 at --temperature 0"):
        prepared("--n", 2)
