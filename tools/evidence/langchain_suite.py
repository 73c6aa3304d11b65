"""LangChain's standard suites over every way to build the model and every state of the world, counted test by test.

    python -m tools.evidence.langchain_suite FILE [--quick]      run them and write what each test did into FILE

The tests are those of `make test` (tests/langchain/test_standard.py), with the whole matrix in place of a quarter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["figures", "main"]

_ROOT = Path(__file__).resolve().parents[2]
_TESTS = "tests/langchain/test_standard.py"
_MODEL = ("primary", "fallback", "mix")
_ELSE = ("failed", "skipped", "unserved")
"""What a test may do but pass. Unserved: no target that is alive can do what it asks, and the error says so."""


def figures(*, quick: bool = False) -> dict[str, Any]:
    """One row per cell: who, what befalls the primary, and what became of the fifty tests that ask; one row per model
    for the ten that do not. Takes ten minutes; `quick` runs the quarter that `make test` runs.

    Raises:
        RuntimeError: the tests could not be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.json"
        # In a process of its own: what it imports and starts would weigh on whatever is measured next.
        command = [sys.executable, "-m", __name__, str(path), *(["--quick"] if quick else [])]
        code = subprocess.run(command, cwd=_ROOT, check=False, stdout=sys.stderr).returncode
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not path.exists():
            raise RuntimeError(f"the standard suites could not be run: exit code {code}")
        rows = json.loads(path.read_text(encoding="utf-8"))
    return _told(rows)


def _told(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows, and their sums. A cell's tests are its own fifty and the ten of its model."""
    unregistered = [row for row in rows if not row.get("registered", True)]
    rows = [row for row in rows if row not in unregistered]
    models = [row for row in rows if row["suite"] == "unit"]
    cells = [row for row in rows if row["suite"] == "integration"]
    ten = {tuple(row[k] for k in _MODEL): row for row in models}
    full = [{**cell, "with_unit": _sum(cell, ten[tuple(cell[k] for k in _MODEL)])} for cell in cells]
    named = sorted({(test, why) for row in cells for test, why in row["unserved"].items()})
    return {
        "cells_run": len(cells),
        "tests_run": sum(row["tests"] for row in rows),
        "passed": sum(row["passed"] for row in rows),
        "failed": sum(len(row["failed"]) for row in rows),
        "skipped": sum(len(row["skipped"]) for row in rows),
        "unserved": sum(len(row["unserved"]) for row in cells),
        "exceptions": [{"test": test, "why": why} for test, why in named],
        "without_registration": [_short(row) for row in unregistered],
        "models": [_short(row) for row in models],
        "cells": [_short(row) for row in full],
    }


def _sum(*rows: Mapping[str, Any]) -> dict[str, int]:
    return {"tests": sum(row["tests"] for row in rows), "passed": sum(row["passed"] for row in rows)}


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its counts, and with every test that did not pass by name, outcome and reason."""
    kept = {k: v for k, v in row.items() if k not in ("suite", "registered", *_ELSE)}
    counts = {kind: len(row[kind]) for kind in _ELSE}
    named = [{"test": test, "outcome": kind, "why": why} for kind in _ELSE for test, why in row[kind].items()]
    return {**kept, **counts, "exceptions": named}


class _Recorder:
    """A pytest plugin that notes what each test of each class did."""

    def __init__(self) -> None:
        self._classes: dict[type, dict[str, str]] = {}
        """By class and test: 'passed', or what else with its reason behind a colon."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        cls = getattr(item, "cls", None)
        if cls is not None and hasattr(cls, "cell"):
            tests = self._classes.setdefault(cls, {})
            if report.failed:
                tests[item.name] = f"failed: {str(report.longrepr).strip().splitlines()[-1]}"
            elif report.skipped and hasattr(report, "wasxfail"):
                tests[item.name] = f"unserved: {report.wasxfail}"
            elif report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                tests[item.name] = f"skipped: {reason}"
            elif report.when == "call":
                tests.setdefault(item.name, "passed")
        return report

    def rows(self) -> list[dict[str, Any]]:
        """One per class."""
        return [self._row(cls, tests) for cls, tests in self._classes.items()]

    def _row(self, cls: Any, tests: Mapping[str, str]) -> dict[str, Any]:
        cell = cls.cell
        row: dict[str, Any] = {name: getattr(cell, name) for name in _MODEL}
        unit = hasattr(cls, "registers")
        row |= {"suite": "unit", "registered": cls.registers} if unit else {"suite": "integration"}
        if not unit:
            row |= {"fault": cell.fault, "shape": cell.shape}
        row |= {"tests": len(tests), "passed": sum(outcome == "passed" for outcome in tests.values())}
        for kind in _ELSE:
            row[kind] = {
                test: outcome.partition(": ")[2] for test, outcome in tests.items() if outcome.startswith(f"{kind}: ")
            }
        return row


def main(arguments: Sequence[str]) -> int:
    """Run the suites and write the rows; returns pytest's exit code."""
    path, *flags = arguments
    os.environ["LANGCHAIN_MATRIX"] = "" if "--quick" in flags else "full"
    recorder = _Recorder()
    code = pytest.main([_TESTS, "-q", "-p", "no:cacheprovider", "-W", "ignore", "--no-summary"], plugins=[recorder])
    Path(path).write_text(json.dumps(recorder.rows()), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
