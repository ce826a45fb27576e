"""Sizes that fit no machine, and other typing errors, are refused by name before any work."""

import re

import numpy as np
import pytest

from infer.evaluate import __main__ as evaluate
from redrafter_jax.devices import memory
from redrafter_jax.devices.placement import Footprint
from redrafter_jax.errors import BadInput
from tests.support import MODELS, load_target
from train import main
from train.data import rows
from train.demo import __main__ as demo
from train.demo import dataset
from train.demo import options as demo_options
from train.distill import __main__ as distill
from train.run import footprint, shapes
from train.run.recipe import Recipe

TARGET = str(MODELS / "target_mha")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch": 10**9}, "--batch should be from 1 to 65536, not 1000000000"),
        ({"steps": 10**12}, "--steps should be from 1 to 100000000, not 1000000000000"),
        ({"blocks": 10**6}, "--blocks should be from 1 to 256, not 1000000"),
        ({"positions": 10**6}, "--positions should be from 1 to 64, not 1000000"),
        ({"row_length": 10**9}, "--row-length should be from 1 to 1048576, not 1000000000"),
        ({"evaluation_rows": 10**9}, "--evaluation-rows should be from 1 to 65536, not 1000000000"),
        ({"accumulate": 10**9}, "--accumulate should be from 1 to 65536, not 1000000000"),
        ({"warmup": -1}, "--warmup should be from 0 to 100000000, not -1"),
        (
            {"batch": 65536, "row_length": 4096},
            "--batch 65536 rows of --row-length 4096 in --accumulate 1 parts are more than 67108864 tokens at a time",
        ),
    ],
)
def test_a_recipe_out_of_all_proportion_is_refused(change, sentence):
    with pytest.raises(BadInput, match=re.escape(sentence)):
        Recipe(**change).check()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--prompts", 10**9], "--prompts should be from 1 to 100000, not 1000000000"),
        (["--beams", "1025x4"], "--beams should be widths and lengths such as 4x4, not 1025x4"),
        (["--contexts", 0], "--contexts should be from 1 to 100000, not 0"),
        (["--new-tokens", 47], "--new-tokens should be 48 or more, not 47"),
        (["--new-tokens", 10**9], "--new-tokens should be at most 448, which the target's context leaves"),
    ],
)
def test_measuring_more_than_there_is_is_refused(change, sentence, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("x = 1\n")
    given = ["--target", TARGET, "--drafter", MODELS / "drafter_mha_rnn", "--text", tmp_path / "text.txt", *change]
    assert evaluate.main(list(map(str, given))) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {sentence}") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--vocab", 10**9], "--vocab should be from 257 to 65536, not 1000000000"),
        (["--row-length", 10**9], "--row-length should be from 16 to 2048, not 1000000000"),
        (["--layers", 0], "--layers should be from 1 to 256, not 0"),
        (["--replies", 10**9], "--replies should be from 1 to 1000000, not 1000000000"),
        (["--width", 325], "--width should be a multiple of twice --heads (5), not 325"),
        (["--decay", "nan"], "--decay should be above 0 and at most 1, not nan"),
        (["--packages", "no_such_package"], "--packages: 'no_such_package' is not an installed package"),
        (["--work", __file__], "--work: "),
    ],
)
def test_the_demo_refuses_before_it_works(change, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "train_target", None)
    work = tmp_path / "work"
    assert demo.command(list(map(str, ["--work", work, *change]))) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {sentence}") and told.count("\n") == 1
    assert not list(work.glob("*"))


def test_what_the_demo_kept_and_cannot_use_is_named(tmp_path):
    options = demo.Options(work=tmp_path, vocab=300, row_length=16)
    np.save(tmp_path / "train.npy", np.array([1, 299, 300], np.uint16))
    with pytest.raises(BadInput, match="--vocab 300: .* a corpus of a larger vocabulary; give another --work"):
        dataset.read_stream(options, "train")
    np.save(tmp_path / "own_text.npy", np.zeros((2, 17), np.uint16))
    with pytest.raises(BadInput, match="--row-length 16: .*own_text.npy has rows of 17 tokens; give another --work"):
        demo.own_text(options, None)
    for name, read in (
        ("train.npy", lambda: dataset.read_stream(options, "train")),
        ("corpus.json", lambda: dataset.read_record(options)),
    ):
        (tmp_path / name).write_bytes(b"{")
        with pytest.raises(BadInput, match=f"--work: .*{name} is not as train.demo wrote it; remove .*corpus.json"):
            read()
    with pytest.raises(BadInput, match="--batch 4: the corpus has 60 tokens, which do not fill that many rows of 17"):
        next(rows.read_stream(np.arange(60), 17, 4, 0, 0, 1))


def test_a_target_that_the_machine_cannot_train_is_refused_by_the_options_that_make_it_large(monkeypatch):
    monkeypatch.setattr(memory, "of_host", lambda: 10**9)
    demo_options.check(demo.Options())
    with pytest.raises(BadInput, match="--batch, .*--width.* need at least .* GB of memory, and 1 GB are there"):
        demo_options.check(demo.Options(width=4096, heads=32, layers=32, feed_forward=16384))


@pytest.mark.parametrize(("mesh", "depths"), [((1, 1), 0), ((4, 1), 0), ((1, 1), 2)])
def test_a_batch_that_no_device_has_room_for_is_refused(mesh, depths, monkeypatch):
    recipe, config = Recipe(batch=64, row_length=512, depths=depths), load_target("mha").config
    head = shapes.make_head_config(config, recipe)
    load = Footprint(config, head, 64, "--batch", 1e6)
    need = 1e6 + 4 * 64 * 512 * (5 * 2 + depths) * config.hidden_size / mesh[0]  # float32 exits at 5 positions, and features
    monkeypatch.setattr(memory, "of_host", lambda: 1.01 * need * mesh[0])
    footprint.check(load, recipe, mesh)
    monkeypatch.setattr(memory, "of_host", lambda: 0.99 * need * mesh[0])
    with pytest.raises(BadInput, match="--batch 64 and --accumulate 1 with --row-length 512 and this target need at least"):
        footprint.check(load, recipe, mesh)


def test_simulated_devices_share_the_hosts_memory(monkeypatch):
    monkeypatch.setattr(memory, "of_host", lambda: 4_096_000)
    memory.check_bytes(4_000_000, "one")
    with pytest.raises(BadInput, match="two need at least 0.008 GB of memory, and 0.0041 GB are there"):
        memory.check_bytes(4_000_000, "two", devices=2)


@pytest.mark.parametrize(
    "examples",
    [
        [([5], [True])],  # one example of one token
        [([5, 6], [True, True])] * 3,
        [([1, 2, 3, 4], [True, True, False, False])],
        [([1, 2, 3, 4], [False] * 4)],
        [(list(range(9)), [False] * 4 + [True] + [False] * 4)],  # the first token of the second row of four
    ],
)
def test_data_of_which_nothing_can_be_predicted_is_refused(examples):
    given = [{"tokens": np.array(tokens), "labelled": np.array(labelled)} for tokens, labelled in examples]
    with pytest.raises(BadInput, match="the training data: there is no token to predict, for none of the"):
        rows.Rows(given, 4)


def test_one_label_is_enough():
    assert len(rows.Rows([{"tokens": np.arange(3), "labelled": np.array([False, False, True])}], 8)) == 1


@pytest.mark.parametrize(
    ("option", "place", "sentence"),
    [
        ("--profile", "/dev/null/x", "--profile: /dev/null is a file"),
        ("--checkpoints", "/dev/null/x", "--checkpoints: /dev/null is a file"),
        (
            "--checkpoints",
            "gs://bucket/run",
            "--checkpoints: gs://bucket/run needs a package that is not installed (pip install gcsfs)",
        ),
        ("--checkpoints", "s3://bucket/run", "--checkpoints: s3://bucket/run should be a folder or gs://BUCKET/FOLDER"),
    ],
)
def test_places_that_cannot_be_written_are_found_before_any_work(option, place, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "ids.jsonl").write_text('{"token_ids": [1, 2, 3]}\n')
    given = ["--target", TARGET, "--token-ids", tmp_path / "ids.jsonl", "--output", tmp_path / "run", option, place]
    assert main.command(list(map(str, given))) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {sentence}") and told.count("\n") == 1 and not (tmp_path / "run").exists()


def test_answers_longer_than_the_context_are_refused(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("x = 1\n")
    given = ["--target", TARGET, "--text", tmp_path / "text.txt", "--output", tmp_path / "own.jsonl", "--max-new-tokens", 10**7]
    assert distill.command(list(map(str, given))) == 2
    assert "--max-new-tokens should be below the target's context of 512" in capsys.readouterr().err
