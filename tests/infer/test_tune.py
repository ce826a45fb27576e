"""`python -m infer.tune` as its user meets it, and what the other commands do with the file that it writes."""

import json

import pytest

from infer import settings
from infer.benchmark import __main__ as benchmark
from infer.benchmark import tuning
from infer.generate import __main__ as generate
from infer.tune import __main__ as tune
from infer.tune import acceptance, race
from tests.options import IDS, PAIR

QUICK = ["--beams", "2x2", "--nodes", "3", "--max-new-tokens", "16", "--seconds", "0.1", "--batch", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With prompts, and with the settings and the plot of a run that was interrupted in its race and started again."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in IDS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "run", interrupted_after_two_laps)
        assert run(folder) == 130
    kept = json.loads((folder / "settings.json").read_text())
    assert kept["entries"] == [] and len(kept["measured"]) == 1
    (measured,) = kept["measured"].values()
    assert [len(value["laps"]) for name, value in measured.items() if " race " in name] == [2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acceptance, "read_hidden", never)  # what was measured is not measured again
        patch.setattr("infer.tune.measure.CUTS", ())
        assert run(folder, "--plot", str(folder / "plot.png")) == 0
    return folder


def interrupted_after_two_laps(contenders, seconds, laps, keep):
    keep([{name: 1.0 for name in contenders}] * 2)
    raise KeyboardInterrupt


def never(*_):
    raise AssertionError("this has been measured")


def run(folder, *more):
    paths = ["--prompts", str(folder / "prompts.jsonl"), "--output", str(folder / "settings.json")]
    return tune.main([*PAIR, *QUICK, *paths, "--cache-dir", str(folder / "programs"), *more])


def test_a_run_that_was_interrupted_goes_on_and_leaves_a_choice(folder):
    content = json.loads((folder / "settings.json").read_text())
    assert content["measured"] == {}
    (entry,) = settings.entries_of(content, folder, "")
    assert (entry.conditions.batch, entry.conditions.context) == (2, max(map(len, IDS)) + 16)
    assert (entry.choice.width, entry.choice.length) == (2, 2) and entry.choice.nodes in (0, 3)
    assert entry.choice.tokens_per_second == pytest.approx(entry.choice.speedup * entry.choice.plain_tokens_per_second)
    assert 1 <= entry.choice.tokens_per_step <= 3
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def choose(folder, tmp_path, **choice):
    """A copy of the settings with another choice."""
    content = json.loads((folder / "settings.json").read_text())
    content["entries"][0]["choice"] |= choice
    (tmp_path / "s.json").write_text(json.dumps(content))
    return ["--settings", str(tmp_path / "s.json")]


def decode(folder, capsys, *arguments):
    """`infer.generate` on the prompts in batches of two; returns its exit code, the replies, and standard error."""
    common = ["--prompts", str(folder / "prompts.jsonl"), "--max-new-tokens", "6", "--batch-size", "2", "--json"]
    code = generate.main([*PAIR, *common, "--cache-dir", str(folder / "programs"), *arguments])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_generate_takes_the_shape_and_says_so(folder, tmp_path, capsys):
    chosen = choose(folder, tmp_path, width=1, length=3, nodes=0, speedup=1.2)
    code, replies, err = decode(folder, capsys, *chosen)
    assert code == 0 and len(replies[0]["accepted_histogram"]) == 4  # 0..L
    assert f"settings of {tmp_path}/s.json" in err and "1x3 with drafter_mha_rnn, 1.20x" in err


def test_generate_decodes_plainly_where_that_was_faster_unless_told(folder, tmp_path, capsys):
    chosen = choose(folder, tmp_path, width=1, length=3, nodes=0, speedup=0.8)
    code, plain, err = decode(folder, capsys, *chosen)
    assert code == 0 and [len(reply["accepted_histogram"]) for reply in plain] == [1] * len(IDS)
    assert "plain decoding, drafting had 0.80x (--decoding speculative drafts)" in err
    _, told, err = decode(folder, capsys, *chosen, "--decoding", "speculative")
    assert len(told[0]["accepted_histogram"]) == 4 and "1x3 with drafter_mha_rnn, 0.80x" in err
    assert [reply["token_ids"] for reply in told] == [reply["token_ids"] for reply in plain]


def test_generate_reads_no_settings_where_it_is_told_how_to_draft():
    def tuning_of(**options):
        return generate.task_of(generate.Options(**options)).tuning

    for told in (
        {"beam_width": 1},
        {"draft_top_k": 0},
        {"drafter": "lookup"},
        {"beside": "lookup"},
        {"decoding": "autoregressive"},
    ):
        assert tuning_of(**told).source.path is None
    assert tuning_of(settings="none").source.path is None
    assert tuning_of().source.path == settings.default_file() and tuning_of().may_be_plain
    assert tuning_of(decoding="speculative").source.path and not tuning_of(decoding="speculative").may_be_plain


@pytest.mark.slow
def test_settings_of_another_number_format_are_not_used(folder, capsys):
    code, _, err = decode(folder, capsys, "--settings", str(folder / "settings.json"), "--dtype", "bfloat16")
    assert code == 0 and "is not used: it is for the dtype float32, and this is bfloat16" in err


def test_the_benchmark_measures_the_shape_too(folder, tmp_path, capsys):
    _, path = choose(folder, tmp_path, width=2, length=2, nodes=4)
    options = benchmark.Options(target=PAIR[1], drafter=PAIR[3], dtype="float32", batch_size=2)
    task = tuning.apply(benchmark.task_of(options, "cpu"), settings.source_of(path), has_beams=False)
    assert (task.ways[0].name, task.ways[0].shape.nodes, task.models.drafter) == ("2x2", 4, PAIR[3])
    assert task.ways[1:] == benchmark.task_of(options, "cpu").ways
    assert f"settings of {path}: 2x2, 4 nodes at most with drafter_mha_rnn" in capsys.readouterr().err
    assert tuning.apply(task, settings.source_of(path), has_beams=True) is task


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "--batch should be from 1 to 4096"),
        (["--drafter", "lookup"], "--drafter lookup has no beams"),
        (["--target", "t"], "--drafter is missing"),
        (["--nodes", "1"], "--nodes should be from 2 up"),
        (["--context", "9"], "--context should be from 97"),
        (["--beams", "x"], "--beams should be widths and lengths"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, said, tmp_path, capsys):
    assert tune.main([*arguments, "--output", str(tmp_path / "s.json")]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_file_of_another_kind_is_kept(tmp_path, capsys):
    (tmp_path / "s.json").write_text('{"mine": 1}')
    assert tune.main(["--output", str(tmp_path / "s.json")]) == 2
    assert "is not a file of settings and is kept" in capsys.readouterr().err


@pytest.mark.slow
def test_the_choice_is_compared_with_every_point(folder, tmp_path, capsys):
    paths = [
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--output",
        str(tmp_path / "s.json"),
        "--cache-dir",
        str(folder / "programs"),
    ]
    assert tune.main([*PAIR, *QUICK, *paths, "--check-grid"]) == 0
    assert "the fastest of 2 points and plain decoding is" in capsys.readouterr().out
