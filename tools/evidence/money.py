"""Money: budgets under crowds that are killed, the bill to the nano-dollar, power cuts, failing disks, size.

python -m tools.evidence money --out docs/evidence
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tools.money_trials.bill import bill
from tools.money_trials.crowd import crowd
from tools.money_trials.kills import kills
from tools.money_trials.power import failing, power
from tools.money_trials.size import size

__all__ = ["figures"]

RUNS = 200
PROCESSES = 32
KILLS = 5
"""In each run: a thousand in all."""
KILLED = 10_000
CALLS = 10_000
ATTEMPTS = 60
"""Of the program whose power is cut at each of its writes and syncs."""
POINTS = 500
"""Writes and syncs that fail, one in each run."""
ROWS = 1_000_000


def figures(*, quick: bool = False) -> dict[str, Any]:
    """Everything, in an hour or so; `quick` measures a part of it in two minutes.

    SHARE=0.1 in the environment makes do with that share of the crowds and kills; the figures say how many there were.
    """
    share = float(os.environ.get("SHARE", "1"))
    return {
        "overspend": _said(
            "crowd",
            crowd(runs=2 if quick else max(2, round(RUNS * share)), processes=8 if quick else PROCESSES, kills=KILLS),
        ),
        "kills": _said("kills", kills(count=50 if quick else max(50, round(KILLED * share)))),
        "bill": _said("bill", bill(calls=150 if quick else CALLS)),
        "power": _said("power", power(count=20 if quick else ATTEMPTS, every=20 if quick else 1)),
        "disk": _said("disk", failing(points=10 if quick else POINTS)),
        "size": _said("size", size(rows=50_000 if quick else ROWS)),
    }


def _said(what: str, found: dict[str, Any]) -> dict[str, Any]:
    wrong = found.get("faults") or []
    print(f"  money: {what}: {len(wrong)} not as they should be", file=sys.stderr, flush=True)
    return found
