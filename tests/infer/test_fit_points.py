"""What `infer.fit` and `train.fit` make of the compiler's answers: meshes, floors, refusals, recommendations."""

import dataclasses
import importlib.util
import itertools
import json
import re
import time

import pytest

from infer import fitting
from infer.fit import __main__ as fit
from infer.fit import points
from infer.fit import report as fit_report
from infer.fit.advice import Advice
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.errors import BadInput
from redrafter_jax.model import drafter
from redrafter_jax.slices import compiler, roofline, topology
from redrafter_jax.slices.chips import CHIPS
from tests.on_slice import BATCH, HEAD, MESH, SHAPE, TARGET
from train.fit import __main__ as train_fit
from train.fit import points as step_points
from train.fit import report as step_report
from train.run import recipe as recipes

LLAMA_33B = topology.read_target_config("llama-33b")  # 52 heads, so that 8 shards of `model` do not divide it
HEAD_33B = drafter.full(LLAMA_33B.vocab_size, LLAMA_33B.hidden_size)


@pytest.mark.parametrize("given", [(-1, -8), (0, 8), (2, 2)])
def test_a_mesh_has_all_chips(given):
    with pytest.raises(BadInput, match="^mesh should be two numbers whose product is the 8 chips of v5e:2x4"):
        topology.choose_meshes(given, "v5e:2x4", TARGET, HEAD)


def test_a_mesh_that_cannot_split_the_target_is_refused_if_given_and_left_out_if_not():
    with pytest.raises(BadInput, match="^--mesh 1 8 cannot split this target: 8 does not divide"):
        topology.choose_meshes((1, 8), "v5e:2x4", LLAMA_33B, HEAD_33B, "--mesh")
    tried, left_out = topology.choose_meshes(None, "v5e:2x4", LLAMA_33B, HEAD_33B)
    assert tried == [(8, 1), (4, 2), (2, 4)]
    assert left_out == ["mesh 1x8: 8 does not divide the target's num_attention_heads 52"]


def test_a_batch_that_no_mesh_takes_is_named():
    tried = [(8, 1), (4, 2), (2, 4)]
    said = "no mesh of all 8 chips takes batch 1; data shards are 2, 4, 8; give a multiple"
    assert topology.refuse_batches((1, 2, 12), tried) == {1: said}
    assert topology.refuse_batches((1, 8), [(8, 1)]) == {1: "mesh 8x1 does not take batch 1; data shards are 8; give a multiple"}
    with pytest.raises(BadInput, match=f"^--batch: {said}"):
        topology.refuse_batches((1, 3), tried, "--batch")


FLOORS = ["--model", "llama-7b", "--topology", "v5e:2x4", "--floors"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mesh", "-1", "-8"], "--mesh should be two numbers whose product is the 8 chips"),
        (["--mesh", "8", "1", "--batch", "1"], "--batch: mesh 8x1 does not take batch 1"),
        (["--head-vocab", "32001"], "--head-vocab should be from 0 (all) to the vocabulary of 32000"),
        (["--candidates", "512"], "--rank should be from 1 to 8192, the rank of the LM head's matrix, not 0"),
        (["--candidates", "32001", "--rank", "64"], "--candidates should be from 1 to the vocabulary of 32000, not 32001"),
        (["--depths", "2", "--method", "medusa"], "--depths is of --method recurrent; leave it out"),
        (["--depths", "32"], "--depths should be from 0 to below the 32 layers of --model, not 32"),
        (["--rank", "64", "--method", "medusa"], "--rank is of --method recurrent; leave it out"),
        (["--candidates", "64", "--rank", "8", "--head-vocab", "99"], "this head has a draft vocabulary of 99"),
        (
            ["--candidates", "8", "--rank", "8", "--beams", "9x2"],
            "--beams 9x2: its width should be at most the number of the head's",
        ),
        (["--beams", "4x4", "1024x64"], "--beams 1024x64 makes 65537 nodes, over 4096"),
        (["--nodes", "2", "2"], "--nodes should name each once, not 2 2"),
        (["--beams", "4x4", "04x4"], "--beams should name each once, not 4x4 04x4"),
        (["--batch", "8", "1", "8"], "--batch should name each once, not 8 1 8"),
        (["--whole"], "--whole does not go with --floors"),
        (["--sampling", "sampled"], "--sampling does not go with --floors"),
        (["--most", "2"], "--most does not go with --floors"),
    ],
)
def test_bad_input_is_one_sentence_where_nothing_is_compiled_too(arguments, said, capsys):
    assert fit.main([*FLOORS, *arguments]) == 2
    out = capsys.readouterr()
    assert out.err.startswith("error: ") and said in out.err and out.err.count("\n") == 1 and not out.out


def floors(capsys, *more: str) -> dict:
    assert fit.main([*FLOORS, "--beams", "4x4", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_floors_leave_out_a_batch_that_their_mesh_does_not_take(capsys):
    report = floors(capsys, "--mesh", "8", "1", "--batch", "1", "8")
    assert [row["batch"] for row in report["rows"]] == [8]
    assert len(report["left_out"]) == 1 and "batch 1" in report["left_out"][0]


def test_the_floors_take_the_most_shards_of_model_that_divide_the_target(capsys):
    assert fit.main(["--model", "llama-33b", "--topology", "v5e:2x4", "--floors", "--batch", "8"]) == 0
    assert "mesh 2x4" in capsys.readouterr().out  # 52 heads


@pytest.mark.parametrize("head", ["full", "slim"])
def test_a_head_that_drafts_fewer_tokens_holds_and_costs_less(head, capsys):
    (whole,), (small,) = (floors(capsys, "--batch", "1", "--head", head, *more)["rows"] for more in ([], ["--head-vocab", "8000"]))
    D, shards = 4096, 8
    saved = 2 * D * (32000 - 8000) if head == "full" else -D * 8000  # a slim head keeps its columns of the target's beside them
    assert whole["resident"] - small["resident"] == pytest.approx(2 * saved / shards, rel=0.01)
    assert small["draft_over_plain"]["4x4"] < whole["draft_over_plain"]["4x4"]


@pytest.mark.parametrize(("name", "kind"), [("paper", "full"), ("best", "slim")])
def test_a_name_of_a_head_is_counted_as_what_it_stands_for(name, kind, capsys):
    parts = {"best": ("--depths", "2")}.get(name, ())
    named, plain = (floors(capsys, "--batch", "1", "--head", *head)["rows"] for head in ((name,), (kind, *parts)))
    assert named == plain
    recipe = train_fit.recipe_of(train_fit.Options("", head=name))
    assert recipe.head == kind and recipe.distance_weight == (0.5 if name == "best" else 0)
    assert recipe.depths == recipes.named(recipes.Recipe(), name).depths == (2 if name == "best" else 0)
    assert train_fit.recipe_of(train_fit.Options("", head=name, distance_weight=0.25)).distance_weight == 0.25
    assert train_fit.recipe_of(train_fit.Options("", head=name, depths=1)).depths == 1
    assert train_fit.recipe_of(train_fit.Options("", head=name, method="medusa")).depths == 0


def test_features_are_a_matrix_of_the_head_and_cost_a_round_next_to_nothing(capsys):
    plain, reads = (floors(capsys, "--batch", "1", "--head", "slim", "--depths", depths)["rows"][0] for depths in "02")
    D, shards = 4096, 8
    assert (reads["resident"] - plain["resident"]) / (2 * 2 * D * D / shards) == pytest.approx(1, abs=0.01)
    assert 1 < reads["round_over_plain"]["4x4"] / plain["round_over_plain"]["4x4"] < 1.01


def test_the_heading_says_how_much_the_head_can_draft(capsys):
    assert fit.main([*FLOORS, "--batch", "1", "--head-vocab", "8000"]) == 0
    assert "full head of 8000 tokens" in capsys.readouterr().out


def test_a_head_with_candidates_reads_less_and_a_slim_one_holds_the_lm_head_by_token(capsys):
    few = ["--candidates", "512", "--rank", "128"]
    for head in ("full", "slim"):
        (whole,), (small,) = (floors(capsys, "--batch", "1", "--head", head, *more)["rows"] for more in ([], few))
        D, E, V = 4096, 8192 if head == "full" else 4096, 32000
        more = 128 * (E + V) + (D * V if head == "slim" else 0)
        assert small["resident"] - whole["resident"] == pytest.approx(2 * more / 8, rel=0.01)
        assert small["draft_over_plain"]["4x4"] < whole["draft_over_plain"]["4x4"]
    assert fit.main([*FLOORS, "--batch", "1", *few]) == 0
    assert "full head with 512 candidates of rank 128" in capsys.readouterr().out


def refusing(layers: int) -> compiler.Program:
    raise compiler.DoesNotFit(1000 * layers)


def test_bytes_of_a_refusal_are_those_of_all_layers_or_none():
    for layers, whole, said in ((32, False, None), (32, True, 32000), (2, False, 2000)):
        with pytest.raises(compiler.DoesNotFit) as refused:
            compiler.at_depth(refusing, layers, whole)
        assert refused.value.bytes == said


def nowhere() -> topology.Slice:
    return topology.Slice("v5e:2x4", CHIPS["v5e"], (None,) * 8)


@pytest.mark.parametrize(("bytes_", "shown"), [(None, ">"), (20 << 30, "20.00")])
def test_a_refused_point_shows_what_is_known_of_it(bytes_, shown, monkeypatch):
    def refuse(*_):
        raise compiler.DoesNotFit(bytes_)

    monkeypatch.setattr(points, "compile_point", refuse)
    row = points.row(points.Workload(nowhere(), TARGET, HEAD, "bfloat16", 4000), MESH, BATCH, SHAPE)
    cells = fit_report.cells_of(row, row)
    assert cells[4].startswith(shown) and cells[5] == "no" and row["held"] >= 1 << 20


@pytest.mark.parametrize(("bytes_", "shown"), [(None, "?"), (20 << 30, "20.00")])
def test_a_refused_training_step_shows_what_is_known_of_it(bytes_, shown, monkeypatch):
    def refuse(*_):
        raise compiler.DoesNotFit(bytes_)

    monkeypatch.setattr(step_points, "compile_step", refuse)
    deep = dataclasses.replace(TARGET, num_hidden_layers=8)
    row = step_points.row(step_points.StepSubject(nowhere(), deep, None, "bfloat16"), MESH, BATCH, whole=bytes_ is not None)
    assert step_report.cells_of(row)[2:4] == [shown, "no"]


def test_a_refusal_without_bytes_is_null_in_json(monkeypatch):
    def refuse(*_):
        raise compiler.DoesNotFit(None)

    monkeypatch.setattr(points, "compile_loop", refuse)
    found = points.check(points.Workload(nowhere(), TARGET, HEAD, "bfloat16", 4000), Advice(8, MESH, None, None), "step")
    assert json.loads(json.dumps(found, allow_nan=False))["held"] is None and not found["fits"]


def test_the_training_step_that_is_recommended_fits_with_all_layers():
    rows = [{"batch": batch, "fits": batch < 9, "whole": False, "tokens_per_second": batch} for batch in range(1, 12)]
    whole = lambda most: lambda row: row | {"whole": True, "fits": row["batch"] <= most}  # noqa: E731
    best, refused = step_points.find_best(rows, whole(6))
    assert best["batch"] == 6 and best["whole"] and [row["batch"] for row in refused] == [8, 7]
    best, refused = step_points.find_best(rows, whole(0))
    assert best is None and len(refused) == 1 + fitting.MAX_RETRIES
    assert step_report.advised(best, refused, "model").startswith("none of the last 4 lines")
    assert step_report.advised(None, [], "model").startswith("nothing fits; take --shard-target data,model, more chips")
    assert step_report.advised(None, [], "data,model").startswith("nothing fits; take more chips")
    advised = step_report.advised({"mesh": [8, 1], "batch": 8}, [], "data,model")
    assert advised.startswith("--mesh 8 1 --shard-target data,model with 8 rows at once")


def test_a_failure_of_the_compiler_itself_takes_its_point_alone(monkeypatch):
    def fail(*_):
        raise compiler.CompilerFailed("the TPU compiler failed (INTERNAL: x)")

    monkeypatch.setattr(points, "compile_point", fail)
    monkeypatch.setattr(points, "compile_loop", fail)
    monkeypatch.setattr(step_points, "compile_step", fail)
    subject = points.Workload(nowhere(), TARGET, HEAD, "bfloat16", 4000)
    row = points.row(subject, MESH, BATCH, SHAPE)
    said = fitting.line(fit_report.cells_of(row, row), fit_report.COLUMNS)
    assert not row["fits"] and "the TPU compiler failed (INTERNAL: x)" in said
    check = points.check(subject, Advice(BATCH, MESH, "4x2", 1.2), "round")
    assert not check["fits"] and fit_report._sizes([check]) == "round the TPU compiler failed (INTERNAL: x)"
    step = step_points.row(step_points.StepSubject(nowhere(), TARGET, None, "bfloat16"), MESH, BATCH, whole=True)
    said = fitting.line(step_report.cells_of(step), step_report.COLUMNS)
    assert not step["fits"] and "the TPU compiler failed (INTERNAL: x)" in said


@pytest.fixture
def made_up(monkeypatch):
    """`infer.fit` with points that nothing compiles: those asked for first are there last."""
    patience = itertools.count(60, -1)

    def point(subject, mesh, batch, shape):
        time.sleep(0.005 * max(next(patience), 0))
        if batch == 64:
            raise BadInput("no more")
        cost = mesh[0] * (1 + 0.1 * shape.length)
        costs = {"seconds": {"draft": 0.0, "verify": cost, "rest": 0.0, "links": 0.0}, "round_seconds": cost}
        counts = {"flops": 1.0, "flops_by_hand": {"verify": 1}, "bytes_by_hand": {"verify": 1}, "links": 2, "link_bytes": 3.0}
        facts = {"mesh": list(mesh), "batch": batch, "shape": points.name(shape), "nodes": shape.nodes, "held": 1 << 30}
        return facts | costs | counts | {"fits": True, "floor_seconds": {"verify": cost}, "verify_is_bound_by": "memory"}

    monkeypatch.setattr(topology, "find_slice", lambda *names: nowhere())
    monkeypatch.setattr(points, "row", point)
    monkeypatch.setattr(points, "node_row", lambda subject, mesh, batch, count: point(subject, mesh, batch, Shape(count, 1)))
    monkeypatch.setattr(points, "check", lambda subject, advice, what: {"what": what, "held": 1 << 30, "fits": True})


def test_points_are_reported_in_order_whichever_is_there_first(made_up, capsys):
    arguments = ["--model", "llama-7b", "--batch", "1", "8", "--beams", "2x2", "4x4", "--nodes", "3", "5"]
    assert fit.main(arguments) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" +\dx\d ", line)]
    shapes = ["AR", "2x2", "4x4", "N=3", "N=5"]
    meshes = [("1x8", "1"), *((mesh, "8") for mesh in ("8x1", "4x2", "2x4", "1x8"))]
    assert [cells[:3] for cells in printed] == [[*mesh, shape] for mesh in meshes for shape in shapes]
    assert [cells[11] for cells in printed[:3]] == ["1.00", "1.20", "1.40"]
    assert fit.main(arguments) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if len(line) > 100 and not line.startswith(("batch ", "    All"))] == []
    assert "floor/AR:" in printed and "ridge" in printed
    assert fit.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(one["batch"], one["mesh"], one["shape"]) for one in report["advice"]] == [(1, [1, 8], "4x4"), (8, [1, 8], "4x4")]
    assert [one["what"] for one in report["advice"][0]["checked"]] == ["step", "round", "prefill"]


def test_a_point_that_cannot_be_had_ends_the_command_with_its_sentence(made_up, capsys):
    assert fit.main(["--model", "llama-7b", "--batch", "8", "64", "--beams", "2x2"]) == 2
    assert capsys.readouterr().err == "error: no more\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["llama-7b", "--topology", "v9:2x2"], "--topology should be a chip"),
        (["llama-7b", "--topology", "v5e:100000x100000"], "at most the 256 chips of a whole pod of v5e"),
        (["llama-7b", "--topology", "v5p:" + "9" * 5000 + "x1"], "--topology should be a chip"),
        (
            ["llama-7b", "--topology", "v5e:2x4", "--mesh", "2", "2"],
            "the 8 chips of v5e:2x4, not 2 2; 8 1, 4 2, 2 4 and 1 8 would do",
        ),
        (["llama-33b", "--topology", "v5e:2x4", "--mesh", "1", "8"], "num_attention_heads 52; 8 1, 4 2 and 2 4 would do"),
        (["nonsense"], "--model should be one of"),
        (["llama-7b", "--batch", "0"], "--batch should be from 1"),
    ],
)
@pytest.mark.parametrize("command", [fit, train_fit], ids=["infer", "train"])
def test_bad_input_is_one_sentence_and_named_before_a_missing_compiler(command, arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command.main(["--model", *arguments]) == 2
    out = capsys.readouterr()
    assert out.err.startswith("error: ") and said in out.err and out.err.count("\n") == 1 and "Traceback" not in out.err


def test_a_missing_compiler_is_named_with_its_installation(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="pip install"):
        topology.find_slice("v5e:2x4")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_at_the_knee_reading_takes_as_long_as_computing(chip):
    head = drafter.full(TARGET.vocab_size, TARGET.hidden_size)
    setting = roofline.Setting(TARGET, head, 1, 1, 4, 1 << 20, 2)
    nodes = round(roofline.knee(setting, chip))
    work = roofline.verify(setting, nodes)
    assert work.flops / chip.peak == pytest.approx(work.bytes / chip.bandwidth, rel=0.05)
    assert not roofline.verify(setting, nodes // 2).is_compute_bound(chip)
    assert roofline.verify(setting, nodes * 2).is_compute_bound(chip)
