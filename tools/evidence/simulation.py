"""Every strategy and every peer's policy through the same troubles in simulated time; thousands of random worlds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from time import process_time
from typing import Any

from shared_core.resilience.health import percentile
from shared_core.testing import SimulationReport, simulate
from tools.simulation import scenarios, soak
from tools.simulation.peers import PEERS
from tools.simulation.scenarios import dead_target

__all__ = ["dead_target", "figures"]

SEEDS = (1, 2, 3)
WORLDS = 10_000
SLICE_S = 20.0
DRAWN_OVER_TIME = ("priority", "LangChain with_fallbacks", "LiteLLM fallbacks")


def figures(*, quick: bool = False) -> dict[str, Any]:
    """Takes some twenty minutes; `quick` takes one seed of each and few worlds."""
    seeds = SEEDS[:1] if quick else SEEDS
    names = [*scenarios.OURS, *PEERS]
    troubles = []
    for scenario in scenarios.SCENARIOS:
        print(f"simulation: {scenario}", file=sys.stderr, flush=True)
        rows, lines = [], []
        for who in names:
            reports = [scenarios.run(who, scenario, seed=seed) for seed in seeds]
            rows.append(_row(who, reports))
            if who in DRAWN_OVER_TIME:
                lines.append(_line(who, reports[0]))
        troubles.append({"scenario": scenario, "rows": rows, "over_time": lines})
    return {
        "targets": [
            {"name": t.name, "latency_s": t.latency, "failures": t.failures, "price_usd": list(_price(t.price))}
            for t in scenarios.TARGETS
        ],
        "rps": scenarios.LOAD.rps,
        "seconds": scenarios.SECONDS,
        "trouble_s": [scenarios.START_S, scenarios.STOP_S],
        "seeds": list(seeds),
        "troubles": troubles,
        "dead_target": [dead_target(kind) for kind in ("overloaded", "connect", "transient", "timeout")],
        "speed": _speed(),
        "worlds": _worlds(200 if quick else WORLDS),
    }


def _price(price: Any) -> Sequence[float]:
    return price if isinstance(price, tuple) else ()


def _row(who: str, reports: Sequence[SimulationReport]) -> dict[str, Any]:
    """While the trouble lasts: shares, packets to the troubled target, latencies, cost; of all seeds together."""
    start, stop = scenarios.START_S, scenarios.STOP_S
    calls = [call for report in reports for call in report.calls_from(start, stop)]
    took = [call.ended - call.at for call in calls if call.outcome == "answered" and call.ended is not None]
    packets = sum(report.packets_to(scenarios.PRIMARY, start, stop) for report in reports)
    billed = [packet.bill_nano for report in reports for packet in report.packets if start <= packet.at < stop]
    back = [report.serves_again(scenarios.PRIMARY, stop) for report in reports]
    return {
        "who": who,
        "ours": who in scenarios.OURS,
        "calls": len(calls),
        "answered": len(took),
        "availability": len(took) / len(calls),
        "packets": packets,
        "packets_per_call": round(packets / len(calls), 4),
        "p50_s": _rounded(percentile(took, 0.5)),
        "p95_s": _rounded(percentile(took, 0.95)),
        "p99_s": _rounded(percentile(took, 0.99)),
        "usd_per_1000": round(sum(billed) / 1e9 / max(1, len(took)) * 1000, 4),
        "back_s": _rounded(max((b for b in back if b is not None), default=None)),
        "broken": sum(len(report.broken) for report in reports),
    }


def _line(who: str, report: SimulationReport) -> dict[str, Any]:
    """Per slice of twenty seconds: packets per second to the primary, and the median latency."""
    slices = report.slices(SLICE_S)
    return {
        "who": who,
        "slice_s": SLICE_S,
        "packets_per_s": [round(one.packets[scenarios.PRIMARY] / SLICE_S, 3) for one in slices],
        "p50_s": [_rounded(one.p50_s) for one in slices],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _speed() -> dict[str, Any]:
    """Simulated requests per minute of processor time: the best of three runs, healthy and through an outage."""
    best: dict[str, float] = {}
    for _ in range(3):
        for name, happenings in (("healthy", ()), ("outage", (scenarios.SCENARIOS["outage"],))):
            begun = process_time()
            report = simulate(scenarios.TARGETS, happenings, seconds=scenarios.SECONDS, load=scenarios.LOAD)
            best[name] = max(best.get(name, 0.0), report.requests / (process_time() - begun) * 60)
    return {f"{name}_requests_per_minute": round(rate, -3) for name, rate in best.items()}


def _worlds(count: int) -> dict[str, Any]:
    found = list(_told(soak.search(range(count), jobs=os.cpu_count() or 1), count))
    return {
        "seeds": count,
        "requests": sum(one.requests for one in found),
        "packets": sum(one.packets for one in found),
        "broken": sum(bool(one.broken) for one in found),
        "details": [{"seed": one.seed, "broken": list(one.broken[:3])} for one in found if one.broken],
    }


def _told(found: Iterable[soak.Searched], count: int) -> Iterable[soak.Searched]:
    for number, one in enumerate(found):
        if number % 1000 == 0:
            print(f"simulation: world {number:,} of {count:,}", file=sys.stderr, flush=True)
        yield one
