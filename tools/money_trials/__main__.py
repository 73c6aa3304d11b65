"""`python -m tools.money_trials crowd|kills|bill|power|disk|soak`: try the ledger, print what came of it as JSON.

soak takes its minutes and seed from SOAK and SEED, and ends with 1 when anything was not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["main"]


def _crowd(options: argparse.Namespace) -> dict[str, Any]:
    from tools.money_trials.crowd import crowd

    return crowd(
        runs=options.runs, seed=options.seed, processes=options.processes, kills=options.kills, tell=True,
        together=options.together,
    )  # fmt: skip


def _kills(options: argparse.Namespace) -> dict[str, Any]:
    from tools.money_trials.kills import kills

    return kills(count=options.kills, seed=options.seed)


def _bill(options: argparse.Namespace) -> dict[str, Any]:
    from tools.money_trials.bill import bill

    return bill(calls=options.calls, seed=options.seed)


def _power(options: argparse.Namespace) -> dict[str, Any]:
    from tools.money_trials.power import power

    return power(seed=options.seed, count=options.count, every=options.every)


def _disk(options: argparse.Namespace) -> dict[str, Any]:
    from tools.money_trials.power import failing

    return failing(seed=options.seed, points=options.points)


def _soak(options: argparse.Namespace) -> dict[str, Any]:
    """One trial after another, each from a seed nobody has tried, until the time is up."""
    from tools.money_trials.bill import bill
    from tools.money_trials.crowd import run
    from tools.money_trials.kills import kills
    from tools.money_trials.power import failing, power

    minutes = float(os.environ.get("SOAK") or options.minutes)
    seed = os.environ.get("SEED") or options.seed
    first = int(seed) if seed else random.SystemRandom().randrange(10**9)
    until = time.monotonic() + 60 * minutes
    print(f"soak: money, {minutes:g} minutes from seed {first}", flush=True)
    counts = {"runs": 0, "killed": 0, "requests": 0, "calls": 0, "power_cuts": 0, "broken_disks": 0}
    faults: list[str] = []
    number = first
    while not counts["runs"] or time.monotonic() < until:
        one = run(seed=number, processes=options.processes, kills=options.kills)
        counts["runs"] += 1
        counts["killed"] += one["killed"]
        counts["requests"] += one["requests"]
        found = [f"crowd: {fault}" for fault in one["faults"]]
        if one["used_share"] < 0.95:
            found.append(f"crowd: only {one['used_share']:.1%} of the budget could be used")
        shot = kills(count=50, seed=number)
        counts["killed"] += shot["kills"]
        counts["requests"] += shot["requests"]
        found += [f"kills: {fault}" for fault in shot["faults"]]
        if number % 5 == first % 5:
            billed = bill(calls=300, seed=number)
            counts["calls"] += billed["calls"]
            found += [f"bill: {fault}" for fault in billed["faults"]]
            cut = power(seed=number, count=30, every=15)
            counts["power_cuts"] += cut["images"]
            found += [f"power: {fault}" for fault in cut["faults"]]
            broken = failing(seed=number, points=10)
            counts["broken_disks"] += broken["runs"]
            found += [f"disk: {fault}" for fault in broken["faults"]]
        for fault in found:
            print(f"  {fault}\n  again: make soak SEED={number}", flush=True)
        faults += found
        number += 1
        if seed:
            break
    return {**counts, "first_seed": first, "faults": faults}


TRIALS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "crowd": _crowd,
    "kills": _kills,
    "bill": _bill,
    "power": _power,
    "disk": _disk,
    "soak": _soak,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when something was not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tools.money_trials", description=__doc__)
    parser.add_argument("trial", choices=TRIALS)
    parser.add_argument("--seed", type=int, default=None, help="repeats a trial (1; soak: one nobody has tried)")
    parser.add_argument("--runs", type=int, default=5, help="crowd: how many")
    parser.add_argument("--processes", type=int, default=32, help="crowd, soak: callers at a time")
    parser.add_argument("--together", type=int, default=1, help="crowd: runs at a time")
    parser.add_argument("--kills", type=int, default=5, help="crowd, soak: kill -9 in each run; kills: in all")
    parser.add_argument("--calls", type=int, default=10_000, help="bill: how many")
    parser.add_argument("--count", type=int, default=60, help="power: attempts of the program whose power fails")
    parser.add_argument("--every", type=int, default=1, help="power: cut at every n-th write, sync and cut")
    parser.add_argument("--points", type=int, default=100, help="disk: how many writes and syncs fail, one at a time")
    parser.add_argument("--minutes", type=float, default=10.0, help="soak: how long")
    options = parser.parse_args(arguments)
    if options.trial != "soak" and options.seed is None:
        options.seed = 1
    found = TRIALS[options.trial](options)
    print(json.dumps(found, indent=2))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
