"""Fresh kernels for tests, and what their cells said."""

import os

import nbformat

from notebooks import make
from tests import flags

SECONDS = 1200  # that a cell may take, on a machine that does other things too


def run(notebook: nbformat.NotebookNode, devices: int = 1) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook behind a run in a fresh kernel with so many simulated devices; raises where one ends in an
    error."""
    environment = os.environ | {
        "XLA_FLAGS": f"{flags.FASTER_TO_COMPILE} {flags.devices(devices)}",
        "JAX_PLATFORMS": "cpu",
    }
    return [cell for cell in make.run(notebook, SECONDS, environment).cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell wrote to standard output."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def shown(cells: list[nbformat.NotebookNode], kind: str) -> list[str]:
    """Everything of a MIME type that the cells show."""
    return [output.data[kind] for cell in cells for output in cell.outputs if kind in output.get("data", {})]
