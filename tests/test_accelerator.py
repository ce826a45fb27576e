"""`scripts/accelerator.sh`: parts that fail, hang or come too late leave the others alone; what is written, and when."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from scripts import accelerator, accelerator_page
from scripts.accelerator import Part
from tests.measured import ENTRY, keep

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


def test_ctrl_c_ends_the_part_that_runs_and_is_one_sentence(tmp_path):
    """The script in a process of its own, which gets the signal while a part of it waits."""
    pid = tmp_path / "pid"
    waits = (
        f"import os, time; open({str(pid)!r} + '.new', 'w').write(str(os.getpid())); os.rename({str(pid)!r} + '.new', {str(pid)!r})"
    )
    script = f"""
import signal, sys
from scripts import accelerator
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and so would this
accelerator.read_device = lambda: {DEVICE!r}
accelerator.plan = lambda *_: [accelerator.Part("waits", (sys.executable, "-c", {waits + "; time.sleep(300)"!r}), 300)]
sys.exit(accelerator.command(["--output", {str(tmp_path / "report")!r}]))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(pid.exists)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130 and said.strip() == "interrupted; the parts that were done are in the report of --output"
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    finally:
        process.kill()
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGKILL)


def wait_for(is_so) -> None:
    patience = time.monotonic() + 60
    while not is_so() and time.monotonic() < patience:
        time.sleep(0.05)
    assert is_so()


def test_a_jax_that_does_not_start_in_time_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "DEVICE", "import time; time.sleep(60)")
    monkeypatch.setattr(accelerator, "DEVICE_SECONDS", 0.5)
    assert accelerator.command(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: JAX has not started on this machine within 0.5 s")


def test_what_an_earlier_run_has_tuned_is_not_shown_as_this_ones(tmp_path):
    keep(tmp_path, ENTRY)
    tune = next(part for part in accelerator.plan(tmp_path, False, 0.0) if part.result == tmp_path / "settings.json")
    quick = "import json, pathlib; p = pathlib.Path('settings.json'); print(p.exists()); p.write_text('{}')"
    script = quick.replace("'settings.json'", repr(str(tune.result)))
    found = accelerator.run_part(dataclasses.replace(tune, command=(sys.executable, "-c", script)), 60)
    assert found["last_lines"] == "False\n"
    (small,) = (part for part in accelerator.plan(tmp_path, True, 0.0) if part.name == tune.name)
    assert small.result != tune.result
    tune.result.write_text("mine")  # a file of another kind is left to infer.tune, which refuses it
    assert accelerator.run_part(dataclasses.replace(tune, command=(sys.executable, "-c", script)), 60)["last_lines"] == "True\n"


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
