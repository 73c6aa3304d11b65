"""Every fault on every wire, every stream that breaks twice, and every way to run into a deadline, counted."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from shared_core.testing import FAULTS
from tests.faults import kinds, matrix, walls

__all__ = ["figures"]

T = TypeVar("T")


def figures(*, quick: bool = False) -> dict[str, Any]:
    """Cells and mismatches, each mismatch in full. Takes four to five minutes; `quick` runs every seventh cell."""
    every = 7 if quick else 1
    cells, legs, deadlines = matrix.cells()[::every], matrix.legs()[::every], walls.walls()[::every]
    logging.disable(logging.CRITICAL)  # each fault would be told about, twice
    try:
        with matrix.Bench() as bench:
            bench.warm()
            results = [matrix.run_cell(cell, bench) for cell in _told("faults", cells)]
            twice = [(case.id, matrix.run_legs(case, bench)) for case in _told("streams that break twice", legs)]
            late = [(wall, walls.overshoot(wall, bench)) for wall in _told("deadlines", deadlines)]
        with matrix.Bench(tls=True) as bench:
            bench.warm()
            listed = [(cell, kinds.run(cell, bench)) for cell in _told("the sixty-four", kinds.cells()[::every])]
    finally:
        logging.disable(logging.NOTSET)
    return {**_matrix(results), "kinds": _kinds(listed), "broken_twice": _twice(twice), "deadline": _deadline(late)}


def _told(what: str, items: Sequence[T]) -> Iterator[T]:
    for number, item in enumerate(items):
        if number % 100 == 0:
            print(f"{what}: {number} of {len(items)}", file=sys.stderr, flush=True)
        yield item


def _matrix(results: Sequence[matrix.CellResult]) -> dict[str, Any]:
    wrong = [result for result in results if result.mismatches]
    return {
        "fault_kinds": len(FAULTS),
        "cells": len(results),
        "calls": sum(result.calls for result in results),
        "requests": sum(result.requests for result in results),
        "mismatches": len(wrong),
        "details": [
            {
                "cell": result.cell.id,
                "known": matrix.known_defect(result.cell),
                "mismatches": list(result.mismatches),
            }
            for result in wrong
        ],
        "by_vendor": _by_vendor(results),
    }


def _kinds(results: Sequence[tuple[kinds.CellOfKind, list[str]]]) -> dict[str, Any]:
    """The list of sixty-four, over TLS: each cell run as many scripts as it has, or named with its reason."""
    named: Counter[tuple[str, str]] = Counter()
    checked: Counter[tuple[str, str]] = Counter()
    for cell, _ in results:
        title = f"{cell.kind.number} {cell.kind.title}"
        if cell.why_not:
            named[title, cell.why_not] += 1
        elif cell.kind.checked:
            checked[title, cell.kind.checked] += 1
    wrong = [{"cell": cell.id, "mismatches": texts} for cell, texts in results if texts]
    return {
        "kinds": len(kinds.KINDS),
        "cells": len(results),
        "run": sum(1 for cell, _ in results if not cell.why_not),
        "scripts": sum(len(cell.lines) for cell, _ in results),
        "mismatches": len(wrong),
        "details": wrong,
        "named": [{"kind": kind, "cells": count, "why": why} for (kind, why), count in named.items()],
        "checked": [{"kind": kind, "cells": count, "what": what} for (kind, what), count in checked.items()],
    }


def _by_vendor(results: Sequence[matrix.CellResult]) -> list[dict[str, Any]]:
    """One row per vendor: for each colour and shape, cells and mismatches."""
    ran: Counter[tuple[str, str]] = Counter()
    bad: Counter[tuple[str, str]] = Counter()
    for result in results:
        key = (result.cell.vendor, f"{result.cell.colour}, {result.cell.shape}")
        ran[key] += 1
        bad[key] += bool(result.mismatches)
    order = list(matrix.VENDORS)
    return [
        {"vendor": vendor, "face": face, "cells": ran[vendor, face], "mismatches": bad[vendor, face]}
        for vendor, face in sorted(ran, key=lambda key: (order.index(key[0]), key[1]))
    ]


def _twice(results: Iterable[tuple[str, list[str]]]) -> dict[str, Any]:
    found = list(results)
    wrong = [{"case": name, "mismatches": texts} for name, texts in found if texts]
    return {"cases": len(found), "mismatches": len(wrong), "details": wrong}


def _deadline(late: Sequence[tuple[walls.Wall, float]]) -> list[dict[str, Any]]:
    """Per colour: how late calls returned, and how late the machine wakes a sleeper that has nothing else to do."""
    control = walls.control()
    rows = []
    for colour in ("async", "sync"):
        mine = sorted((max(0.0, over), wall.id) for wall, over in late if wall.colour == colour)
        if mine:
            worst_s, worst = mine[-1]
            rows.append(
                {
                    "colour": colour,
                    "cells": len(mine),
                    "promise_ms": walls.PROMISE_S[colour] * 1000,
                    "p50_ms": _ms(mine[len(mine) // 2][0]),
                    "p100_ms": _ms(worst_s),
                    "worst": worst,
                    "holds": worst_s <= walls.PROMISE_S[colour],
                    "sleeper_p100_ms": _ms(control[colour]),
                }
            )
    return rows


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
