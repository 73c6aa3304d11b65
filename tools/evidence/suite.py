"""Tests as evidence: run one file of them in a process of its own, and note what became of every test."""

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

__all__ = ["ELSE", "Outcomes", "counted", "named", "record", "run", "sums"]

_ROOT = Path(__file__).resolve().parents[2]
ELSE = ("failed", "skipped", "unserved")
"""What a test may do but pass. Unserved: no target that is alive can do what it asks, and the error says so."""


def run(module: str, *, quick: bool) -> Any:
    """What ``python -m module FILE [--quick]`` writes into the file; that must be `record`.

    Raises:
        RuntimeError: the tests could not be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        # In a process of its own: what it imports and starts would weigh on whatever is measured next.
        command = [sys.executable, "-m", module, str(path), *(["--quick"] if quick else [])]
        code = subprocess.run(command, cwd=_ROOT, check=False, stdout=sys.stderr).returncode
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not path.exists():
            raise RuntimeError(f"the tests of {module} could not be run: exit code {code}")
        return json.loads(path.read_text(encoding="utf-8"))


def record(arguments: Sequence[str], tests: str, recorder: Outcomes, *, matrix: str) -> int:
    """Run `tests` and write the recorder's rows; returns pytest's exit code.

    Args:
        arguments: of the command line: the file to write, and ``--quick`` for the part that `make test` runs.
        tests: a file of tests.
        recorder: the plugin.
        matrix: the environment variable that the tests read; 'full' makes them all run.
    """
    path, *flags = arguments
    os.environ[matrix] = "" if "--quick" in flags else "full"
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--no-summary"]
    code = pytest.main([tests, *options], plugins=[recorder])
    Path(path).write_text(json.dumps(recorder.rows()), encoding="utf-8")
    return int(code)


class Outcomes:
    """A recorder that files tests by what `key` says of them."""

    def __init__(self) -> None:
        self.found: dict[Any, dict[str, str]] = {}
        """By key and test: 'passed', or what else with its reason behind a colon."""

    def rows(self) -> Any:
        """What it noted, as plain data."""
        raise NotImplementedError

    def key(self, item: pytest.Item) -> tuple[Any, str] | None:
        """Where a test belongs and what it is called there; None if it is not wanted."""
        raise NotImplementedError

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        place = self.key(item)
        if place is not None:
            key, name = place
            tests = self.found.setdefault(key, {})
            if report.failed:
                tests[name] = f"failed: {str(report.longrepr).strip().splitlines()[-1]}"
            elif report.skipped and hasattr(report, "wasxfail"):
                tests[name] = f"unserved: {report.wasxfail}"
            elif report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                tests[name] = f"skipped: {reason}"
            elif report.when == "call":
                tests.setdefault(name, "passed")
        return report


def counted(tests: Mapping[str, str]) -> dict[str, Any]:
    """How many tests there are and how many pass, and the reasons of all others by name."""
    told: dict[str, Any] = {"tests": len(tests), "passed": sum(outcome == "passed" for outcome in tests.values())}
    for kind in ELSE:
        told[kind] = {name: why.partition(": ")[2] for name, why in tests.items() if why.startswith(f"{kind}: ")}
    return told


def named(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its counts, and with every test that did not pass by name, outcome and reason."""
    kept = {key: value for key, value in row.items() if key not in ELSE}
    counts = {kind: len(row[kind]) for kind in ELSE}
    told = [{"test": test, "outcome": kind, "why": why} for kind in ELSE for test, why in row[kind].items()]
    return {**kept, **counts, "exceptions": told}


def sums(rows: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of `rows`, and what nobody serves, of the `cells` among them."""
    told = sorted({(test, why) for row in cells for test, why in row["unserved"].items()})
    return {
        "cells_run": len(cells),
        "tests_run": sum(row["tests"] for row in rows),
        "passed": sum(row["passed"] for row in rows),
        "failed": sum(len(row["failed"]) for row in rows),
        "skipped": sum(len(row["skipped"]) for row in rows),
        "unserved": sum(len(row["unserved"]) for row in cells),
        "exceptions": [{"test": test, "why": why} for test, why in told],
    }
