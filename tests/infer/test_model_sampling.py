"""`--sampling model`: what a model's own generation_config.json says, by name and never silently."""

import dataclasses
import json

import pytest

from infer import model_sampling
from infer.generate import __main__ as generate
from infer.generate import session
from redrafter_jax.decode.request import Sampling
from redrafter_jax.errors import BadInput
from tests.options import PAIR
from tests.texts import with_tokenizer

LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}


def read(folder, config, own=(), given=Sampling()):
    (folder / "generation_config.json").write_text(json.dumps(config))
    return model_sampling.read(folder, given, own)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA, Sampling(0.6, top_p=0.9)),
        ({"do_sample": True, "top_k": 20}, Sampling(1.0, top_k=20)),
        ({"temperature": 0.9, "top_p": 0.6}, Sampling()),  # Vicuna's: nothing is sampled without do_sample
        ({"do_sample": True, "temperature": None, "top_k": -1, "repetition_penalty": 1.0}, Sampling(1.0)),
    ],
)
def test_the_file_decides_as_transformers_reads_it(tmp_path, config, expected):
    assert read(tmp_path, config) == expected


def test_what_is_given_goes_before_it(tmp_path):
    assert read(tmp_path, LLAMA, ("top_p",), Sampling(top_p=0.5, rule="independent")) == Sampling(0.6, 0, 0.5, "independent")


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
        model_sampling.read(tmp_path, Sampling(), ())


def test_the_command_says_what_it_took_and_greedy_stays_the_default(tmp_path, capsys):
    target = with_tokenizer(tmp_path / "target")
    (target / "generation_config.json").write_text(json.dumps(LLAMA))

    def prepared(*arguments):
        given = ["--target", str(target), *PAIR[2:], *map(str, arguments)]
        return session.prepare(generate.task_of(generate.read_options(generate.Options, "infer.generate", given)))

    assert prepared().task.decoding.sampling == Sampling() and capsys.readouterr().err == ""
    found = prepared("--sampling", "model", "--top-k", 7).task.decoding.sampling
    assert found == dataclasses.replace(Sampling(0.6, top_p=0.9), top_k=7)
    said = "sampling by the model's generation_config.json: temperature 0.6, top-k 7, top-p 0.9"
    assert capsys.readouterr().err.splitlines() == [said]
