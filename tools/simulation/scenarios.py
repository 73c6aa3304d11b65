"""The four troubles that everybody goes through, the targets they happen to, and the runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared_core.testing import (
    BrownOut,
    Flap,
    Happening,
    Load,
    Outage,
    RateLimitStorm,
    SimTarget,
    SimulationReport,
    simulate,
)
from tools.simulation.peers import PEERS

__all__ = ["LOAD", "OURS", "PRIMARY", "SCENARIOS", "SECONDS", "START_S", "STOP_S", "TARGETS", "dead_target", "run"]

PRIMARY = "openai:gpt-5-mini"
TARGETS: Sequence[SimTarget] = (
    SimTarget(PRIMARY, latency=2.0, failures=0.002, price=(0.25, 2.0)),
    SimTarget("anthropic:claude-haiku-4-5", latency=2.5, failures=0.002, price=(1.0, 5.0)),
    SimTarget("google:gemini-2.5-flash", latency=3.0, failures=0.002, price=(0.3, 2.5)),
)
"""A primary, a dearer second, and a slower third. In fair weather one request in 500 fails at each."""
LOAD = Load(rps=5.0)
SECONDS = 1200.0
START_S, STOP_S = 300.0, 900.0
"""Ten minutes of trouble in the middle of twenty."""
SCENARIOS: Mapping[str, Happening] = {
    "outage": Outage(START_S, STOP_S),
    "flap": Flap(START_S, STOP_S, down=20.0, up=20.0),
    "brown-out": BrownOut(START_S, STOP_S, failures=0.3, slower=4.0),
    "rate-limit storm": RateLimitStorm(START_S, STOP_S, limit=60.0),
}
OURS: Mapping[str, Mapping[str, Any]] = {
    "priority": {},
    "cost": {"strategy": "cost"},
    "performance": {"strategy": "performance"},
    "round_robin": {"strategy": "round_robin"},
    "weighted": {"strategy": "weighted"},
}


def run(who: str, scenario: str, *, seed: int = 1, seconds: float = SECONDS) -> SimulationReport:
    """One policy or strategy through one trouble.

    Raises:
        KeyError: there is no such.
    """
    happening = SCENARIOS[scenario]
    options: Mapping[str, Any] = OURS[who] if who in OURS else {"policy": PEERS[who]}
    return simulate(TARGETS, [happening], seconds=seconds, load=LOAD, seed=seed, name=who, **options)


def dead_target(kind: str = "overloaded", *, rps: float = 2.0, seed: int = 1, **options: Any) -> dict[str, Any]:
    """How many packets a dead primary gets per call through ten simulated minutes of outage. The promise is 1.1."""
    report = simulate(TARGETS, [Outage(0.0, 600.0, kind=kind)], seconds=600.0, load=Load(rps=rps), seed=seed, **options)
    packets = report.packets_to(PRIMARY, 0.0, 600.0)
    return {
        "kind": kind,
        "rps": rps,
        "seed": seed,
        "calls": report.requests,
        "answered": report.answered,
        "packets": packets,
        "packets_per_call": round(packets / report.requests, 4),
        "broken": list(report.broken),
    }
