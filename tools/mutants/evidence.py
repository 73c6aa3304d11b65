"""The figures of `make mutants` as evidence: killed, total, and every survivor with its reason."""

from __future__ import annotations

import time
from typing import Any

from tools.mutants.run import TESTS, run
from tools.mutants.survivors import WANTED, Report, explanations

__all__ = ["collect"]


def collect() -> dict[str, Any]:
    """Run all mutants, saying how far it is, and return the figures. Takes minutes.

    Raises:
        RuntimeError: too few are killed, or one that lives is not explained.
    """
    started = time.monotonic()
    report = Report(run(), explanations())
    if not report.good:
        raise RuntimeError(f"{report.per_cent:.1f} % killed, {len(report.unexplained)} unexplained: see `make mutants`")
    return {
        **report.facts(),
        "wanted_percent": WANTED,
        "took_s": round(time.monotonic() - started),
        "tests": list(TESTS),
        "not_mutated": "properties and other decorated functions, class bodies, module constants: mutmut changes the "
        "bodies and defaults of plain functions and methods",
    }
