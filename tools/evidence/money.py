"""Money: budgets under crowds that are killed, the bill to the nano-dollar, power cuts, failing disks, size.

python -m tools.evidence money --out docs/evidence
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
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

    In the environment: RUNS (200) crowds, KILLED (10,000) processes; SHARE=0.1 makes do with that share of both where
    they are not given. PARTS="overspend,bill" tries these alone. TOGETHER=4 runs so many crowds at a time, and two of
    the other trials meanwhile; after MINUTES no crowd is begun. The figures say how many there were.
    """
    share, together = float(os.environ.get("SHARE", "1")), int(os.environ.get("TOGETHER", "1"))
    runs = 2 if quick else int(os.environ.get("RUNS") or max(2, round(RUNS * share)))
    killed = 50 if quick else int(os.environ.get("KILLED") or max(50, round(KILLED * share)))
    minutes = float(os.environ.get("MINUTES", "inf"))
    trials: dict[str, Callable[[], dict[str, Any]]] = {
        "overspend": partial(
            crowd, runs=runs, processes=8 if quick else PROCESSES, kills=KILLS, together=together, minutes=minutes
        ),
        "kills": partial(kills, count=killed),
        "bill": partial(bill, calls=150 if quick else CALLS),
        "power": partial(power, count=20 if quick else ATTEMPTS, every=20 if quick else 1),
        "disk": partial(failing, points=10 if quick else POINTS),
        "size": partial(size, rows=50_000 if quick else ROWS),
    }
    asked = [part for part in os.environ.get("PARTS", "").split(",") if part] or list(trials)
    if unknown := [part for part in asked if part not in trials]:
        raise RuntimeError(f"there is no part {unknown[0]!r} of money; parts: {', '.join(trials)}")
    # In processes of their own: none shares an interpreter with a crowd's server.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        beside = [part for part in asked if part not in ("overspend", "size")] if together > 1 else []
        begun = {part: pool.submit(trials[part]) for part in beside}
        found = {part: _said(part, trials[part]()) for part in asked if part not in begun and part != "size"}
        found |= {part: _said(part, trial.result()) for part, trial in begun.items()}
    if "size" in asked:
        found["size"] = _said("size", trials["size"]())  # it is timed: nothing runs beside it
    return {part: found[part] for part in trials if part in found}


def _said(what: str, found: dict[str, Any]) -> dict[str, Any]:
    wrong = found.get("faults") or []
    print(f"  money: {what}: {len(wrong)} not as they should be", file=sys.stderr, flush=True)
    return found
