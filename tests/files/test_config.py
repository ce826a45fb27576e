"""Every field of a config.json is in range or refused by name, before anything is made of it."""

import json
import shutil

import pytest

from redrafter_jax.errors import BadInput
from redrafter_jax.files import config, json_files
from redrafter_jax.model.rope import Rope
from tests.damaged import DEEP
from tests.support import MODELS

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
HUGE, NAN, INF = 10**400, float("nan"), float("inf")


def target(**changes):
    base = json.loads((MODELS / "target_mha" / "config.json").read_text())
    return config.target_config(json.loads(json.dumps(base | changes)), "--target")


def head(**changes):
    base = json.loads((MODELS / "drafter_mha_rnn" / "config.json").read_text())
    return config.drafter_config(base | changes, "--drafter")


def refusal(make, **changes) -> str:
    with pytest.raises(BadInput) as caught:
        make(**changes)
    said = str(caught.value)
    assert said.startswith("--") and "\n" not in said and len(said) < 300
    return said


@pytest.mark.parametrize(
    "scaling",
    [
        *({"rope_type": "linear", "factor": value} for value in (0, NAN, -2, True, INF, HUGE, 1e-300, "2", None)),
        *({"rope_type": "dynamic", "factor": value} for value in (-1, 0, False)),
        *(LLAMA3 | {"factor": value} for value in (0, -1)),
        *(LLAMA3 | {"low_freq_factor": value} for value in (0, -1, float("nan"))),
        LLAMA3 | {"high_freq_factor": float("inf")},
        {"rope_type": "default", "rope_theta": 0},
        {"rope_type": "default", "rope_theta": 1e39},
    ],
    ids=str,
)
def test_a_rope_number_that_gives_nan_or_nonsense_is_refused(scaling):
    for key in ("rope_parameters", "rope_scaling"):
        assert "in config.json should be a number above 0 (1e-12 to 1e+12), not" in refusal(target, **{key: scaling})


def test_bands_of_llama3_that_do_not_lie_apart_are_refused():
    for low in (4.0, 5.0):
        said = refusal(target, rope_parameters=LLAMA3 | {"low_freq_factor": low})
        assert f"low_freq_factor in config.json should be below high_freq_factor 4, not {low:g}" in said


@pytest.mark.parametrize("original", [0, -1, True, 32.5, float("inf"), HUGE, None])
def test_an_original_length_that_is_no_length_is_refused(original):
    changed = LLAMA3 | {"original_max_position_embeddings": original}
    said = refusal(target, rope_parameters=changed)
    assert "original_max_position_embeddings in config.json should be a whole number" in said


def test_a_dynamic_rope_over_two_channels_is_refused_as_it_divides_by_zero():
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    assert "head_dim of 4 or more, not 2" in refusal(target, rope_parameters=dynamic, head_dim=2)


def test_rope_parameters_per_layer_type_are_refused_by_name():
    linear = {"rope_type": "linear", "factor": 2.0}
    for nested in ({"full_attention": linear}, {"full_attention": LLAMA3, "sliding_attention": {}}):
        said = refusal(target, rope_parameters=nested, layer_types=["full_attention"] * 3)
        assert "rope_parameters in config.json are given per layer type (full_attention)" in said


def test_two_descriptions_of_the_rope_should_say_the_same():
    linear, longer = {"type": "linear", "factor": 2}, {"rope_type": "linear", "factor": 3.0}
    said = refusal(target, rope_scaling=linear, rope_parameters=longer)
    assert "rope_parameters and rope_scaling in config.json differ" in said
    same = target(rope_scaling=linear, rope_parameters=longer | {"factor": 2.0}, rope_theta=5.0)
    assert same.rope == Rope(5.0, "linear", 2.0, original_length=512)


@pytest.mark.parametrize("value", [0, -1, 10**12, HUGE, 1.5, True, "4", None, NAN], ids=lambda value: str(value)[:9])
def test_a_size_out_of_range_is_refused_by_name(value):
    keys = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings"]  # fmt: skip
    for key in keys[:5] + keys[7:] if value is None else keys:
        assert f"{key} in config.json should be a whole number from 1 to" in refusal(target, **{key: value})
    for key in ("vocab_size", "hidden_size", "exit_dim", "draft_vocab_size"):
        assert f"{key} in config.json should be a whole number from 1 to" in refusal(head, **{key: value})
    if value != 0:
        said = refusal(head, num_draft_layers=value)
        assert "num_draft_layers in config.json should be a whole number from 0 to" in said


@pytest.mark.parametrize("value", [0, -1e-6, 2.0, float("nan"), float("inf"), HUGE, True, "1e-6", None])
def test_an_epsilon_out_of_range_is_refused(value):
    assert "rms_norm_eps in config.json should be a number above 0 (1e-12 to 1)" in refusal(target, rms_norm_eps=value)


@pytest.mark.parametrize("ids", [-5, 503, 10**12, HUGE, 1.5, True, "2", [2, 503], [2, None], {"a": 1}])
def test_an_end_of_text_id_outside_the_vocabulary_is_refused(tmp_path, ids):
    folder = shutil.copytree(MODELS / "target_mha", tmp_path / "target")
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        kept = path.read_text() if path.is_file() else "{}"
        path.write_text(json.dumps(json.loads(kept) | {"eos_token_id": ids}))
        said = refusal(lambda: config.stop_ids(folder, None, "--target"))
        assert f"--target: eos_token_id in {path} should be a token id or a list of them, from 0 to 502" in said
        path.write_text(kept)


def test_an_end_of_text_id_of_the_tokenizer_is_looked_at_too(tmp_path):
    class Tokenizer:
        eos_token_id = 600

    (tmp_path / "config.json").write_text('{"vocab_size": 503}')
    with pytest.raises(BadInput, match="eos_token_id of the tokenizer in .* from 0 to 502, not 600"):
        config.stop_ids(tmp_path, Tokenizer(), "--target")


@pytest.mark.parametrize(
    "content", [DEEP, '{"a": ' + "1" * 5000 + "}", '{"a": ', "[]", "", "\xff"], ids=lambda content: content[:7]
)
def test_a_file_that_holds_no_json_object_is_one_sentence(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    for read in (lambda: json_files.read_object(path, "--target"), lambda: config.read_json(tmp_path, "--target")):
        assert f"--target: {path} " in refusal(read)
    path.write_text('{"vocab_size": 9}')
    (tmp_path / "generation_config.json").write_bytes(content.encode("latin-1"))
    assert "generation_config.json" in refusal(lambda: config.stop_ids(tmp_path, None, "--target"))
