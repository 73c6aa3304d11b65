"""Everything LlamaIndex does with an LLM, over every way to build ours and every state of the world, cell by cell.

    python -m tools.evidence.llamaindex_matrix FILE [--quick]      run it and write what each scenario did into FILE

The tests are those of `make test` (tests/llamaindex/test_matrix.py), with the whole matrix in place of a quarter.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tools.evidence import suite

__all__ = ["figures", "main"]

_TESTS = "tests/llamaindex/test_matrix.py"
_CELL = ("primary", "fallback", "mix", "fault")


def figures(*, quick: bool = False) -> dict[str, Any]:
    """One row per cell: primary, fallback, mix, fault, and what became of each scenario. Takes some twelve minutes;
    `quick` runs the quarter that `make test` runs.

    Raises:
        RuntimeError: the tests could not be run.
    """
    told: dict[str, Any] = suite.run(__name__, quick=quick)
    cells = told["cells"]
    return {**suite.sums(cells, cells), "scenarios": told["scenarios"], "cells": [suite.named(row) for row in cells]}


class _Recorder(suite.Outcomes):
    """Files scenarios by their cell."""

    def __init__(self) -> None:
        super().__init__()
        self._what: dict[str, str] = {}

    def key(self, item: pytest.Item) -> tuple[Any, str] | None:
        params: Mapping[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        if not {"cell", "scenario"} <= params.keys():
            return None
        scenario = params["scenario"]
        self._what[scenario.name] = scenario.what
        return params["cell"], scenario.name

    def rows(self) -> dict[str, Any]:
        """What the scenarios are, and one row per cell."""
        cells = [{k: getattr(cell, k) for k in _CELL} | suite.counted(tests) for cell, tests in self.found.items()]
        return {"scenarios": self._what, "cells": cells}


def main(arguments: Sequence[str]) -> int:
    """Run the matrix and write the rows; returns pytest's exit code."""
    return suite.record(arguments, _TESTS, _Recorder(), matrix="LLAMAINDEX_MATRIX")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
