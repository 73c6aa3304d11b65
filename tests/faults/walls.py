"""The deadline is a wall: how long past it a call returns, whatever the server does. Cells, and their runner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared_core import DeadlineExceeded, StreamBroken, Target, Timeouts
from shared_core.testing import FAULTS, Answer, FaultServer
from tests.faults import matrix, oracle

DEADLINE_S = 0.15
PROMISE_S = {"async": 0.05, "sync": 0.25}
"""How late a call may return at most."""
TALKS = "talks-on"
"""Not silent at all: words keep coming, and only the deadline ends them."""
WAITS = "asks-to-wait"
"""Each answer asks to wait a little, and the waits together are longer than the deadline."""
A_DAY = "asks-for-a-day"
"""`Retry-After: 86400`."""


@dataclass(frozen=True)
class Wall:
    """One way of running into the deadline."""

    what: str
    vendor: str
    colour: matrix.Colour
    shape: matrix.Shape

    @property
    def id(self) -> str:
        return f"{self.what}-{self.vendor}-{self.colour}-{self.shape}"


def walls(vendors: Sequence[str] = (*matrix.MAIN, "google-legacy")) -> list[Wall]:
    """Every silent fault, and the two that are not, in every colour and shape."""
    found = []
    for what in [*sorted(oracle.SILENT), TALKS, WAITS, A_DAY]:
        row = FAULTS.get(what)
        for vendor in vendors:
            for colour in ("sync", "async"):
                for shape, can in (("whole", row is None or row.whole), ("streamed", row is None or row.streamed)):
                    if can and not (what == TALKS and shape == "whole"):
                        found.append(Wall(what, vendor, colour, shape))  # type: ignore[arg-type]  # mypy widens the literals
    return found


def overshoot(wall: Wall, bench: matrix.Bench) -> float:
    """Seconds that the call returned after its deadline; negative when it gave up before, as it may.

    Raises:
        AssertionError: it did not fail, or in another way than by its deadline.
    """
    # A large request takes a while to write: that is work, not waiting.
    total_s = 4 * DEADLINE_S if wall.what == "never-read" else DEADLINE_S
    cell = matrix.Cell(wall.what, wall.vendor, wall.colour, wall.shape)
    vendor = matrix.VENDORS[wall.vendor]
    patient = Timeouts(connect=30, first_token=30, reasoning_first_token=30, idle=30, attempt=30, total=total_s)
    own: FaultServer | None = None
    if wall.what in (TALKS, WAITS, A_DAY):
        provider = bench.provider(vendor, vendor.model)
        bench.server.script(vendor.model, Answer("word " * 200, every_s=0.01))
        if wall.what == WAITS:
            bench.server.script(vendor.model, replace(oracle.step_of("rate-limit"), retry_after=DEADLINE_S / 2))
        elif wall.what == A_DAY:
            bench.server.script(vendor.model, replace(oracle.step_of("rate-limit"), retry_after=86_400))
    elif (place := FAULTS[wall.what].place) == "request":
        provider = bench.provider(vendor, vendor.model)
        bench.server.script(vendor.model, oracle.step_of(wall.what))
    else:
        own = FaultServer(tls=FAULTS[wall.what].tls).start()
        if place == "accept":
            own.script_accept(oracle.step_of(wall.what), loop_last=True)
            url = own.url_for(vendor.wire)
        else:
            url = getattr(own, f"{wall.what.replace('-', '_')}_url")(vendor.wire)
        provider = bench.fresh(vendor, vendor.model, url)
    try:
        capabilities = replace(provider.capabilities, context_window=None)
        targets = [Target(provider=provider, name="first", capabilities=capabilities, timeouts=patient)]
        router = matrix.router_of(targets, total_s)
        got = bench.call(router, matrix.request_of(cell), wall.colour, wall.shape)
        assert isinstance(got.error, (DeadlineExceeded, StreamBroken)) or wall.what in (WAITS, A_DAY), got
        assert got.error is not None, got
        return got.took_s - total_s
    finally:
        if own is not None:
            bench.close(provider)
            own.stop()


def control(rounds: int = 40) -> dict[str, float]:
    """How late this machine wakes a sleeper that has nothing else to do, worst of `rounds`, in seconds."""

    async def asleep() -> float:
        begun = time.monotonic()
        await asyncio.sleep(0.02)
        return time.monotonic() - begun - 0.02

    def sleep() -> float:
        begun = time.monotonic()
        time.sleep(0.02)
        return time.monotonic() - begun - 0.02

    with asyncio.Runner() as loop:
        return {
            "async": max(loop.run(asleep()) for _ in range(rounds)),
            "sync": max(sleep() for _ in range(rounds)),
        }
