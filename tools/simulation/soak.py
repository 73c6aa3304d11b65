"""Simulates one random world per seed and looks for a broken promise. A failure is its seed.

python -m tools.simulation.soak --seeds 10000 --first 0 --jobs 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.simulation import worlds

__all__ = ["Searched", "main", "search"]


class Searched(NamedTuple):
    """What one seed came to."""

    seed: int
    requests: int
    packets: int
    broken: tuple[str, ...]


def _one(seed: int) -> Searched:
    try:
        report = worlds.run(seed)
    except Exception as error:  # noqa: BLE001  # whatever it is, it was this seed that found it
        return Searched(seed, 0, 0, (f"{type(error).__name__}: {error}",))
    return Searched(seed, report.requests, len(report.packets), report.broken)


def search(seeds: range, *, jobs: int = 1) -> Iterator[Searched]:
    """Each seed's result, in order; in so many processes."""
    if jobs <= 1:
        yield from map(_one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_one, seeds, chunksize=16)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when a promise was broken; prints which, and the command that shows it again."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulation.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    begun, requests, packets, wrong = time.perf_counter(), 0, 0, 0
    for found in search(range(options.first, options.first + options.seeds), jobs=options.jobs):
        requests += found.requests
        packets += found.packets
        if found.broken:
            wrong += 1
            print(f"seed {found.seed}: {found.broken[0]}  (python -m tests.simulation.worlds {found.seed})", flush=True)
    took = time.perf_counter() - begun
    print(
        f"{options.seeds:,} worlds, {requests:,} requests, {packets:,} packets in {took:.0f} s: {wrong} broke a promise"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
