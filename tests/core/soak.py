"""`make soak`, the machines' part: what decides is walked at random beside its models, from seeds nobody has tried.

SOAK=10      minutes for all of it; a sixth of them is spent here, and never less than a million steps
SEED=123     the walks of one seed, and no other: repeats what a run has found

First by the plain driver of `walks`, for the number of steps; then by Hypothesis, which draws better and shrinks.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.core.walks import WALKS, Found, Walked, steps_in, walk

AT_LEAST = {"breaker": 300_000, "limiter": 300_000, "retry budget": 300_000, "seam": 100_000, "planner": 5_000}
"""Steps of each machine, however little time there is."""


def main() -> int:
    """Returns 1 when something did not hold."""
    logging.disable(logging.CRITICAL)  # the flow's walk fails on purpose, and each failure would be told
    only = os.environ.get("SEED", "").strip()
    if only:
        return _again(int(only))
    seconds = float(os.environ.get("SOAK", "").strip() or 10) * 10
    first = int.from_bytes(os.urandom(6), "big")
    print(f"machines: {len(WALKS)}, {seconds:g} s, from seed {first}", flush=True)
    begun, total, failures = time.monotonic(), 0, 0
    for walked in WALKS:
        started = time.monotonic()
        try:
            steps, _ = steps_in(walked, first, seconds / 2 / len(WALKS), AT_LEAST.get(walked.name, 10_000))
        except Found as found:
            failures += 1
            print(f"  {found}\n  again: SEED=<that seed> python -m tests.core.soak", flush=True)
            continue
        total += steps
        took = time.monotonic() - started
        print(f"  {walked.name}: {steps:,} steps, {steps / took:,.0f} a second", flush=True)
    failures += _by_hypothesis(seconds / 2)
    print(f"machines: {total:,} steps in {time.monotonic() - begun:.0f} s, {failures} failures")
    return 1 if failures else 0


def _again(seed: int) -> int:
    failures = 0
    for walked in WALKS:
        try:
            print(f"  {walked.name}: {walk(walked, seed)} steps of seed {seed} hold")
        except Found as found:
            failures += 1
            print(f"  {found}")
    return 1 if failures else 0


def _by_hypothesis(seconds: float) -> int:
    """The same machines as Hypothesis draws them. What it finds it shrinks and prints, step by step."""
    failures = examples = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for walked in WALKS:
            examples += 10
            failures += _shrunk(walked)
    print(f"  by Hypothesis: {examples:,} walks of up to 50 steps", flush=True)
    return failures


def _shrunk(walked: Walked) -> int:
    drawn = settings(
        max_examples=10,
        stateful_step_count=50,
        derandomize=False,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    try:
        run_state_machine_as_test(walked.machine, settings=drawn)
    except Exception as error:
        print(f"  {walked.name}: {error!r}\n" + "\n".join(getattr(error, "__notes__", [])), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
