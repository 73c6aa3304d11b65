"""Clocks that jump: the machine's own by hours and days, the server's, and twenty time zones. Decisions stay put.

The router lives on a monotonic clock. What it takes from dates (an HTTP date in `Retry-After`, an RFC 3339 reset) it
takes by the server's own `Date`, so that nobody else's clock matters.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from shared_core import FallbackError, RetryPolicy, Router, Target, Timeouts
from shared_core.providers import waits
from shared_core.testing import Fault, FaultServer, VirtualClock
from tests.promises.circuits import ASK

__all__ = ["STEPS", "ZONES", "Wall", "decisions", "skewed", "stepped", "zoned"]

STEPS = {"an hour on": 3600.0, "an hour back": -3600.0, "a day on": 86_400.0, "a day back": -86_400.0}
ZONES = (
    "UTC", "Pacific/Kiritimati", "Pacific/Niue", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns",
    "America/Los_Angeles", "America/New_York", "Europe/London", "Europe/Berlin", "Asia/Tokyo", "Asia/Kolkata",
    "Africa/Cairo", "America/Sao_Paulo", "Pacific/Auckland", "Pacific/Chatham", "Asia/Tehran", "Asia/Shanghai",
    "America/Caracas", "Antarctica/Troll",
)  # fmt: skip


_NOW = float(int(time.time()))
"""All tales begin at the same true moment, so near to this machine's own that to read it would make a difference."""


class Wall(VirtualClock):
    """A clock whose wall time can be set, as an administrator or NTP sets it; the monotonic one goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.wall = _NOW - self.monotonic()

    def time(self) -> float:
        return self.wall + self.monotonic()


def decisions(
    clock: Wall, server_clock: Callable[[], float], *, jump: float = 0.0, every: int = 3
) -> list[tuple[str, float]]:
    """A fixed tale over real SDKs: who is asked at which second of it, and which calls fail.

    Throttles that end at HTTP dates and at RFC 3339 resets, a lock, an outage with its probes, and calls in between.
    The wall clock jumps by `jump` seconds back and forth after every few of them.
    """
    told: list[tuple[str, float]] = []
    # The one place that reads the machine's clock to decide something: where a server sends no `Date`.
    machine = mock.patch.object(waits, "time", SimpleNamespace(time=clock.time))
    with machine, FaultServer(wall_clock=server_clock) as server:
        steps = [
            "ok", "rate-limit-date", "ok", *["server-error"] * 8, "ok", "rate-limit-bare", "ok", "rate-limit-skewed",
            Fault("rate-limit-date", retry_after=20), "ok",
        ]  # fmt: skip
        server.script("gpt-4o-mini", [*steps, "ok", "ok", "ok", "forbidden", "ok"])
        server.script("claude-sonnet-4-5", [*steps[::-1], "rate-limit-bare", "ok"])
        key = "sk-clocks-00000000"
        targets = [
            Target("openai:gpt-4o-mini", base_url=server.openai_url, api_key=key, name="a"),
            Target("anthropic:claude-sonnet-4-5", base_url=server.anthropic_url, api_key=key, name="b"),
        ]
        router = Router(
            targets, clock=clock, seed=5, retry=RetryPolicy(max_wait_s=5.0), timeouts=Timeouts(total=900.0),
        )  # fmt: skip
        router.warm()
        begun = clock.monotonic()
        for number in range(80):
            if jump and number % every == every - 1:
                clock.wall += jump if (number // every) % 2 == 0 else -jump
            try:
                router.invoke(ASK)
            except FallbackError as error:
                told.append((type(error).__name__, clock.monotonic() - begun))
            else:
                told.append(("answered", clock.monotonic() - begun))
            attempts = router.last.attempts if router.last else []
            told += [(f"{a.target} {a.outcome}", a.started - begun) for a in attempts]
            clock.advance(7.0)
        router.close()
    return told


def _apart(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> float:
    """Seconds that two tales are apart at most; infinite where somebody else was asked."""
    if [what for what, _ in one] != [what for what, _ in other]:
        return float("inf")
    return max(abs(a - b) for (_, a), (_, b) in zip(one, other, strict=True))


def _plain() -> list[tuple[str, float]]:
    clock = Wall()
    return decisions(clock, clock.time)


def stepped() -> dict[str, float]:
    """The wall clock jumps again and again, the server's own does not."""
    still, found = _plain(), {}
    for name, jump in STEPS.items():
        clock = Wall()
        true = clock.wall
        found[name] = _apart(
            still, decisions(clock, lambda clock=clock, true=true: true + clock.monotonic(), jump=jump)
        )
    return found


def skewed() -> dict[str, float]:
    """The server's clock is wrong by an hour or a day, and everything that it says in dates with it."""
    still, found = _plain(), {}
    for name, skew in STEPS.items():
        clock = Wall()
        found[name] = _apart(still, decisions(clock, lambda clock=clock, skew=skew: clock.time() + skew))
    return found


@contextmanager
def _zone(name: str) -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


def zoned(zones: tuple[str, ...] = ZONES) -> dict[str, float]:
    """The process lives in each zone."""
    still, found = _plain(), {}
    for name in zones:
        with _zone(name):
            found[name] = _apart(still, _plain())
    return found


def figures(found: dict[str, float]) -> dict[str, Any]:
    """How many clocks were tried, and by how much a decision has moved at most."""
    return {"clocks": len(found), "most_s": max(found.values()), "worst": max(found, key=lambda name: found[name])}
