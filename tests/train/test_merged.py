"""What a run that trained its target leaves: the merged target, PEFT's adapter, and a head that says whose it is; `train.drift`."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import infer
from infer.evaluate import __main__ as evaluate
from infer.generate import __main__ as generate
from redrafter_jax.files import adapters, fingerprint, peft, provenance, weights
from redrafter_jax.model import lora
from tests.texts import with_tokenizer
from train import drift, export, main
from train.distill import __main__ as distill

SMALL = ["--batch", "2", "--row-length", "32", "--positions", "2", "--warmup", "1", "--log-every", "1", "--head", "slim"]
JOINT = ["--train-target", "lora", "--lora-rank", "4", "--lora-alpha", "8", "--lora-rate", "2", "--lora-start", "0"]


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> pathlib.Path:
    return with_tokenizer(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("private") / "notes.txt"
    folder.write_text("".join(f"{n} times {n} is {n * n}. " for n in range(200)))
    return folder


def training(target, text, output, *more) -> list[str]:
    ends = ["--steps", "4", "--save-every", "2", "--evaluate-every", "0", "--rate", "0.01"]
    return ["--target", str(target), "--text", str(text), "--output", str(output), *SMALL, *ends, *more]


@pytest.fixture(scope="module")
def trained(target, text, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main.command(training(target, text, folder, *JOINT, "--through", "1")) == 0
    return folder


def test_a_run_leaves_a_merged_target_that_decodes_its_own_text_and_a_head_that_says_whose_it_is(target, trained):
    merged = weights.load_target(trained / "merged")
    assert not np.array_equal(merged.blocks[0].q.weight, weights.load_target(target).blocks[0].q.weight)
    pair = infer.load(str(trained / "merged"), str(trained / "head"))
    plain = infer.load(str(trained / "merged"))
    assert pair.complete([3, 1, 4], 16).reply.token_ids == plain.complete([3, 1, 4], 16).reply.token_ids
    card = (trained / "head" / "README.md").read_text()
    assert "text of the merged target, and not that of `target`" in card
    assert fingerprint.fingerprint(trained / "merged") in card
    assert "not the original's" in (trained / "merged" / "README.md").read_text()


def test_a_head_knows_its_merged_target_which_the_original_with_the_adapter_is_too(target, trained, capsys):
    head, prompt = str(trained / "head"), [3, 1, 4]
    given, replies = {"merged": (trained / "merged",), "adapted": (target, trained / "adapter"), "other": (target,)}, {}
    for name, (folder, *adapter) in given.items():
        loaded = infer.load(str(folder), head, lora=str(adapter[0]) if adapter else None)
        replies[name] = loaded.complete(prompt, 16).reply.token_ids
        told = capsys.readouterr().err
        assert ("was trained for other weights; acceptance may be low" in told) == (name == "other")
    assert replies["merged"] == replies["adapted"]


def test_a_head_of_an_adapted_target_is_trained_resumed_and_exported_with_its_adapter(target, trained, text, tmp_path, capsys):
    lora = ["--lora", str(trained / "adapter")]
    run = training(target, text, tmp_path / "run")
    assert main.command([*run, *lora]) == 0 and main.command([*run, *lora]) == 0
    capsys.readouterr()
    assert main.command(run) == 2
    assert "holds a run of another configuration: target was" in capsys.readouterr().err
    arguments = ["--run", str(tmp_path / "run"), "--target", str(target), "--output", str(tmp_path / "head")]
    assert export.command(arguments) == 2
    assert "as it was then, and its --lora" in capsys.readouterr().err
    assert export.command([*arguments, *lora]) == 0
    adapter = peft.read(trained / "adapter", "--lora")
    for head in (tmp_path / "run" / "head", tmp_path / "head"):
        assert provenance.compare(head, target, "float32", adapter=adapter) is None
        assert "other weights" in provenance.compare(head, target, "float32")
        assert "--lora adapter" in (head / "README.md").read_text()


def test_every_command_says_that_a_target_is_a_merged_one(target, trained, text, tmp_path, capsys):
    short = ["--max-new-tokens", "16"]
    questions = ["--prompt-tokens", "8", "--stride", "2000"]
    commands = {
        generate.main: ["--prompt", "3 1 4", "--decoding", "autoregressive"],
        evaluate.main: ["--method", "plain", "--limit", "1", "--suite", str(tmp_path / "suite.jsonl")],
        distill.command: ["--text", str(text), "--output", str(tmp_path / "own.jsonl"), *questions],
    }
    (tmp_path / "suite.jsonl").write_text('{"prompt": "3 1 4"}\n')
    for command, arguments in commands.items():
        said = []
        for folder in (trained / "merged", target):
            (tmp_path / "own.jsonl").unlink(missing_ok=True)
            (tmp_path / "own.jsonl.settings.json").unlink(missing_ok=True)
            assert command(["--target", str(folder), *short, *arguments]) == 0
            said.append("exactly that of the merged target" in capsys.readouterr().err)
        assert said == [True, False]


def test_the_adapter_in_pefts_format_makes_of_the_original_what_the_merged_target_is(target, trained):
    """PEFT's own sum, W + (alpha / r) B A, over the tensors that transformers' names lead to."""
    fields = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    stored = safetensors.numpy.load_file(trained / "adapter" / "adapter_model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] in fields["target_modules"]:
            a, b = (torch.tensor(stored.pop(f"base_model.model.{name}.lora_{factor}.weight")) for factor in "AB")
            assert a.shape[0] == b.shape[1] == fields["r"]
            layer.weight.data += fields["lora_alpha"] / fields["r"] * b @ a
    assert not stored
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    merged = transformers.AutoModelForCausalLM.from_pretrained(trained / "merged").eval()
    original = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    with torch.no_grad():
        ours, theirs, before = (each(tokens).logits for each in (merged, model, original))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - before).abs().max() > 0.01


def test_an_export_writes_the_step_that_is_asked_for_and_keeps_the_number_format(target, trained, tmp_path, capsys):
    for name in ("run", "narrow"):
        shutil.copytree({"run": trained, "narrow": target}[name], tmp_path / name)
    places = [str(tmp_path / name) for name in ("head", "merged", "adapter")]
    arguments = ["--run", str(trained), "--target", str(target), "--output", places[0], "--step", "2"]
    assert export.command([*arguments, "--merged", places[1], "--adapter", places[2]]) == 0
    assert "exactly the text of the merged target" in capsys.readouterr().out
    assert not np.array_equal(*(weights.load_target(run / "merged").blocks[0].q.weight for run in (tmp_path, trained)))
    assert export.command([*arguments[:-2], "--merged", places[1]]) == 0  # over its own
    same = [(run / "merged" / "model.safetensors").read_bytes() for run in (tmp_path, trained)]
    assert same[0] == same[1]
    assert export.command([*arguments, "--merged", str(target)]) == 2
    assert "--merged" in capsys.readouterr().err

    stored = safetensors.numpy.load_file(target / "model.safetensors")
    file = tmp_path / "narrow" / "model.safetensors"
    safetensors.numpy.save_file({name: each.astype("float16") for name, each in stored.items()}, file)
    wide = weights.load_target(tmp_path / "narrow")
    adapter = lora.Adapter(jax.random.key(0), wide.config, lora.LoraConfig(2, 4.0))
    adapter.blocks[0].k.b[...] = adapter.blocks[0].k.b[...] + 0.1
    adapters.save_merged(adapter, tmp_path / "half", tmp_path / "narrow", "narrow")
    found = safetensors.numpy.load_file(tmp_path / "half" / "model.safetensors")
    assert {str(each.dtype) for each in found.values()} == {"float16"}
    expected = lora.merge(wide, adapter).blocks[0].k.weight[...]
    np.testing.assert_array_equal(found["model.layers.0.self_attn.k_proj.weight"].T, np.asarray(expected).astype("float16"))


def test_a_run_of_a_head_alone_has_no_adapter_and_a_folder_of_somebody_elses_is_kept(target, text, tmp_path, capsys):
    folder = tmp_path / "run"
    (folder / "merged").mkdir(parents=True)
    (folder / "merged" / "config.json").write_text("{}")
    assert main.command(training(target, text, folder, *JOINT)) == 2
    assert "merged holds files (config.json)" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert main.command(training(target, text, folder, "--lora-rank", "4")) == 2
    assert "--train-target lora" in capsys.readouterr().err


def test_the_drift_of_a_merged_target_is_said_and_that_of_a_target_from_itself_is_none(target, trained, text, capsys):
    arguments = ["--against", str(target), "--text", str(text), "--rows", "5", "--row-length", "16", "--batch", "2", "--json"]
    assert drift.command(["--target", str(trained / "merged"), *arguments]) == 0
    moved = json.loads(capsys.readouterr().out)
    assert drift.command(["--target", str(target), *arguments]) == 0
    still = json.loads(capsys.readouterr().out)
    assert moved["kl"] > 0 == still["kl"] and still["agreement"] == 1 >= moved["agreement"]
    assert moved["against_bits_per_byte"] == still["bits_per_byte"] == still["against_bits_per_byte"] != moved["bits_per_byte"]
    assert drift.command(["--target", str(target), *arguments[:-1]]) == 0
    assert "same likeliest token" in capsys.readouterr().out
    assert drift.command(["--target", str(target), *arguments, "--row-length", "100000"]) == 2
    assert "--row-length" in capsys.readouterr().err
