"""Executes notebooks from top to bottom, in a fresh kernel, and writes what came out into them.

python -m tools.docs.notebooks            all of notebooks/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat as _nbformat
from nbclient import NotebookClient

__all__ = ["FOLDER", "execute", "main"]

nbformat: Any = _nbformat  # it says that it is typed, and most of its functions are not

FOLDER = Path(__file__).parents[2] / "notebooks"


def execute(path: Path, *, before: str = "", timeout_s: int = 60) -> Any:
    """The notebook with fresh outputs; the file stays as it is. `before` is run first, and not kept.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised, or took longer than `timeout_s`.
    """
    book = nbformat.read(path, as_version=4)
    cells = book.cells
    book.cells = [nbformat.v4.new_code_cell(before), *cells]
    # Timing would make every run of the same notebook a different file.
    NotebookClient(book, timeout=timeout_s, kernel_name="python3", record_timing=False).execute(cwd=str(path.parent))
    book.cells = cells
    for number, cell in enumerate((c for c in cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = number
            if "text/html" in output.get("data", {}):
                output["data"].pop("text/plain", None)  # the same again for programs, with memory addresses
    book.metadata = {"kernelspec": book.metadata["kernelspec"], "language_info": {"name": "python"}}
    return book


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute and write the notebooks named, or all."""
    for path in [Path(name) for name in arguments or ()] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(execute(path), path)
        print(f"{path.name}: executed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
