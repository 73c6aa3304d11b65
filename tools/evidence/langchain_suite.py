"""LangChain's standard suites over every way to build the model and every state of the world, counted test by test.

    python -m tools.evidence.langchain_suite FILE [--quick]      run them and write what each test did into FILE

The tests are those of `make test` (tests/langchain/test_standard.py), with the whole matrix in place of a quarter.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tools.evidence import suite

__all__ = ["figures", "main"]

_TESTS = "tests/langchain/test_standard.py"
_MODEL = ("primary", "fallback", "mix")


def figures(*, quick: bool = False) -> dict[str, Any]:
    """One row per cell: who, what befalls the primary, and what became of the fifty tests that ask; one row per model
    for the ten that do not. Takes ten minutes; `quick` runs the quarter that `make test` runs.

    Raises:
        RuntimeError: the tests could not be run.
    """
    return _told(suite.run(__name__, quick=quick))


def _told(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows, and their sums. A cell's tests are its own fifty and the ten of its model."""
    unregistered = [row for row in rows if not row.get("registered", True)]
    rows = [row for row in rows if row not in unregistered]
    models = [row for row in rows if row["suite"] == "unit"]
    cells = [row for row in rows if row["suite"] == "integration"]
    ten = {tuple(row[k] for k in _MODEL): row for row in models}
    full = [{**cell, "with_unit": _sum(cell, ten[tuple(cell[k] for k in _MODEL)])} for cell in cells]
    return {
        **suite.sums(rows, cells),
        "without_registration": [_short(row) for row in unregistered],
        "models": [_short(row) for row in models],
        "cells": [_short(row) for row in full],
    }


def _sum(*rows: Mapping[str, Any]) -> dict[str, int]:
    return {"tests": sum(row["tests"] for row in rows), "passed": sum(row["passed"] for row in rows)}


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    return suite.named({key: value for key, value in row.items() if key not in ("suite", "registered")})


class _Recorder(suite.Outcomes):
    """Files tests by their class."""

    def key(self, item: pytest.Item) -> tuple[Any, str] | None:
        cls = getattr(item, "cls", None)
        return (cls, item.name) if hasattr(cls, "cell") else None

    def rows(self) -> list[dict[str, Any]]:
        """One per class."""
        return [_of(cls) | suite.counted(tests) for cls, tests in self.found.items()]


def _of(cls: Any) -> dict[str, Any]:
    """Whom the tests of a class ask, and in which state of the world."""
    cell = cls.cell
    row: dict[str, Any] = {name: getattr(cell, name) for name in _MODEL}
    if hasattr(cls, "registers"):
        return row | {"suite": "unit", "registered": cls.registers}
    return row | {"suite": "integration", "fault": cell.fault, "shape": cell.shape}


def main(arguments: Sequence[str]) -> int:
    """Run the suites and write the rows; returns pytest's exit code."""
    return suite.record(arguments, _TESTS, _Recorder(), matrix="LANGCHAIN_MATRIX")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
