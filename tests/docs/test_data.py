"""Tables and figures on the pages are those of the data; the site builds."""

import csv
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

from infer.pair import EMBEDDED
from tests.docs.pages import ROOT

SCRIPTS = ROOT / "docs" / "scripts"
DATA = ROOT / "docs" / "data"


@pytest.fixture
def scripts(monkeypatch):
    """`docs/scripts` on the path, as for its own scripts."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in ("scaling", "fit_rows"):
        sys.modules.pop(name, None)


def test_the_tables_of_scaling_are_those_of_the_data(scripts):
    import scaling

    text = scaling.PAGE.read_text()
    assert scaling.with_tables(text) == text


def test_a_changed_row_changes_the_table(scripts, monkeypatch):
    import scaling

    before, read = scaling.table(), scaling.read_rows
    monkeypatch.setattr(
        scaling, "read_rows", lambda file: [row | {"round_ms": "99.9"} if "round_ms" in row else row for row in read(file)]
    )
    assert scaling.table() != before


def test_reports_become_rows_that_replace_those_of_the_same_command(scripts, tmp_path):
    import fit_rows

    row = {"batch": 1, "resident": 1 << 30, "plain_seconds": 0.002, "knee_nodes": 240.5}
    row |= {"verify_over_plain": {"1": 1.0}, "round_over_plain": {"4x4": 1.21}}
    command = "python -m infer.fit --model vicuna-7b --topology v5e:2x4 --floors --json"
    report = {"command": command, "chip": {"usable_bytes": 2 << 30}, "mesh": [1, 8], "rows": [row]}
    name, rows = fit_rows.read_report(report)
    assert name == "floors.csv" and rows[0]["usable_gib"] == "2.00" and rows[0]["mesh"] == "1x8" and rows[0]["round_4x4"] == "1.21"
    fit_rows.replace_rows(tmp_path / name, [rows[0] | {"command": "another"}])
    for plain_ms in ("7.0", "8.0"):
        fit_rows.replace_rows(tmp_path / name, [rows[0] | {"plain_ms": plain_ms}])
    assert [row["plain_ms"] for row in fit_rows.read_rows(tmp_path / name)] == ["2.000", "8.0"]


@pytest.mark.parametrize("name", [file.name for file in sorted(DATA.glob("*fit.csv")) + sorted(DATA.glob("*floors.csv"))])
def test_every_row_says_what_made_it(name):
    with (DATA / name).open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) > 8
    for row in rows:
        assert (
            row["command"].startswith("python -m ")
            and re.fullmatch(r"[0-9a-f]{7,}", row["version"])
            and row["model"] in row["command"]
        )


def test_the_readme_has_the_figures_of_the_embedded_pair():
    figures = json.loads((EMBEDDED / "figures.json").read_text())
    largest = next(row for row in figures["drafter_best"] if (row["shape"], row["tree"]) == ("8x5", "search"))
    text = (ROOT / "README.md").read_text()
    assert f"| tokens per step, greedy, 8 x 5, the best head | {largest['greedy']:.2f} |" in text
    assert f"| tokens per step, temperature 1, 8 x 5, the best head | {largest['coupled']:.2f} |" in text


def test_the_readme_has_the_break_even_of_scaling(scripts):
    import scaling

    rows = scaling.read_rows(DATA / "fit.csv")
    place = {"model": "vicuna-7b", "topology": "v5e:2x4", "batch": "1", "shape": "16x4"}
    found = next(row for row in rows if place.items() <= row.items())
    assert f"8 chips of v5e | {scaling.break_even(found):.2f} tokens per step |" in (ROOT / "README.md").read_text()


@pytest.mark.docs
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (requirements-docs.txt)")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "coupled" in (pathlib.Path(tmp_path) / "site" / "explained" / "words" / "index.html").read_text()
