"""Mutates the core in a copy, so that nothing of it is ever seen in the tree, runs the tests, and reads what came."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.mutants.survivors import Mutant, change, function, status
from tools.setup.progress import only_one

__all__ = ["FILES", "MutantsFailed", "run"]

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = ROOT / ".build" / "mutants"
LOOP = Path(__file__).with_name("loop.py")
RESULTS = SCRATCH / "results.txt"

FILES = (
    "shared_core/resilience/admission.py",
    "shared_core/resilience/bound.py",
    "shared_core/resilience/breaker.py",
    "shared_core/resilience/budget.py",
    "shared_core/resilience/drift.py",
    "shared_core/resilience/locks.py",
    "shared_core/resilience/rate_limit.py",
    "shared_core/resilience/retry.py",
    "shared_core/resilience/windows.py",
    "shared_core/routing/chains.py",
    "shared_core/routing/complexity.py",
    "shared_core/routing/flow.py",
    "shared_core/routing/hedge.py",
    "shared_core/routing/planner.py",
    "shared_core/routing/reask.py",
    "shared_core/routing/relay.py",
    "shared_core/routing/seam.py",
    "shared_core/routing/strategies.py",
)
"""The decisions: everything that says who is asked, when, how often and how an answer goes on."""

# The tests that must notice. Fast ones that repeat exactly: no threads, no sockets, no long random walks of the flow.
TESTS = tuple(
    f"tests/core/test_{name}.py"
    for name in (
        "breaker",
        "budget",
        "gates",
        "health",
        "retry",
        "admission",
        "rate_limit",
        "flow",
        "flow_decisions",
        "flow_steps",
        "seam",
        "planner",
        "strategies",
        "chains",
        "complexity",
        "hedging_steps",
        "reask",
        "relay",
    )
)

EVERY_S = 10.0
"""A line about this often says how far it is."""


class MutantsFailed(Exception):
    """There is nothing to count. The message says why."""


def run(files: Sequence[str] = FILES, *, children: int | None = None) -> list[Mutant]:
    """Mutate `files`, run the tests against every mutant, and return them all. Says every now and then how far it is.

    Args:
        files: paths in the repository, of `FILES`.
        children: mutants tested at a time; None is one per processor core.

    Raises:
        MutantsFailed: mutmut could not run, or the tests fail without a mutant.
    """
    with only_one(SCRATCH.with_suffix(".lock"), "testing mutants"):
        _copy(files)
        return _run(files, children or os.cpu_count() or 1)


def _run(files: Sequence[str], children: int) -> list[Mutant]:
    if importlib.util.find_spec("mutmut") is None:
        raise MutantsFailed("mutmut is not installed here; it is in the stable world: make mutants")
    command = [sys.executable, "-P", str(LOOP), str(children)]
    started = time.monotonic()
    log = SCRATCH / "loop.log"
    print(f"mutants: making them, and running the tests once without ({', '.join(files)})", flush=True)
    with log.open("wb") as out:
        # A session of its own, so that an interrupt ends the whole family through us.
        process = subprocess.Popen(command, cwd=SCRATCH, stdout=out, stderr=out, start_new_session=True, env=_env())
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=EVERY_S)
                    break
                print(_progress(files, time.monotonic() - started), flush=True)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    codes = _exit_codes(files)
    if process.returncode or not all(codes.values()):
        end = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")[-3000:]
        raise MutantsFailed(f"the loop ended with status {process.returncode}:\n{end}\nAll of it: {log}")
    return [_mutant(file, name, code) for file in files for name, code in codes[file].items()]


def _copy(files: Sequence[str]) -> None:
    """What the tests of the core need, afresh: results of an earlier run would hide what a changed test finds."""
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    unneeded = shutil.ignore_patterns("__pycache__", "*.gguf")
    shutil.copytree(ROOT / "shared_core", SCRATCH / "shared_core", ignore=unneeded)
    shutil.copytree(ROOT / "tests" / "core", SCRATCH / "tests" / "core", ignore=unneeded)
    for name in ("__init__.py", "conftest.py"):
        shutil.copy(ROOT / "tests" / name, SCRATCH / "tests" / name)
    settings = {
        "source_paths": list(files),
        "pytest_add_cli_args_test_selection": list(TESTS),
        "pytest_add_cli_args": ["-p", "no:logging", "-p", "no:cacheprovider"],  # a third of each run's time
        "also_copy": ["shared_core", "tests"],
        "use_git_change_detection": False,
    }
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (SCRATCH / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n{table}", encoding="utf-8")


def _env() -> dict[str, str]:
    # What an option or a plugin in the caller's environment would add is not part of the measurement.
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "HYPOTHESIS_"))}


def _exit_codes(files: Sequence[str]) -> dict[str, dict[str, int | None]]:
    """By file and mutant: the exit status of its run, None before it."""
    ended: dict[str, int | None] = {}
    with contextlib.suppress(OSError):  # nothing has ended yet
        ended = {name: int(code) for name, code in (line.split() for line in _whole_lines(RESULTS.read_text("utf-8")))}
    found: dict[str, dict[str, int | None]] = {}
    for file in files:
        meta = SCRATCH / "mutants" / f"{file}.meta"
        try:
            names = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        except (OSError, ValueError):  # not written yet, or being written at this moment
            names = ()
        found[file] = {name: ended.get(name) for name in names}
    return found


def _whole_lines(text: str) -> list[str]:
    return text[: text.rfind("\n") + 1].splitlines()


def _progress(files: Sequence[str], elapsed_s: float) -> str:
    states = [status(code) for codes in _exit_codes(files).values() for code in codes.values()]
    if (done := sum(state != "unknown" for state in states)) == 0:
        return f"mutants: making them, and running the tests once without, {elapsed_s:.0f} s"
    return f"mutants: {done} of {len(states)}, {states.count('survived')} survived, {elapsed_s:.0f} s"


def _mutant(file: str, name: str, exit_code: int | None) -> Mutant:
    state = status(exit_code)
    if state in ("killed", "timeout"):
        return Mutant(file, function(name), state)
    with contextlib.chdir(SCRATCH):
        # It reads its settings from the folder it is imported in.
        from mutmut.mutation.diff_apply import get_diff_for_mutant

        return Mutant(file, function(name), state, *change(get_diff_for_mutant(name, path=file)))
