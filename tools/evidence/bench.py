"""The figures of `make bench`, as evidence."""

from __future__ import annotations

from typing import Any

__all__ = ["figures"]


def figures(*, quick: bool = False) -> dict[str, Any]:
    """One row per figure: name, unit, value, peer, peer_value, ratio."""
    main = __import__("benchmarks.__main__", fromlist=["collect"])
    return {"rows": [row.as_dict() for row in main.collect(quick=quick)]}
