"""The figures of `make mutants`, as evidence."""

from __future__ import annotations

from typing import Any

__all__ = ["figures"]


def figures(*, quick: bool = False) -> dict[str, Any]:
    """Killed, total, and every survivor with its reason. There is no quick way to kill them all.

    Raises:
        RuntimeError: `quick` was asked for, or too few mutants were killed.
    """
    if quick:
        raise RuntimeError("mutants cannot be measured quickly; leave --quick out")
    evidence = __import__("tools.mutants.evidence", fromlist=["collect"])
    facts: dict[str, Any] = evidence.collect()
    return facts
