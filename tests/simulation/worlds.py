"""Random worlds, one per seed: targets, happenings, callers and chaos drawn by chance. A failure is its seed.

python -m tests.simulation.worlds 1234          run that one again and print what came of it
"""

from __future__ import annotations

import sys
from dataclasses import replace
from random import Random
from typing import Any

from shared_core import BreakerConfig, RetryPolicy
from shared_core.resilience.rate_limit import Limits
from shared_core.routing.hedge import Hedge
from shared_core.testing import (
    BrownOut,
    Chaos,
    ClockStep,
    Flap,
    Happening,
    Load,
    Outage,
    RateLimitStorm,
    SimTarget,
    SimulationReport,
    simulate,
)

KINDS = (
    "overloaded", "overloaded", "transient", "connect", "timeout", "stream_cut", "malformed", "throttled", "ramp",
    "billing", "auth", "no_entitlement", "quota_day", "not_found", "bad_request", "policy", "unknown",
)  # fmt: skip
STRATEGIES = ("priority", "priority", "cost", "performance", "round_robin", "weighted")
NAMES = ("openai:gpt-5-mini", "anthropic:claude-sonnet-4-5", "google:gemini-2.5-flash", "llamacpp:tiny")


def world(seed: int, **changes: Any) -> dict[str, Any]:
    """The arguments of `simulate` for one seed."""
    chance = Random(f"world {seed}")
    pick, uniform = chance.choice, chance.uniform
    targets = [
        SimTarget(
            name,
            latency=uniform(0.2, 8.0),
            spread=pick((0.0, 0.25, 0.8)),
            failures=pick((0.0, 0.0, uniform(0.0, 0.3))),
            failure=pick(KINDS[:8]),
            rate_limit=pick((None, None, uniform(10, 200))),
            price=pick((None, (0.25, 2.0), (3.0, 15.0))),
            options={"weight": pick((0, 1, 3)) if place else 1},
        )
        for place, name in enumerate(NAMES[: chance.randrange(1, 5)])
    ]
    scenario: list[Happening | ClockStep] = [_happening(chance, len(targets)) for _ in range(chance.randrange(5))]
    scenario += [ClockStep(uniform(0, 120), pick((-86400.0, -3600.0, 3600.0, 86400.0)))]
    calm = chance.random() < 0.3
    targets = [_limited(chance, target) for target in targets]
    return {
        "targets": targets,
        "scenario": scenario,
        "seconds": 120.0,
        "load": Load(
            rps=pick((0.3, 1.0, 2.0)),
            poisson=chance.random() < 0.7,
            burst=pick((1, 1, 1, 8, 25)),
            streaming=pick((0.0, 0.5, 1.0)),
            timeout_s=pick((None, None, 60.0, 10.0, 1.5)),
        ),
        "chaos": Chaos()
        if calm
        else Chaos(
            delay=uniform(0, 0.15),
            delay_s=uniform(0, 40),
            drop=uniform(0, 0.1),
            silence=pick((0.0, uniform(0, 0.05))),
            cancel=uniform(0, 0.3),
            abandon=uniform(0, 0.3),
            clock_steps=pick((0.0, 3.0)),
        ),
        "seed": seed,
        "strategy": pick(STRATEGIES),
        "on_stream_break": pick(("continue", "continue", "restart", "raise")),
        "breaker": pick((None, BreakerConfig(consecutive_failures=2, open_s=uniform(0.5, 20)))),
        "hedge": pick((None, None, Hedge(after=uniform(0.1, 5.0), min_s=0.1, budget=uniform(0.05, 1.0)))),
        "retry": pick((None, None, RetryPolicy(same_target=chance.randrange(3), total=chance.randrange(4)))),
    } | changes


def _limited(chance: Random, target: SimTarget) -> SimTarget:
    """Every second one has limits of our own, some with a line of callers in front of it."""
    if chance.random() < 0.5:
        return target
    limits = Limits(
        requests_per_minute=chance.choice((None, chance.uniform(5, 120))),
        output_tokens_per_minute=chance.choice((None, chance.uniform(1000, 30000))),
        concurrency=chance.choice((None, chance.randrange(1, 6))),
        burst_s=chance.choice((1.0, 60.0)),
        queue=chance.choice((0, 3, 1000)),
    )
    return replace(target, options={**target.options, "limits": limits})


def _happening(chance: Random, targets: int) -> Happening:
    start = chance.uniform(0, 100)
    end, target = start + chance.uniform(1, 90), chance.randrange(targets)
    kind = chance.choice(KINDS)
    match chance.randrange(4):
        case 0:
            return Outage(start, end, target, kind)
        case 1:
            return Flap(start, end, target, chance.uniform(0.5, 30), chance.uniform(0.5, 30), kind)
        case 2:
            return BrownOut(start, end, target, chance.random(), chance.uniform(1, 30), kind)
        case _:
            return RateLimitStorm(start, end, target, chance.uniform(2, 120), chance.random() < 0.7)


def run(seed: int, **changes: Any) -> SimulationReport:
    """Simulate one world."""
    return simulate(**world(seed, **changes))


def main() -> int:
    """Returns 1 when a promise was broken."""
    wrong = 0
    for seed in map(int, sys.argv[1:]):
        report = run(seed)
        print(report)
        for text in report.broken:
            print(f"  broken: {text}")
        wrong += bool(report.broken)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
