"""`--weights`: what the commands make of it, and that they decode with a target that is quantised."""

import json

import jax
import pytest

from infer import pair, settings
from infer.benchmark import __main__ as benchmark
from infer.benchmark import cases
from infer.evaluate import __main__ as evaluate
from infer.fit import __main__ as fit
from infer.generate import __main__ as generate
from infer.tune import __main__ as tune
from infer.tune import load
from infer.tune.measure import TunePlan
from redrafter_jax.decode.engine import Engine, Limits
from redrafter_jax.errors import BadInput
from redrafter_jax.files import weights
from redrafter_jax.model.quantised import Quantised
from tests import compressed
from tests.jsonl import replies, write_prompts
from tests.options import IDS, PAIR, SHORT
from tests.support import MODELS

TARGET, HEAD = PAIR[1], PAIR[3]


def test_the_two_options_say_what_is_computed_in_and_what_matrices_are_stored_in():
    assert pair.number_formats(None, None) == ("float32", None)
    assert pair.number_formats(None, "int8") == ("float32", "int8")
    assert pair.number_formats("bfloat16", "fp8") == ("bfloat16", "fp8")
    assert pair.number_formats(None, "bfloat16") == pair.number_formats("bfloat16", "bfloat16") == ("bfloat16", None)
    with pytest.raises(BadInput, match="^--weights bfloat16 and --dtype float32 differ: .* leave out one of them$"):
        pair.number_formats("float32", "bfloat16")
    with pytest.raises(BadInput, match="^weights should be int8, fp8, float32 or bfloat16, not 'int4'$"):
        pair.number_formats(None, "int4", "")


@pytest.fixture
def command(cache, capsys):
    """Runs `infer.generate`; returns (exit code, standard output, standard error)."""

    def run(*arguments, target=TARGET):
        given = ["--target", target, *PAIR[2:], *SHORT, "--cache-dir", cache, *arguments]
        code = generate.main(list(map(str, given)))
        return code, *capsys.readouterr()

    return run


def test_a_quantised_target_is_decoded_exactly_and_its_output_is_not_the_float_targets(command, tmp_path):
    prompts, output = write_prompts(tmp_path, IDS), tmp_path / "out.jsonl"
    code, out, _ = command("--prompts", prompts, "--weights", "int8", "--decoding", "compare")
    assert code == 0 and "are identical (int8 weights, float32)" in out
    engine = Engine(weights.load_target(TARGET, weights="int8"), stop_ids=[2])
    expected = [reply.token_ids for reply in engine.generate(IDS, limits=Limits(20))]
    assert command("--prompts", prompts, "--weights", "int8", "--output", output)[0] == 0
    assert [line["token_ids"] for line in replies(output.read_text())] == expected
    code, _, err = command("--prompts", prompts, "--output", output)
    assert code == 2 and err.startswith("error: --output") and err.count("\n") == 1


def test_a_quantised_checkpoint_is_decoded_as_it_is(command, tmp_path):
    prompts = write_prompts(tmp_path, IDS)
    quantised, floats = compressed.compress(MODELS / "target_mha", tmp_path / "model")
    texts = [replies(command("--prompts", prompts, "--json", target=folder)[1]) for folder in (quantised, floats)]
    assert [[line["token_ids"] for line in lines] for lines in texts][0] == [line["token_ids"] for line in texts[1]]
    code, out, err = command("--prompts", prompts, "--weights", "fp8", target=quantised)
    assert (code, out) == (2, "") and "its matrices are stored in int8" in err and err.count("\n") == 1


def test_from_python_too():
    loaded = pair.load(TARGET, HEAD, weights="int8")
    assert "in int8 weights, float32" in repr(loaded) and loaded.engine.target.config.weight_format == "int8"
    with pytest.raises(BadInput, match="^weights should be"):
        pair.load(TARGET, HEAD, weights=8)


def test_methods_are_compared_on_the_quantised_target(tmp_path, capsys, cache):
    suite = write_prompts(tmp_path, IDS[:1])
    given = ["--target", TARGET, "--weights", "int8", "--mesh", "1", "1", "--max-new-tokens", "8", "--suite", str(suite)]
    assert evaluate.main([*given, "--method", f"recurrent:{HEAD}:2x2", "--cache-dir", str(cache), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["dtype"], result["weights"], result["differences"]) == ("float32", "int8", [])
    assert result["target_bytes"] < 0.7 * 4 * result["target_parameters"]


def test_what_is_tuned_for_a_quantised_target_is_for_no_other(tmp_path):
    prompts = str(write_prompts(tmp_path, IDS))
    options = tune.Options(TARGET, drafter=(HEAD,), prompts=prompts, batch=(2,), max_new_tokens=16, weights="int8")
    wanted = load.find(options, TunePlan(((2, 2),), (3,), None, 16, 1.0))
    ((mesh, (resolved, _)),) = wanted.planned.items()
    floats = pair.plan(pair.find(TARGET, HEAD, True, "float32"), mesh, 2)
    machines = [settings.machine_of(mesh, each.numbers) for each in (resolved, floats)]
    assert machines[0].dtype == "int8 weights, float32" and machines[1].dtype == "float32"
    assert any(isinstance(part, Quantised) for part in jax.tree.leaves(load.load(wanted, mesh).target, is_leaf=is_quantised))


def is_quantised(part) -> bool:
    return isinstance(part, Quantised)


def test_a_benchmark_measures_the_quantised_target_and_not_against_another(capsys):
    options = benchmark.Options(shape="demo", layers=1, dtype="bfloat16", weights="int8", max_new_tokens=4, prompt_length=4)
    measured = cases.subject_of(benchmark.task_of(options, "cpu", "int8"))
    assert measured.config.weight_format == "int8" and measured.target.blocks[0].down.weight.values.dtype == "int8"
    assert benchmark.main([*PAIR, "--weights", "int8", "--against-transformers"]) == 2
    assert "which it cannot have as --weights int8" in capsys.readouterr().err


def test_floors_count_a_byte_for_a_weight(capsys):
    given = ["--model", "llama-7b", "--topology", "v5e:1x1", "--floors", "--batch", "1", "--context", "1024", "--json"]
    rows = []
    for weight_format in ("int8", "bfloat16"):
        assert fit.main([*given, "--weights", weight_format]) == 0
        rows.append(json.loads(capsys.readouterr().out)["rows"][0])
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    scales = 4 * 32 * (5 * 4096 + 2 * 11008)
    assert rows[1]["resident"] - rows[0]["resident"] == matrices - scales
    assert 0.5 < rows[0]["plain_seconds"] / rows[1]["plain_seconds"] < 0.6
    assert fit.main([*given, "--weights", "float32", "--dtype", "bfloat16"]) == 2
    assert capsys.readouterr().err.startswith("error: --weights float32 and --dtype bfloat16 differ")
