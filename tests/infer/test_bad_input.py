"""Bad input to `python -m infer.generate`: one sentence that names it, exit code 2, no traceback, nothing written."""

import json
import shutil

import pytest

from infer import pair as pairs
from infer.benchmark import __main__ as benchmark
from infer.generate.__main__ import main
from infer.tune import __main__ as tune
from tests.options import IDS, PAIR
from tests.support import MODELS
from tests.texts import with_tokenizer

TARGET, DRAFTER = PAIR[1], PAIR[3]


@pytest.fixture
def refuse(capsys, tmp_path):
    """Runs the command and returns its one sentence."""

    def run(*arguments, pair=PAIR):
        output = tmp_path / "out.jsonl"
        given = [*pair, "--cache-dir", str(tmp_path / "programs"), *map(str, arguments)]
        code = main(given if "--output" in given or "--decoding" in given else [*given, "--output", str(output)])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1
        assert not output.exists()
        return err

    return run


@pytest.fixture
def ids(tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"token_ids": each}) + "\n" for each in IDS))
    return path


@pytest.mark.parametrize(
    ("option", "values", "sentence"),
    [
        ("beam-width", (0, -1, 10**9), "should be from 1 to"),
        ("beam-width", (504,), "at most the target's vocabulary of 503, not 504"),
        ("beam-length", (0, -3, 10**6), "should be from 1 to"),
        ("node-budget", (0, 1, -1), "should be from 2 to"),
        ("draft-top-k", (-1,), "should be from 0"),
        ("draft-top-k", (504,), "vocabulary of 503"),
        ("top-k", (-1,), "should be from 0"),
        ("top-k", (504,), "vocabulary of 503"),
        ("temperature", ("-1", "nan", "inf", "1e-30", "1000.0"), "should be 0 (greedy) or from 0.01 to 100"),
        ("top-p", ("0", "-0.1", "1.1", "nan", "inf"), "should be above 0 and at most 1"),
        ("seed", (-1, 2**32), "should be from 0 to 4294967295"),
        ("seed", (2**32 - 1,), "too few seeds for 3 prompts"),
        ("max-new-tokens", (0, -1, 10**12), "should be from 1 to"),
        ("max-new-tokens", (513,), "at most the target's context of 512"),
        ("batch-size", (0, -1, 10**9), "should be from 1 to"),
        ("max-length", (0, -1), "should be from 2 to"),
        ("max-length", (513,), "at most the target's context of 512"),
    ],
)
def test_numbers_out_of_range_are_refused(refuse, ids, option, values, sentence):
    for value in values:
        err = refuse("--prompts", ids, f"--{option}", value)
        assert f"--{option}" in err and sentence in err and str(value) in err


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        ((0, 1), "two whole numbers from 1 up"),
        ((2, 1), "--mesh 2 1: --batch-size 1 should be a multiple of the 2 data shards; only 1 1 would do"),
        ((1, 3), "--mesh 1 3: 3 does not divide the target's num_attention_heads 4; only 1 1 would do"),
        ((1, 2), "--mesh 1 2: 2 does not divide the target's vocab_size 503; only 1 1 would do"),
        ((1, 99), "--mesh 1 99: it needs 99 devices, and 8 are visible; only 1 1 would do"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(refuse, ids, mesh, sentence):
    assert sentence in refuse("--prompts", ids, "--mesh", *mesh)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty; it should hold one JSON object per line"),
        ("\n \n", "is empty; it should hold one JSON object per line"),
        ('{"token_ids": [1]}\n{"token_ids": [1', "bad.jsonl:2 is not JSON"),
        ('{"token_ids": [1]}\n[1]', "bad.jsonl:2 should be a JSON object with one of prompt, messages, token_ids or turns"),
        ('{"text": "a"}', "bad.jsonl:1 should be a JSON object with one of"),
        ('{"prompt": "a", "token_ids": [1]}', "bad.jsonl:1 should be a JSON object with one of"),
        ('{"prompt": 3}', "bad.jsonl:1: prompt should be a string"),
        ('{"token_ids": []}', "bad.jsonl:1: token_ids should be a list of whole numbers"),
        ('{"token_ids": [1.5]}', "bad.jsonl:1: token_ids should be a list of whole numbers"),
        ('{"token_ids": [true]}', "bad.jsonl:1: token_ids should be a list of whole numbers"),
        ('{"messages": [{"role": "user"}]}', "bad.jsonl:1: messages should be a list of objects"),
        (
            '{"token_ids": [1]}\n\n{"token_ids": [1, 503]}',
            "bad.jsonl:3: token id 503 is outside the target's vocabulary",
        ),
        ('{"token_ids": [-1]}', "bad.jsonl:1: token id -1 is outside"),
        (json.dumps({"token_ids": [1] * 512}), "bad.jsonl:1 has 512 tokens; at most 511 fit in a context of 512"),
        ('{"prompt": "a"}', "bad.jsonl:1 is text, but the target's folder has no tokenizer"),
    ],
)
def test_a_bad_prompts_file_is_named_with_its_line(refuse, tmp_path, content, sentence):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    err = refuse("--prompts", path)
    assert "--prompts" in err and sentence in err


def test_other_bad_prompts_are_refused(refuse, tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    assert "cannot be read as UTF-8" in refuse("--prompts", tmp_path / "latin.jsonl")
    assert "cannot be read" in refuse("--prompts", tmp_path)
    assert "--prompts: there is no file nowhere" in refuse("--prompts", "nowhere")
    assert "--prompt 1 is text" in refuse("--prompt", "a")
    assert "--prompt is missing" in refuse()
    assert "exclude each other" in refuse("--prompt", "a", "--prompts", "b")


def test_text_that_the_tokenizer_cannot_serve_is_refused(refuse, tmp_path):
    pair = ["--target", str(with_tokenizer(tmp_path / "target")), "--drafter", DRAFTER]
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}')
    assert f"{path}:1 is text, but the target's folder has no tokenizer" in refuse("--prompts", path)
    (tmp_path / "strict.jinja").write_text("{{ raise_exception('no users') }}")
    strict = ("--prompts", path, "--chat-template", tmp_path / "strict.jinja")
    assert f"{path}:1: the chat template refuses these messages (no users)" in refuse(*strict, pair=pair)
    assert "--chat-template: nowhere cannot be read as a template" in refuse(
        "--chat-template", "nowhere", "--prompt", "a", pair=pair
    )
    assert "--prompt 2 is empty" in refuse("--prompt", "a", "--prompt", "", pair=pair)
    (tmp_path / "target" / "tokenizer.json").write_text("{")
    assert "the tokenizer in" in refuse("--prompt", "a", pair=pair)


def test_a_prompt_longer_than_max_length_is_refused(refuse, ids):
    assert "ids.jsonl:2 has 6 tokens; at most 4 fit in a context of 5" in refuse("--prompts", ids, "--max-length", 5)


def broken(folder, source, **changes):
    """A copy of a model folder with fields of its config changed."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_folders_that_hold_no_pair_are_refused(refuse, ids, tmp_path):
    (tmp_path / "empty").mkdir()
    cut = broken(tmp_path / "cut", TARGET)
    (cut / "model.safetensors").write_bytes((MODELS / "target_mha" / "model.safetensors").read_bytes()[:5000])
    bare = broken(tmp_path / "bare", TARGET)
    (bare / "model.safetensors").unlink()
    gpt = broken(tmp_path / "gpt", TARGET, model_type="gpt2")
    for target, sentence in (
        ("nowhere", "there is no folder nowhere"),
        (tmp_path / "empty", "has no config.json"),
        (ids, "is a file; it should be the folder of a model"),
        (cut, "is not a whole safetensors file"),
        (bare, "has no model.safetensors"),
        (gpt, "model_type 'gpt2' is not supported"),
        (DRAFTER, "this is a draft head"),
    ):
        err = refuse("--prompts", ids, pair=["--target", str(target), "--drafter", DRAFTER])
        assert "--target" in err and sentence in err


def test_heads_that_do_not_fit_are_refused(refuse, ids, tmp_path):
    cut = broken(tmp_path / "cut", DRAFTER)
    (cut / "model.safetensors").write_bytes(b"")
    for head, sentence in (
        ("nowhere", "there is no folder nowhere"),
        (broken(tmp_path / "other", DRAFTER, model_type="gpt2"), "model_type 'gpt2' is not a draft head"),
        (MODELS / "target_tied", "a draft model should share the target's vocabulary"),
        (MODELS / "drafter_gqa_proj", "for a target with hidden_size 96, but this target has hidden_size 64"),
        (broken(tmp_path / "vocabulary", DRAFTER, vocab_size=7), "with vocab_size 7, but this target has vocab_size 503"),
        (cut, "is not a whole safetensors file"),
    ):
        err = refuse("--prompts", ids, pair=["--target", TARGET, "--drafter", str(head)])
        assert "--drafter" in err and sentence in err
    assert "--drafter is missing" in refuse("--prompts", ids, pair=["--target", TARGET])


@pytest.mark.parametrize("command", [benchmark.main, tune.main], ids=["benchmark", "tune"])
def test_what_measures_heads_refuses_a_small_model(command, capsys):
    assert command(["--target", str(TARGET), "--drafter", str(TARGET)]) == 2
    assert "is a model" in capsys.readouterr().err.splitlines()[-1]


def test_a_hub_name_that_cannot_be_had_is_refused(refuse, ids, monkeypatch):
    def unreachable(name, **_):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    err = refuse("--prompts", ids, pair=["--target", "owner/model", "--drafter", DRAFTER])
    assert "--target: there is no folder owner/model, and the hub did not give a model of that name (no route)" in err


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(refuse, tmp_path):
    for path, sentence in ((tmp_path / "no" / "out", "there is no folder"), (tmp_path, "is not a file")):
        err = refuse("--prompts", "nowhere", "--output", path)
        assert "--output" in err and sentence in err


@pytest.mark.parametrize("content", ["hello", "hello\n", '{"a": 1}\n', '{"run": "0", "index": 0}\n', "[]\n"])
def test_a_file_that_is_no_output_is_refused_and_kept(refuse, ids, tmp_path, content):
    path = tmp_path / "precious"
    path.write_text(content)
    assert f"{path}:1 belongs to another run" in refuse("--prompts", ids, "--output", path)
    assert path.read_text() == content


def test_options_that_exclude_each_other_are_refused(refuse, ids):
    assert "--interactive" in refuse("--interactive", "--prompts", ids)
    assert "--output keeps replies" in refuse("--prompts", ids, "--output", "x", "--decoding", "compare")


def test_a_missing_embedded_pair_is_said_plainly(refuse, monkeypatch, tmp_path):
    monkeypatch.setattr(pairs, "EMBEDDED", tmp_path)
    assert "the embedded pair lacks" in refuse(pair=[])


def test_an_unknown_option_exits_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--beam-widht", "3"])
    assert caught.value.code == 2
