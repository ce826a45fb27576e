"""Every notebook from its first cell to its last, in a fresh kernel, on the embedded pair with small parameters."""

import re

import pytest

from notebooks import make
from tests.notebooks.kernels import printed, run, shown

pytestmark = pytest.mark.slow
TEXT = "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n\n\n"


def run_with(name: str, **values):
    return run(make.with_parameters(make.read_script(name), values))


def cell_with(cells, part: str):
    """The cell whose source has this part."""
    return next(cell for cell in cells if part in cell.source)


def test_generate(tmp_path):
    cells = run_with("generate", MAX_NEW_TOKENS=24, FOLDER=str(tmp_path / "here"))
    assert "There is no TPU here" in printed(cell_with(cells, "begin(FOLDER)"))
    assert any((tmp_path / "here" / "programs").iterdir())
    pages = shown(cells, "text/html")
    assert len(pages) == 4 and all("<mark" in page and "drafted and accepted" in page for page in pages)
    assert "def read_lines(path):" in pages[0]  # streamed, with its prompt
    same_seed = printed(cell_with(cells, "sampled = {"))
    passes = dict(re.findall(r"(\S+): +(\d+) target passes for 24 tokens", same_seed))
    assert int(passes["drafts"]) == 23 and int(passes["head"]) < 23  # 23 tokens are left for the passes after the prefill
    assert same_seed.endswith("\nthe same tokens\n")
    assert "all 24 tokens of 1 prompt are identical (float32)" in printed(cell_with(cells, "compare_prompt("))
    assert len(shown([cell_with(cells, "plot_tree")], "image/png")) == 1
    served = printed(cell_with(cells, "infer.serve"))
    assert served.endswith("\n---\nthe same text as above\nthe server ended with exit code 0\n")
    assert printed(cells[-1]) == "Choose a model above and run this cell.\n"


def test_generate_with_a_model_of_ones_own(tmp_path):
    from infer.pair import embedded

    target = str(embedded("target"))
    cells = run_with("generate", MAX_NEW_TOKENS=8, FOLDER=str(tmp_path), OWN_TARGET=target, QUESTION="for x in range(")
    (page,) = shown(cells[-1:], "text/html")
    assert "for x in range(" in page and "8 tokens" in page


def test_train_head(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(300):  # one in fifty is held out
        (tmp_path / "text" / f"{number}.py").write_text(TEXT.replace("total", f"total_{number}"))
    given = {"STEPS": 12, "EVALUATE_EVERY": 6, "BATCH": 2, "ROW_LENGTH": 64, "RATE": 1e-3, "DATA": str(tmp_path / "text")}
    cells = run_with("train_head", FOLDER=str(tmp_path / "here"), **given)
    training = cell_with(cells, "training.command")
    assert "the head is in" in printed(training) and "held out" in printed(training)
    assert shown([training], make.WIDGET)  # a bar that a notebook can show
    steps = printed(cell_with(cells, "for line in log.read"))
    assert [int(number) for number in re.findall(r"after +(\d+) updates", steps)] == [6, 12]
    assert all(1 <= float(found) <= 6 for found in re.findall(r"\dx\d (\d+\.\d+)", steps)) and "4x4" in steps
    assert len(shown(cells, "image/png")) == 1
    assert "def read_lines(path):" in shown(cells, "text/html")[-1]
    assert "all 96 tokens of 1 prompt are identical (float32)" in printed(cell_with(cells, "compare_prompt("))
    assert (tmp_path / "here" / "head-run" / "head" / "model.safetensors").is_file()
    assert (tmp_path / "here" / "head.zip").is_file() and "head.zip is in the folder" in printed(cells[-1])


def test_compare(tmp_path):
    given = {"PROMPT_COUNT": 2, "MAX_NEW_TOKENS": 12, "REPEATS": 1, "BEAMS": "1x2 2x2", "TREE_BEAMS": "2x3"}
    cells = run_with("compare", FOLDER=str(tmp_path), **given)
    assert "2 prompts, 12 new tokens each." in printed(cell_with(cells, "begin(FOLDER)"))
    shapes, edits = printed(cell_with(cells, 'measure("shapes"')), printed(cell_with(cells, 'measure("edits"'))
    assert "1x2" in shapes and "2x2" in shapes and "2x3 + lookup" in edits
    trees = dict(re.findall(r"tree (\w+): +(\d+\.\d+) tokens per step", printed(cell_with(cells, "count_steps(final"))))
    assert 1 <= float(trees["beams"]) <= float(trees["search"]) <= 4
    assert len(shown(cells, "image/png")) == 4
    assert "edits of code" in printed(cell_with(cells, "looking = "))
    assert (tmp_path / "shapes.json").is_file() and (tmp_path / "edits.json").is_file()
