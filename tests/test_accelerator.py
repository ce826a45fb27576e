"""`scripts/accelerator.sh`: parts that fail, hang or come too late leave the others alone; what is written, and when."""

import json
import sys

import pytest

from scripts import accelerator, accelerator_page
from scripts.accelerator import Part

DEVICE = {"kind": "NVIDIA H100 80GB HBM3", "platform": "gpu", "count": 1, "bytes": 80 << 30, "jax": "0.10.2"}


def part(name: str, code: str, limit: float = 60, result=None) -> Part:
    return Part(name, (sys.executable, "-c", code), limit, result)


@pytest.fixture
def parts(tmp_path):
    """Parts that end well, fail, hang, say that they are done and write no JSON; and one for which no time is left."""
    file = tmp_path / "result.json"
    return [
        part("good", f"open({str(file)!r}, 'w').write('{{\"figure\": 7}}'); print('all well')", result=file),
        part("fails", "print('out of memory'); raise SystemExit(3)"),
        part("hangs", "import time; print('begun', flush=True); time.sleep(60)", limit=2),
        part("broken", "print('x')", result=tmp_path / "none.json"),
        part("late", "print('never')"),
    ]


def test_a_part_that_fails_or_hangs_leaves_the_others_alone(parts):
    found = {part.name: accelerator.run_part(part, part.limit) for part in parts[:4]}
    assert found["good"]["status"] == "done" and found["good"]["result"] == {"figure": 7}
    assert found["fails"]["status"] == "failed with exit code 3" and "out of memory" in found["fails"]["last_lines"]
    assert found["hangs"]["status"] == "stopped after 2 s" and "begun" in found["hangs"]["last_lines"]
    assert found["hangs"]["seconds"] < 30
    assert found["broken"]["status"].startswith("failed:") and "result" not in found["broken"]


def test_a_part_for_which_no_time_is_left_is_skipped(parts):
    ((name, found),) = accelerator.run_all(parts[-1:], minutes=1 / 60)
    assert name == "late" and found["status"] == "skipped: no time was left"


@pytest.fixture
def run(parts, tmp_path, monkeypatch):
    """Runs the script with the given parts; returns its exit code and the folder."""
    monkeypatch.setattr(accelerator, "read_device", lambda: DEVICE)

    def command(*wanted):
        monkeypatch.setattr(accelerator, "plan", lambda *_: [each for each in parts if each.name in wanted])
        return accelerator.command(["--output", str(tmp_path / "report")]), tmp_path / "report"

    return command


def test_both_files_are_written_after_every_part(run, monkeypatch):
    seen, real = [], accelerator.write

    def write(folder, report):
        real(folder, report)
        seen.append(
            [json.loads((folder / "accelerator.json").read_text())["parts"].keys(), (folder / "accelerator.md").read_text()]
        )

    monkeypatch.setattr(accelerator, "write", write)
    code, folder = run("good", "fails")
    assert code == 1 and [list(names) for names, _ in seen] == [["good"], ["good", "fails"]]
    report = json.loads((folder / "accelerator.json").read_text())
    assert report["int8"] == "not supported yet" and report["bandwidth"] == 3350 and report["device"] == DEVICE
    assert "| fails | failed with exit code 3: out of memory |" in seen[1][1] and "int8: not supported yet." in seen[1][1]


def test_a_second_run_replaces_the_first_and_nothing_else(run, capsys):
    assert run("good")[0] == 0
    code, folder = run("good")
    assert code == 0
    (folder / "accelerator.md").write_text("# Mine\n")
    assert run("good")[0] == 2
    assert "is not a report of" in capsys.readouterr().err and (folder / "accelerator.md").read_text() == "# Mine\n"


def test_the_page_shows_every_kind_of_result():
    row = {"shape": "4x4", "tokens_per_step": 2.5, "speedup": 1.9, "round_seconds": 0.01, "round_over_autoregressive": 1.3}
    row |= {"stage_seconds": {"draft": 0.001, "verify": 0.008}, "identical": 1, "rows": 1}
    plain = {"tokens_per_second": 120.0, "round_seconds": 0.008, "read_rate": 1.6e12, "yardstick_rate": 3.2e12}
    step = {"shape": "llama-7b", "head": "slim", "rows": 4, "row_length": 1024, "median_seconds": 0.5, "tokens_per_second": 8192}
    choice = {"width": 2, "length": 3, "nodes": 5, "tokens_per_step": 2.0, "speedup": 0.9}
    entry = {"choice": choice, "head_name": "/a/drafter", "conditions": {"batch": 4}}
    results = {
        "llama-7b, batch 1": {"autoregressive": plain, "rows": [row], "node_seconds": {"1": 0.008, "64": 0.009}},
        "training": {**step, "argument_bytes": 2**33, "temporary_bytes": 2**33},
        "tune": {"entries": [entry]},
    }
    parts = {name: {"status": "done", "seconds": 9, "result": result} for name, result in results.items()}
    report = {
        "device": DEVICE,
        "version": "0.1.0",
        "began": "now",
        "bandwidth": 3350,
        "is_dry_run": False,
        "int8": "x",
        "parts": parts,
    }
    page = accelerator_page.page(report)
    for said in (
        "| 1,600 | 50% |",
        "1: 8.000, 64: 9.000",
        "| 4x4 | 2.50 | 1.90x | 10.000 |",
        "| 4 x 1024 | 0.500 | 8,192 | 16.0 |",
    ):
        assert said in page
    assert "2x3, 5 nodes | 2.00 | 0.90x (do not speculate) |" in page


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--minutes", "0"], "--minutes should be above 0"), (["--parts", "x"], "--parts: there is no x")]
)
def test_a_mistake_is_one_sentence(arguments, said, tmp_path, capsys):
    assert accelerator.command([*arguments, "--output", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dry_run_does_every_part_at_small_shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert accelerator.command(["--small", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "accelerator.json").read_text())
    assert {found["status"] for found in report["parts"].values()} == {"done"} and len(report["parts"]) == 9
    page = (tmp_path / "accelerator.md").read_text()
    for title in ("Plain decoding", "A pass over N nodes per row", "Rounds, with", "A training step of the head", "Tuned"):
        assert f"## {title}" in page
    assert "A dry run" in page and "1 passed" in page
