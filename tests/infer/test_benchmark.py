"""`python -m infer.benchmark`: what it reports of a real pair and at a synthetic shape, and the parts of its arithmetic."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from infer import stages, synthetic
from infer.benchmark import __main__ as benchmark
from infer.benchmark import cases
from infer.benchmark import report as tables
from infer.benchmark.task import Rates
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose import scripted
from redrafter_jax.decode.propose.plain import Plain
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.decode.propose.search import Beams
from redrafter_jax.devices import memory
from redrafter_jax.model.shapes import SHAPES
from tests.support import MODELS, load_pair, policy, put, started, with_features

PAIR = ["--target", str(MODELS / "target_mha"), "--drafter", str(MODELS / "drafter_mha_rnn")]
QUICK = ["--repeats", "1", "--nodes", "1", "3"]


@pytest.fixture
def report(tmp_path, capsys):
    """Runs the command; returns its JSON report and what it printed."""

    def run(*arguments, beams=("1x2", "2x3")):
        file = tmp_path / "report.json"
        assert benchmark.main([*map(str, arguments), *QUICK, "--beams", *beams, "--output", str(file)]) == 0
        return json.loads(file.read_text()), capsys.readouterr().out

    return run


def test_a_real_pair_is_measured_against_plain_decoding_and_transformers(report, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"token_ids": [1, 5, 9, 77]}\n{"token_ids": [4, 4, 8]}\n')
    plot = tmp_path / "plot.png"
    arguments = [*PAIR, "--prompts", prompts, "--max-new-tokens", 24, "--against-transformers", "--plot", plot]
    result, printed = report(*arguments)
    assert [row["shape"] for row in result["rows"]] == ["1x2", "2x3"]
    for row in result["rows"]:
        assert row["identical"] == row["rows"] == 2
        assert sum(row["accepted_histogram"]) > 0 and 1 <= row["tokens_per_step"] <= int(row["shape"][-1]) + 1
        drafting, (width, length) = row["metrics"]["speculative_decoding"], map(int, row["shape"].split("x"))
        assert drafting["mean_acceptance_length"] == pytest.approx(row["tokens_per_step"])
        assert drafting["num_draft_tokens"] == width * length * drafting["num_spec_steps"] > 0
        assert set(row["stage_seconds"]) == {"draft", "pack", "verify", "commit"}
        assert sum(row["stage_seconds"].values()) < 20 * row["round_seconds"]
        assert row["memory_bytes"]["temporaries"] > 0 and row["compile_seconds"] > 0
        assert f"{row['speedup']:.2f}x" in printed
    assert result["transformers"]["identical"] == 2
    assert f"2 of {prompts}" in printed and "of what a sum over all weights reaches here" in printed
    assert set(result["node_seconds"]) == {"1", "3"}
    assert "SYNTHETIC" not in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_synthetic_acceptance_gives_what_was_asked_for_and_says_that_it_is_synthetic(report):
    arguments = ["--shape", "demo", "--layers", 1, "--max-new-tokens", 128, "--prompt-count", 4, "--batch-size", 2]
    result, printed = report(*arguments, "--rates", 0.9, 0.5, beams=["2x3"])
    assert (
        "SYNTHETIC ACCEPTANCE" in printed
        and "8 of 64 random ids" in printed
        and "1 x 1" in result["device"]
        and "1 layers only" in result["subject"]
    )
    (row,), expected = result["rows"], 1 + 0.9 + 0.45 + 0.225
    assert row["expected_tokens_per_step"] == pytest.approx(expected)
    assert row["tokens_per_step"] == pytest.approx(expected, abs=0.25)
    assert row["identical"] == row["rows"] == 8


def test_shapes_that_cannot_reach_the_tokens_per_step_asked_for_are_named():
    rows = [{"shape": f"{width}x{length}", "rates": [1.0] * length} for width, length in ((1, 1), (4, 1), (1, 2))]
    assert tables.out_of_reach(rows, Rates(tokens_per_step=2.2)).startswith("note: 1x1, 4x1 cannot")
    assert not tables.out_of_reach(rows, Rates(tokens_per_step=1.8))
    assert not tables.out_of_reach(rows, Rates((0.5,)))


def test_the_table_has_a_legend_and_at_most_100_columns():
    row = {"shape": "16x4 + lookup", "nodes": 1024, "tokens_per_step": 3.21, "tokens_per_second": 1234.5, "speedup": 1.234}
    row |= {"speedup_from_to": (1.1, 1.35), "round_seconds": 1.23, "round_over_autoregressive": 1.83, "identical": 20, "rows": 20}
    search = row | {"stage_seconds": {"noise": 0.001, "draft": 0.0022, "pack": 0.0001, "verify": 0.009, "commit": 0.0003}}
    lookup = row | {"stage_seconds": {"propose": 0.0001, "verify": 1.2, "commit": 0.003}}
    lines = [*tables.legend().splitlines(), *tables.row(search, True, 13).splitlines(), tables.row(lookup, False, 13)]
    assert max(map(len, lines)) <= 100 and len({len(line) for line in lines[-3:]}) == 1
    assert lines[-2].split()[-5:] == ["3.20", "0.100", "9.00", "0.300", "20/20"] and lines[-1].split()[-4:-2] == ["-", "1200"]
    assert all(name in tables.LEGEND for name in ("WxL:", *tables.COLUMNS) if name not in ("tok/s", "steps"))


def test_the_colours_of_the_plot_turn_at_one_whatever_the_best_and_the_worst_are(tmp_path):
    rows = [{"shape": shape, "speedup": speedup, "tokens_per_step": 1.5} for shape, speedup in (("1x2", 0.32), ("2x2", 0.6))]
    report = {"rows": rows, "subject": "x", "device": "y", "acceptance": "real"}
    figure = tables.plot(report, tmp_path / "plot.png", "test")
    colours = [axes.images[0].norm for axes in figure.axes]
    assert all((norm.vcenter, norm.vmin, norm(1.0)) == (1, 0, 0.5) and norm(0.32) < 0.5 < norm(1.2) for norm in colours)


def test_filters_are_measured_where_they_are_asked_for():
    task = benchmark.task_of(benchmark.Options(temperature=0.8, top_k=20, top_p=0.9), "cpu")
    assert task.sampling == Sampling(0.8, 20, 0.9)


@pytest.mark.parametrize("device_memory, mesh", [(16 << 30, (1, 8)), (None, (1, 1))])
def test_the_mesh_is_the_one_that_decoding_would_choose(device_memory, mesh, monkeypatch):
    """Eight simulated devices with, or without, a memory of their own."""
    monkeypatch.setattr(cases.synthetic, "random_target", lambda *_: None)
    monkeypatch.setattr(cases.vocabulary, "as_decoded", lambda *_: None)
    monkeypatch.setattr(cases.synthetic, "random_head", lambda *_: None)
    monkeypatch.setattr(jax.Device, "memory_stats", lambda _: device_memory and {"bytes_limit": device_memory}, raising=False)
    monkeypatch.setattr(memory, "of_host", lambda: None)  # whatever the machine of the tests has left
    what = cases.subject_of(benchmark.task_of(benchmark.Options(shape="llama-7b", dtype="bfloat16"), "cpu"))
    assert tuple(jax.sharding.get_mesh().shape.values()) == mesh
    assert what.mesh_because.startswith(f"mesh {mesh[0]} {mesh[1]}: ")


def test_the_probability_for_a_number_of_tokens_per_step_is_solved_for():
    rates = synthetic.rates_for(4.2, 5)
    assert len(set(rates)) == 1 and synthetic.expected(rates) == pytest.approx(4.2)
    assert synthetic.expected([0.5, 0.5, 0.0]) == pytest.approx(1.75)
    assert synthetic.rates_for(1.0, 3) == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_lucky_row_has_the_known_text_in_its_best_beam_and_an_unlucky_one_what_was_drafted():
    target, drafter = load_pair("mha_rnn")
    state = started(target, [[1, 5, 9], [4, 4, 8]], new=8, length=2)
    text = put(np.arange(18).reshape(2, 9), np.int32)
    drafted = Beams(
        put(np.full((2, 2, 2), 400), np.int32), put(np.ones((2, 2, 2)), np.int32), put(np.full((2, 2, 2), -3.0), np.float32)
    )
    drafts = Recurrent(drafter, Shape(2, 2))
    always, never = (scripted.scripted(drafts, text, rates) for rates in ((1.0, 1.0), (0.0, 0.0)))
    beams = always.overwrite(drafted, state.view())
    np.testing.assert_array_equal(beams.tokens[:, :, 0], [[4, 5], [13, 14]])  # three of the prompt; and g is decided already
    np.testing.assert_array_equal(beams.tokens[:, :, 1], 400)
    np.testing.assert_array_equal(beams.parents[:, :, 0], 0)
    np.testing.assert_array_equal(never.overwrite(drafted, state.view()).tokens, drafted.tokens)


def test_runs_take_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert stages.in_turn(runs, 2) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert order == list("abab")


def test_a_head_that_reads_inner_layers_is_built_with_a_target_that_shows_them():
    target, drafter = load_pair("mha_rnn")
    engine = Engine(target, Recurrent(with_features(drafter), Shape(1, 2)))
    (reply,) = engine.generate([[1, 5, 9]], Sampling(), Limits(8))
    inputs, bucket = engine.prepare([[1, 5, 9]], Sampling(), Limits(8), [0])
    state, _, _ = stages.build(target, engine.proposer, inputs, bucket).decode(inputs)
    assert np.asarray(state.tokens)[0, 3:11].tolist() == reply.token_ids and int(state.rounds[0]) == reply.rounds
    unlucky = scripted.scripted(engine.proposer, state.tokens, [0.0])  # its own drafts alone
    state, _, _ = stages.build(target, unlucky, inputs, bucket).decode(inputs)
    assert np.asarray(state.tokens)[0, 3:11].tolist() == reply.token_ids and int(state.rounds[0]) == reply.rounds


def test_a_random_head_may_read_inner_layers_as_train_mains_best_does():
    assert synthetic.head_config(SHAPES["demo"], "best").depths == (1, 3)
    assert {synthetic.head_config(SHAPES["demo"], kind).depths for kind in ("slim", "full")} == {()}
    shallow = dataclasses.replace(SHAPES["demo"], num_hidden_layers=1)
    assert synthetic.head_config(shallow, "best").depths == ()


def test_a_stage_is_run_as_often_as_it_is_counted():
    """A commit is the one stage with a visible effect: the rounds of the state count how often it ran."""
    target, drafter = load_pair("mha_rnn")
    state = started(target, [[1, 5, 9]], new=64, length=2, how=policy(1))
    from redrafter_jax.decode import pack, verify

    verdict = jax.jit(lambda s: verify.verify(target, pack.root_only(s.g), s.cache, s.policy, None, 2))(state)
    after, _, _ = stages._repeated(stages._commit, (target, Plain()), state, verdict)
    assert int(after.rounds[0]) == stages.RUNS_PER_CALL


@pytest.mark.parametrize(
    "arguments, named",
    [
        ("--beams 4by4", "--beams"), ("--beams ²x4", "--beams"),
        ("--beams 0x4", "--beams"), ("--repeats 0", "--repeats"), ("--nodes 0", "--nodes"),
        ("--rates 0.5", "--rates"), ("--shape demo --rates 1.5", "--rates"), ("--shape demo --layers 0", "--layers"),
        ("--shape demo --target x", "--target"), ("--target x", "--drafter"), ("--temperature nan", "--temperature"),
        ("--shape demo --against-transformers", "--against-transformers"), ("--output /nowhere/x.json", "--output"),
        ("--target /nowhere --drafter /nowhere", "--target"), ("--shape demo --max-new-tokens 4096", "--max-new-tokens"),
        ("--bandwidth -1", "--bandwidth"), ("--node-budget 1", "--node-budget"), ("--mesh 64 1 --shape demo", "--mesh"),
        ("--shape demo --tokens-per-step nan", "--tokens-per-step"), ("--shape demo --tokens-per-step 0", "--tokens-per-step"),
        ("--top-k -1", "--top-k"), ("--top-p 0", "--top-p"), ("--top-p nan", "--top-p"),
        ("--output /", "--output"), ("--plot /nowhere/x.png", "--plot"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_that_names_the_option(arguments, named, capsys):
    assert benchmark.main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and named in captured.err
