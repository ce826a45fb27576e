"""`train.demo.draft_model`: a small model that learns to say what a target says, resumes bit for bit, and drafts for it."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from infer.generate import __main__ as generate
from redrafter_jax.files import weights
from tests.jsonl import replies, write_prompts
from tests.texts import with_tokenizer
from tests.training import same
from train.data import rows
from train.demo import draft_model

SMALL = ["--width", "16", "--heads", "2", "--layers", "1", "--feed-forward", "16", "--row-length", "32", "--batch", "2"]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    """The options of a run on the text of a tiny target with a tokenizer."""
    folder = tmp_path_factory.mktemp("draft")
    target = with_tokenizer(folder / "target")
    (folder / "text.txt").write_text("one two three four five six seven eight " * 60)
    return ["--target", str(target), "--text", str(folder / "text.txt"), *SMALL]


def run(given: list[str], output, *more) -> int:
    return draft_model.command([*given, "--output", str(output), "--steps", "6", "--save-every", "3", *more])


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    """A run that was not interrupted."""
    output = tmp_path_factory.mktemp("draft") / "run"
    assert run(given, output) == 0
    return output


def test_a_model_learns_and_drafts_for_its_target(given, finished, tmp_path, capsys):
    first, last = (json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines())
    assert last["loss"] < first["loss"] and last["step"] == 6
    asked = ["--target", given[1], "--prompts", str(write_prompts(tmp_path, [[5, 6, 7, 8] * 4])), "--json", "--max-new-tokens", "8"]
    assert generate.main([*asked, "--decoding", "autoregressive"]) == 0
    plain = replies(capsys.readouterr().out)
    assert generate.main([*asked, "--drafter", str(finished / "model")]) == 0
    (found,) = replies(capsys.readouterr().out)
    assert found["token_ids"] == plain[0]["token_ids"]
    assert found["metrics"]["speculative_decoding"]["num_spec_tokens"] == 4  # a chain of four is the default


@pytest.mark.slow
def test_a_run_that_was_asked_to_end_goes_on_to_the_same_weights(given, finished, tmp_path, monkeypatch, capsys):
    batches = rows.read_batches

    def asks(*arguments):
        for index, read in enumerate(batches(*arguments)):
            if index == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield read

    with monkeypatch.context() as patch:
        patch.setattr(draft_model, "read_batches", asks)
        assert run(given, tmp_path / "run") == 143
    assert "goes on" in capsys.readouterr().out and not (tmp_path / "run" / "model").exists()
    assert run(given, tmp_path / "run") == 0
    ours, theirs = (weights.load_target(folder / "model") for folder in (tmp_path / "run", finished))
    same(ours, theirs)


def test_bad_input_is_one_sentence(given, finished, tmp_path, capsys):
    for options, words in [
        ([*given, "--output", str(tmp_path / "a"), "--width", "15"], "--width should be a multiple"),
        ([*given[:2], "--output", str(tmp_path / "a")], "nothing to train on"),
        ([*given, "--output", str(tmp_path / "a"), "--steps", "0"], "--steps should be from 1"),
        ([*given, "--output", str(finished), "--steps", "7"], "--steps: the run in"),
    ]:
        assert draft_model.command(options) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_the_loss_is_the_cross_entropy_under_the_teacher():
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 1, 3, 5))
    counted = np.array([[True, False, True]])
    nats, agreement = draft_model.distance(*map(jax.numpy.asarray, (logits, teacher, counted)))
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)  # noqa: E731
    each = -(softmax(teacher) * np.log(softmax(logits))).sum(-1)[0]
    np.testing.assert_allclose(nats, (each[0] + each[2]) / 2, rtol=1e-5)
    assert agreement == (logits.argmax(-1) == teacher.argmax(-1))[0, [0, 2]].mean()


@pytest.mark.parametrize("change", ["vocabulary", "context", "tokens"])
def test_a_model_for_another_target_is_refused(given, finished, tmp_path, change, capsys):
    other = tmp_path / "other"
    shutil.copytree(finished / "model", other)
    config, tokenizer = json.loads((other / "config.json").read_text()), (other / "tokenizer.json").read_text()
    if change == "tokens":
        kinds = json.loads(tokenizer)
        one, two = list(kinds["model"]["vocab"])[40:42]
        vocabulary = kinds["model"]["vocab"]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
        (other / "tokenizer.json").write_text(json.dumps(kinds))
    else:
        field = {"vocabulary": "vocab_size", "context": "max_position_embeddings"}[change]
        (other / "config.json").write_text(json.dumps(config | {field: config[field] - 8}))
    assert generate.main(["--target", given[1], "--drafter", str(other), "--prompt", "one"]) == 2
    said = {"vocabulary": "share the target's vocabulary", "context": "its context is", "tokens": "other tokens"}[change]
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: --drafter")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--acceptance", "rejection", "--temperature", "1", "--beam-width", "2"], "give --beam-width 1 or --tree chains"),
        (["--acceptance", "rejection", "--temperature", "1", "--with", "lookup"], "a lookup draws none"),
        (["--tree", "chains", "--node-budget", "3"], "--node-budget cuts trees of a search"),
    ],
)
def test_what_rejection_and_chains_exclude_is_one_sentence(given, finished, options, words, capsys):
    assert generate.main(["--target", given[1], "--drafter", str(finished / "model"), "--prompt", "one", *options]) == 2
    assert words in capsys.readouterr().err
