"""`python -m train.main`, `train.distill` and `train.export` as their users meet them, from files to a head that decodes."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from infer import pair
from infer.evaluate import __main__ as evaluate
from redrafter_jax.devices import memory
from redrafter_jax.devices.mesh import make_mesh
from redrafter_jax.files import weights
from redrafter_jax.model.drafter import Drafter, slim
from tests.jsonl import write_talk
from tests.support import MODELS
from tests.texts import with_tokenizer
from train import export, main, plot
from train.distill import __main__ as distill
from train.distill import plan
from train.run import card, log

ANSWER = '{"token_ids": [1, 2], "prompt_tokens": 1, "number": 0}\n'
HEAD = str(MODELS / "drafter_mha_rnn")
SMALL = ["--batch", "2", "--row-length", "32", "--positions", "2", "--warmup", "2", "--save-every", "2", "--log-every", "1"]


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> pathlib.Path:
    return with_tokenizer(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> pathlib.Path:
    return write_talk(tmp_path_factory.mktemp("talk"))


def train(target, talk, output, *more) -> list[str]:
    return ["--target", str(target), "--conversations", str(talk), "--output", str(output), *SMALL, *map(str, more)]


def test_from_a_file_of_conversations_to_a_head_that_decodes(target, talk, tmp_path, capsys):
    assert main.command(train(target, talk, tmp_path / "run", "--steps", 4, "--held-out", 0.2, "--evaluate-every", 4)) == 0
    assert "the head is in" in capsys.readouterr().out
    head = tmp_path / "run" / "head"
    card = (head / "README.md").read_text()
    assert "tokens per step 4x4" in card and "| distill_weight | 1.0 |" in card and str(tmp_path) not in card
    assert pair.load(str(target), str(head)).complete([1, 2, 3], max_new_tokens=4).reply.rounds > 0
    assert main.command(train(target, talk, tmp_path / "run", "--steps", 6, "--held-out", 0.2)) == 2
    assert "steps was 4 and is 6" in capsys.readouterr().err
    arguments = ["--run", tmp_path / "run", "--target", target, "--output", tmp_path / "again"]
    assert export.command(list(map(str, arguments))) == 0
    again, first = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", head))
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
    assert export.command([*map(str, arguments), "--step", "3"]) == 2
    assert "--step" in capsys.readouterr().err
    assert plot.command(["--run", str(tmp_path / "run"), "--output", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert plot.command(["--run", str(tmp_path)]) == 2 and "--run" in capsys.readouterr().err


@pytest.mark.slow
def test_heads_are_measured_side_by_side_on_text(target, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}. " for n in range(200)))
    arguments = ["--target", target, "--text", tmp_path / "text.txt", "--beams", "2x3", "--trees", "search", "--prompts", "3"]
    arguments = list(map(str, [*arguments, "--contexts", "40", "--new-tokens", "48", "--json"]))
    heads = ["--drafter", str(MODELS / "drafter_mha_rnn"), str(MODELS / "drafter_mha_rand")]
    assert evaluate.main([*arguments, *heads]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["heads"]) == heads[1:]
    for rows in result["heads"].values():
        assert rows[0]["shape"] == "2x3" and 1 <= rows[0]["along_text"] <= 4 and 1 <= rows[0]["coupled"] <= 4
    assert evaluate.main([*arguments, "--drafter", str(MODELS / "drafter_gqa_proj")]) == 2
    assert "hidden_size" in capsys.readouterr().err
    assert evaluate.main([*arguments, *heads, "--beams", "4"]) == 2
    assert "--beams" in capsys.readouterr().err


def test_a_whole_head_has_what_tensorrt_llms_converter_reads(tmp_path):
    """The tensor names and config fields of examples/redrafter/convert_checkpoint.py (NVIDIA/TensorRT-LLM 0e8b9484)."""
    jax.set_mesh(make_mesh())
    target = weights.load_target(MODELS / "target_mha")
    V, D = target.config.vocab_size, target.config.hidden_size
    card.write(Drafter(jax.random.key(0), slim(V, D)), target, tmp_path, "a card")
    config, tensors = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    names = {"rnn_u.weight", "rnn_u.bias", "rnn_w.weight"} | {f"lm_head.{config['num_draft_layers']}.weight"}
    names |= {f"lm_head.{i}.linear.{part}" for i in range(config["num_draft_layers"]) for part in ("weight", "bias")}
    names |= {"input_proj.weight", "input_proj.bias"} if config["hidden_size"] * 2 != config["exit_dim"] else set()
    assert config["rnn"] is True and set(tensors) == names


@pytest.mark.slow
def test_a_head_with_a_draft_vocabulary_trains_decodes_and_is_exported_whole(target, talk, tmp_path, capsys):
    shape = ["--head", "slim", "--head-vocab", 64, "--steps", 2]
    assert main.command(train(target, talk, tmp_path / "run", *shape)) == 0
    head = tmp_path / "run" / "head"
    assert load_file(head / "model.safetensors")["draft_ids"].shape == (64,)
    whole = tmp_path / "whole"
    assert export.command(["--run", str(tmp_path / "run"), "--target", str(target), "--output", str(whole), "--whole"]) == 0
    replies = [pair.load(str(target), str(folder)).complete([1, 2, 3], max_new_tokens=24).reply for folder in (head, whole)]
    assert replies[0].token_ids == replies[1].token_ids and replies[0].drafted == replies[1].drafted
    assert main.command(train(target, talk, tmp_path / "other", *shape, "--head-vocab", 504)) == 2
    assert "--head-vocab should be at most the target's vocabulary of 503, not 504" in capsys.readouterr().err
    assert not (tmp_path / "other" / "config.json").exists()


def test_the_target_answers_prompts_and_a_cut_off_run_goes_on(target, talk, tmp_path, capsys):
    arguments = ["--target", str(target), "--conversations", str(talk), "--max-new-tokens", "8", "--batch-size", "16"]
    whole = tmp_path / "whole.jsonl"
    assert distill.command([*arguments, "--output", str(whole)]) == 0
    lines = whole.read_text().splitlines(keepends=True)
    assert len(lines) == 40 and json.loads(lines[7])["number"] == 7
    cut = tmp_path / "cut.jsonl"
    assert distill.command([*arguments, "--output", str(cut)]) == 0
    cut.write_text("".join(lines[:20]) + lines[20][:15])
    assert distill.command([*arguments, "--output", str(cut)]) == 0
    assert cut.read_text() == whole.read_text()
    assert distill.command([*arguments, "--output", str(cut), "--temperature", "1.0"]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    shards = [tmp_path / f"{part}.jsonl" for part in range(2)]
    for part, file in enumerate(shards):
        assert distill.command([*arguments, "--output", str(file), "--shard", str(part), "2"]) == 0
    both = sorted((json.loads(line) for file in shards for line in file.read_text().splitlines()), key=lambda line: line["number"])
    assert both == [json.loads(line) for line in lines]
    run = ["--target", str(target), "--token-ids", *map(str, shards), "--output", str(tmp_path / "run"), *SMALL, "--steps", "2"]
    assert main.command(run) == 0


def test_replies_are_the_targets_own_greedy_text_with_and_without_a_head(target, talk, tmp_path):
    from tests.support import MODELS

    arguments = ["--target", str(target), "--conversations", str(talk), "--max-new-tokens", "8"]
    head = ["--drafter", str(MODELS / "drafter_mha_rnn"), "--beam", "2", "3"]
    files = [tmp_path / "plain.jsonl", tmp_path / "fast.jsonl"]
    assert distill.command([*arguments, "--output", str(files[0])]) == 0
    assert distill.command([*arguments, *head, "--output", str(files[1])]) == 0
    assert files[0].read_text() == files[1].read_text()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(target, talk, tmp_path):
    """SIGKILL at random moments, saves in flight included."""
    whole = train(target, talk, tmp_path / "whole", "--steps", 40)
    assert main.command(whole) == 0
    command = [sys.executable, "-m", "train.main", *train(target, talk, tmp_path / "cut", "--steps", 40)]
    rng, kills = random.Random(0), 0
    while kills < 4:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(log.read(tmp_path / "cut"))
        while process.poll() is None and len(log.read(tmp_path / "cut")) < before + 3:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2
    subprocess.run(command, check=True, capture_output=True)
    heads = [weights.load_drafter(tmp_path / name / "head") for name in ("whole", "cut")]
    import jax

    for ours, theirs in zip(*map(jax.tree.leaves, heads), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "change, named",
    [
        (["--steps", "0"], "--steps"), (["--mesh", "64", "1", "--batch", "64"], "--mesh"), (["--held-out", "0.9"], "--held-out"),
        (["--max-malformed", "nan"], "--max-malformed"), (["--target", "/nowhere"], "--target"),
        (["--conversations", "/nowhere.json"], "/nowhere.json"), (["--mesh", "3", "1"], "--mesh"),
        (["--output", __file__], "--output"), (["--target", "no/such-model"], "--target"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(change, named, target, talk, tmp_path, capsys):
    assert main.command([*train(target, talk, tmp_path / "run", "--steps", 2), *change]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and named in message
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "change, named",
    [
        (["--temperature", "-1"], "--temperature"), (["--shard", "2", "2"], "--shard"), (["--text", "x"], "one of them"),
        (["--output", "/nowhere/x.jsonl"], "--output"), (["--target", "/nowhere"], "--target"), (["--dtype", "int8"], "--dtype"),
        (["--output", "/"], "--output"), (["--max-new-tokens", "100000"], "--max-new-tokens should be below"),
        (["--drafter", str(MODELS / "drafter_gqa_proj")], "--drafter"), (["--beam", "0", "3"], "--beam"),
        (["--drafter", str(MODELS / "drafter_mha_rnn"), "--beam", "600", "3"], "--beam"), (["--seed", "-1"], "--seed"),
        (["--seed", str(2**32)], "--seed"), (["--seed", str(2**32 - 2)], "--seed should be at most"),
        (["--mesh", "64", "1"], "--mesh"),
        (["--mesh", "8", "1", "--batch-size", "12"], "--batch-size"), (["--batch-size", "5000"], "--batch-size"),
        (["--stride", str(10**30)], "--stride should be from 1 to 10000000"), (["--beam", "4", "65"], "--beam: its length should"),
        (["--max-new-tokens", str(10**30)], "--max-new-tokens should be from 1 to 10000000"),
    ],
)  # fmt: skip
def test_distilling_names_bad_input(change, named, target, talk, tmp_path, capsys):
    arguments = ["--target", str(target), "--conversations", str(talk), "--output", str(tmp_path / "own.jsonl")]
    assert distill.command([*arguments, *change]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and named in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["main", "distill", "measure"])
def test_a_broken_tokenizer_is_one_sentence(command, few, tmp_path, capsys):
    (tmp_path / "target" / "tokenizer.json").write_text('{"version": "1.0"}')
    target = ["--target", str(tmp_path / "target")]
    arguments = {"main": [*few[:6], *SMALL], "distill": few, "measure": [*target, "--drafter", HEAD, "--text", few[3]]}[command]
    assert {"main": main.command, "distill": distill.command, "measure": evaluate.main}[command](arguments) == 2
    assert "has no tokenizer" in capsys.readouterr().err.splitlines()[-1]


def test_text_is_not_measured_on_with_ids_that_the_target_does_not_know(few, tmp_path, capsys):
    file = tmp_path / "target" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 20}))
    (tmp_path / "head.txt").write_text("x = 1")
    head = tmp_path / "head"
    shutil.copytree(HEAD, head)
    (head / "config.json").write_text(json.dumps(json.loads((head / "config.json").read_text()) | {"vocab_size": 20}))
    text = str(tmp_path / "head.txt")
    assert evaluate.main(["--target", str(tmp_path / "target"), "--drafter", str(head), "--text", text]) == 2
    assert "vocab_size in config.json is 20" in capsys.readouterr().err.splitlines()[-1]


def test_a_target_that_is_too_large_to_measure_is_refused_before_it_is_read(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "of_host", lambda: 9_000_000)
    monkeypatch.setattr(weights, "load_target", lambda *_, **__: pytest.fail("the target was read"))
    (tmp_path / "good.txt").write_text("x = 1\n" * 2000)
    arguments = ["--target", str(tmp_path / "target"), "--drafter", HEAD, "--text", str(tmp_path / "good.txt")]
    assert evaluate.main(arguments) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: --target in float32, with the cache of 32 contexts, needs 0.0")
    assert told.endswith("are there; --new-tokens 48, a smaller target would do")


def test_a_file_that_is_no_text_is_not_left_out_of_what_is_measured(few, tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "good.txt").write_text("x = 1\n" * 2000)
    text = [str(tmp_path / "good.txt"), str(tmp_path / "bad.txt")]
    assert evaluate.main(["--target", str(tmp_path / "target"), "--drafter", HEAD, "--text", *text]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: --text: bad.txt") and "UTF-8" in told


def test_an_export_to_a_file_is_refused(target, tmp_path, capsys):
    assert export.command(["--run", str(tmp_path), "--target", str(target), "--output", __file__]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.fixture
def few(target, tmp_path) -> list:
    """What `train.distill` is to answer: a target, questions that its template does not all accept, and the output."""
    folder = tmp_path / "target"
    shutil.copytree(target, folder)
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    turns = [[("user", "One?"), ("assistant", "1")], [("system", "x"), ("user", "Two?"), ("assistant", "2")]]
    records = [
        {"messages": [{"role": role, "content": said} for role, said in talk]} for talk in [*turns, [("user", "No answer.")]]
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    paths = ["--target", folder, "--conversations", tmp_path / "talk.jsonl", "--output", tmp_path / "own.jsonl"]
    return [*map(str, paths), "--max-new-tokens", "8", "--batch-size", "2"]


def test_what_a_template_refuses_is_counted_and_replies_end_where_the_target_ends_them(few, tmp_path, capsys):
    output, settings = tmp_path / "own.jsonl", tmp_path / "own.jsonl.settings.json"
    assert distill.command([*few, "--mesh", "2", "1"]) == 0
    told = capsys.readouterr().err
    assert "talk.jsonl, line 2: the chat template refuses it (no system)" in told and "line 3: the assistant says nothing" in told
    assert "of 3 records, 2 malformed and 0 prompts too long are passed over" in told
    (whole,) = map(json.loads, output.read_text().splitlines())
    prompt = whole["prompt_tokens"]
    output.unlink()
    settings.unlink()
    ends = whole["token_ids"][prompt + 1]
    (tmp_path / "target" / "generation_config.json").write_text(json.dumps({"eos_token_id": [ends, 500]}))
    assert distill.command(few) == 0
    (short,) = map(json.loads, output.read_text().splitlines())
    assert short["token_ids"] == whole["token_ids"][: whole["token_ids"].index(ends, prompt) + 1]


def test_a_target_that_cannot_be_loaded_leaves_no_output_behind(few, tmp_path, capsys):
    (tmp_path / "target" / "model.safetensors").write_bytes(b"torn")
    assert distill.command(few) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.jsonl", "target"]


def test_replies_to_other_prompts_of_another_target_or_with_torn_settings_are_not_mixed(few, tmp_path, monkeypatch, capsys):
    output, settings = tmp_path / "own.jsonl", tmp_path / "own.jsonl.settings.json"
    monkeypatch.setattr(plan, "Engine", lambda *_: None)
    monkeypatch.setattr(distill.answers, "write", lambda file, *_: file.path.write_text(ANSWER))
    assert distill.command(few) == 0 and distill.command(few) == 0
    assert "all 1 replies are in" in capsys.readouterr().out and not list(tmp_path.glob("*.part"))
    weights_file = tmp_path / "target" / "model.safetensors"
    for file, named in ((tmp_path / "talk.jsonl", "prompts"), (weights_file, "target"), (settings, "broken")):
        before = file.read_bytes()
        changed = before.replace(b"One?", b"One!") if file.suffix == ".jsonl" else before[:-1] + bytes([before[-1] ^ 1])
        file.write_bytes(changed if file != settings else before[:20])
        assert distill.command(few) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("error: --output") and named in told
        file.write_bytes(before)
    assert output.read_text() == ANSWER and distill.command(few) == 0


def test_the_whole_configuration_is_printed_and_a_preset_is_its_default(target, talk, tmp_path, capsys):
    arguments = ["--target", str(target), "--conversations", str(talk), "--output", str(tmp_path / "run"), "--config"]
    assert main.command([*arguments, "--preset", "vicuna-7b", "--steps", "7"]) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert (recipe["steps"], recipe["row_length"], recipe["head"]) == (7, 2048, "full")
    assert not (tmp_path / "run").exists()
