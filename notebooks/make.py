"""`python notebooks/make.py [NAME ...]`: runs the scripts of this folder as notebooks, and writes their .ipynb.

A script (NAME.py, jupytext's percent format) is the source; NAME.ipynb beside it has its cells and the outputs of a run with the
parameters as they stand. `--no-run` writes the cells alone and keeps the outputs of cells that have not changed.
"""

import os
import pathlib
import re
import sys

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent
SECONDS = 3600  # that a cell may take
WIDGET = "application/vnd.jupyter.widget-view+json"  # a bar, which shows nothing without its kernel


def names() -> list[str]:
    """The notebooks of this folder."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "make")


def read_script(name: str) -> nbformat.NotebookNode:
    """A script as a notebook without outputs; of its metadata what Colab and Jupyter need."""
    notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"{name}-{number}", {}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def with_parameters(notebook: nbformat.NotebookNode, values: dict[str, object]) -> nbformat.NotebookNode:
    """The notebook with other values of its parameters, as a person types them into the form.

    Raises:
      KeyError: there is no such parameter.
    """
    for name, value in values.items():
        line = re.compile(rf"^({name} = ).*?(  # @param .*)$", re.M)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and line.search(cell.source)]
        if not cells:
            raise KeyError(name)
        for cell in cells:
            cell.source = line.sub(lambda match, value=value: f"{match[1]}{value!r}{match[2]}", cell.source)
    return notebook


def run(
    notebook: nbformat.NotebookNode, seconds: int = SECONDS, environment: dict[str, str] | None = None
) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel, which starts in this folder; ``environment``: None for this process's.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell ended in an error.
    """
    client = NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    client.coalesce_streams = True
    return client.execute(env=dict(os.environ) if environment is None else environment)


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what a run leaves behind beside its outputs: counts, times, bars."""
    for key in set(notebook.metadata) - {"accelerator", "colab", "kernelspec"}:
        del notebook.metadata[key]
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_plain(output) for output in cell.outputs if WIDGET not in output.get("data", {})]
    return notebook


def _plain(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "execution_count" in output:
        output.execution_count = None
    if "metadata" in output:
        output.metadata = {}
    return output


def keep_outputs(notebook: nbformat.NotebookNode, before: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The outputs of an earlier run, for the cells whose source is as it was."""
    known = {cell.source: cell.outputs for cell in before.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = known.get(cell.source, [])
    return notebook


def main(arguments: list[str]) -> None:
    """Writes the notebooks that are named, or all."""
    is_run = "--no-run" not in arguments
    for name in [each for each in arguments if each != "--no-run"] or names():
        notebook, file = read_script(name), FOLDER / f"{name}.ipynb"
        notebook = run(notebook) if is_run else keep_outputs(notebook, nbformat.read(file, as_version=4))
        nbformat.write(strip(notebook), file)
        print(file)


if __name__ == "__main__":
    main(sys.argv[1:])
