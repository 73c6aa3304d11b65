"""Everything LlamaIndex does with an LLM, over every way to build ours and every state of the world, cell by cell.

    python -m tools.evidence.llamaindex_matrix FILE [--quick]      run it and write what each scenario did into FILE

The tests are those of `make test` (tests/llamaindex/test_matrix.py), with the whole matrix in place of a quarter.
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
_TESTS = "tests/llamaindex/test_matrix.py"


def figures(*, quick: bool = False) -> dict[str, Any]:
    """One row per cell: primary, fallback, mix, fault, and what became of each scenario. Takes some eight minutes;
    `quick` runs the quarter that `make test` runs.

    Raises:
        RuntimeError: the tests could not be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.json"
        # In a process of its own: what it imports and starts would weigh on whatever is measured next.
        command = [sys.executable, "-m", __name__, str(path), *(["--quick"] if quick else [])]
        code = subprocess.run(command, cwd=_ROOT, check=False, stdout=sys.stderr).returncode
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not path.exists():
            raise RuntimeError(f"the matrix could not be run: exit code {code}")
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return _summed(told)


def _summed(told: Mapping[str, Any]) -> dict[str, Any]:
    cells = told["cells"]
    return {
        "cells_run": len(cells),
        "scenarios": told["scenarios"],
        "runs": sum(cell["scenarios"] for cell in cells),
        "passed": sum(cell["passed"] for cell in cells),
        "failed": sum(len(cell["failed"]) for cell in cells),
        "skipped": sum(len(cell["skipped"]) for cell in cells),
        "unserved": sum(len(cell["exceptions"]) for cell in cells),
        "cells": cells,
    }


class _Recorder:
    """A pytest plugin that notes what became of each scenario in each cell."""

    def __init__(self) -> None:
        self._cells: dict[Any, dict[str, str]] = {}
        """By cell and scenario: 'passed', or what else with its reason behind a colon."""
        self._what: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "cell" in params and "scenario" in params:
            scenario = params["scenario"]
            self._what[scenario.name] = scenario.what
            runs = self._cells.setdefault(params["cell"], {})
            if report.failed:
                runs[scenario.name] = f"failed: {str(report.longrepr).strip().splitlines()[-1]}"
            elif report.skipped and hasattr(report, "wasxfail"):
                runs[scenario.name] = f"exceptions: {report.wasxfail}"
            elif report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                runs[scenario.name] = f"skipped: {reason}"
            elif report.when == "call":
                runs.setdefault(scenario.name, "passed")
        return report

    def told(self) -> dict[str, Any]:
        """The scenarios, and one row per cell."""
        cells = [self._row(cell, runs) for cell, runs in self._cells.items()]
        return {"scenarios": self._what, "cells": cells}

    @staticmethod
    def _row(cell: Any, runs: Mapping[str, str]) -> dict[str, Any]:
        row: dict[str, Any] = {name: getattr(cell, name) for name in ("primary", "fallback", "mix", "fault")}
        row |= {"scenarios": len(runs), "passed": sum(outcome == "passed" for outcome in runs.values())}
        for kind in ("failed", "skipped", "exceptions"):
            row[kind] = {
                name: outcome.partition(": ")[2] for name, outcome in runs.items() if outcome.startswith(f"{kind}: ")
            }
        return row


def main(arguments: Sequence[str]) -> int:
    """Run the matrix and write the rows; returns pytest's exit code."""
    path, *flags = arguments
    os.environ["LLAMAINDEX_MATRIX"] = "" if "--quick" in flags else "full"
    recorder = _Recorder()
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--no-summary"]
    code = pytest.main([_TESTS, *options], plugins=[recorder])
    Path(path).write_text(json.dumps(recorder.told()), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
