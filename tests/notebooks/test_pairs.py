"""Scripts and notebooks agree, and a notebook holds nothing that a run leaves behind beside its outputs."""

import ast
import importlib
import inspect

import nbformat
import pytest

from notebooks import make

METADATA = {
    "accelerator": "TPU",
    "colab": {"gpuType": "V5E1"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(make.FOLDER / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", make.names())
def test_a_notebook_has_the_cells_of_its_script(name):
    script, notebook = make.read_script(name), read(name)
    assert [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.id, cell.cell_type, cell.source) for cell in script.cells
    ], f"run python notebooks/make.py {name}"


def attribute(module: str, name: str) -> object:
    """What `from module import name` finds."""
    found = importlib.import_module(module)
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("name", make.names())
def test_a_script_calls_what_it_imports_from_here_as_it_is(name):
    """Without running it, which takes minutes: names that are there, and calls that their signatures take."""
    tree, known = ast.parse((make.FOLDER / f"{name}.py").read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("infer", "redrafter_jax", "train"):
            known |= {each.asname or each.name: attribute(node.module, each.name) for each in node.names}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    checked = [call for call in calls if callable(known.get(call.func.id))]
    assert checked
    for call in checked:
        named = {word.arg: None for word in call.keywords if word.arg}
        is_whole = len(named) == len(call.keywords) and not any(isinstance(each, ast.Starred) for each in call.args)
        signature = inspect.signature(known[call.func.id])
        (signature.bind if is_whole else signature.bind_partial)(*call.args, **named)


@pytest.mark.parametrize("name", make.names())
def test_a_notebook_asks_for_a_tpu_and_keeps_no_other_metadata(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA == make.read_script(name).metadata
    for cell in notebook.cells:
        assert cell.metadata == {}
        for output in cell.get("outputs", []):
            assert output.get("metadata", {}) == {} and output.get("execution_count") is None
            assert make.WIDGET not in output.get("data", {})


@pytest.mark.parametrize("name", make.names())
def test_a_notebook_has_the_outputs_of_a_run(name):
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    texts = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "All files are kept in the folder redrafter." in texts  # of the parameters as they stand
    assert code[-1].outputs and not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


def test_a_parameter_is_changed_as_in_the_form():
    notebook = make.with_parameters(make.read_script("generate"), {"SEED": 7, "PROMPT": "a'b"})
    lines = "\n".join(cell.source for cell in notebook.cells).splitlines()
    assert 'SEED = 7  # @param {type:"integer"}' in lines and 'PROMPT = "a\'b"  # @param {type:"string"}' in lines
    with pytest.raises(KeyError):
        make.with_parameters(notebook, {"NOBODY": 1})


def test_outputs_are_kept_for_the_cells_that_did_not_change():
    before, after = make.read_script("generate"), make.read_script("generate")
    code = [number for number, cell in enumerate(before.cells) if cell.cell_type == "code"]
    for number in code:
        before.cells[number].outputs = [nbformat.v4.new_output("stream", text=str(number))]
    after.cells[code[1]].source += "\n1 + 1"
    kept = make.keep_outputs(after, before)
    said = ["".join(output.text for output in kept.cells[number].outputs) for number in code]
    assert said == [str(code[0]), "", *map(str, code[2:])]
