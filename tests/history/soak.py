"""`make soak`: random conversations at every target, from a seed nobody has tried, until the time is up.

SOAK=10      minutes
SEED=123     the conversation of one seed, and no other: repeats what a run has found
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings

from tests.history.judge import Broken, Score, judge
from tests.history.targets import TARGETS

_MOST = 10
"""Failures after which there is enough to look at."""


def main() -> int:
    """Returns 1 when something did not hold."""
    warnings.simplefilter("ignore")  # the integrations', about what they leave out of histories that we made odd
    logging.disable(logging.ERROR)
    only = os.environ.get("SEED", "").strip()
    minutes = float(os.environ.get("SOAK", "").strip() or 10)
    first = int(only) if only else int.from_bytes(os.urandom(6), "big")
    print(f"soak: {len(TARGETS)} targets, " + (f"seed {first}" if only else f"{minutes:g} minutes from seed {first}"))
    score, failures = Score(), 0
    until, told = time.monotonic() + minutes * 60, time.monotonic()
    seed = first
    while True:
        try:
            judge(seed, score)
        except Broken as error:
            failures += 1
            print(f"  {error}\n  again: make soak SEED={seed}", flush=True)
        seed += 1
        now = time.monotonic()
        if now - told > 30:
            told = now
            print(f"  {score.cases} cases", flush=True)
        if only or now > until or failures == _MOST:
            break
    print(
        f"soak: {score.histories} conversations, {score.cases} cases, of which {score.incapable} whose target takes no "
        f"such file; {failures} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
