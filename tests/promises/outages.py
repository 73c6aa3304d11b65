"""Outages in simulated time: what a dead target gets, and when those who were told to wait come back."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable
from typing import Any

from shared_core import BreakerConfig, ChatRequest, ErrorKind, FallbackError, ProviderError, RetryPolicy, Router, Target
from shared_core import user as said
from shared_core.resilience.breaker import CircuitBreaker, Result
from shared_core.testing import ScriptedProvider, VirtualClock

__all__ = ["dead_target", "herd", "open_times", "waits"]

ASK = ChatRequest((said("Hello"),))
KINDS = (ErrorKind.TRANSIENT, ErrorKind.CONNECT, ErrorKind.OVERLOADED, ErrorKind.TIMEOUT, ErrorKind.STREAM_CUT)
START_UP = 5
"""Packets that it takes a circuit to open, whatever the traffic."""


def dead_target(kind: ErrorKind, *, rps: float, minutes: float = 10.0, alone: bool = False) -> dict[str, Any]:
    """Calls at a steady rate while the first target fails: how many packets it gets, how many calls were answered."""
    clock = VirtualClock()
    dead = ScriptedProvider(kind, name="dead", model="m", clock=clock)
    targets = [Target(provider=dead, name="dead")]
    if not alone:
        targets.append(Target(provider=ScriptedProvider("served", name="well", model="m"), name="well"))
    router = Router(targets, clock=clock, seed=1)
    calls = answered = 0
    begun, until = clock.monotonic(), clock.monotonic() + 60 * minutes
    while clock.monotonic() < until:
        calls += 1
        try:
            router.invoke(ASK)
            answered += 1
        except FallbackError:
            pass
        # A caller who waited is not at the next one's expense: arrivals are by the clock.
        clock.advance(max(0.0, begun + calls / rps - clock.monotonic()))
    router.close()
    return {
        "kind": str(kind), "rps": rps, "alone": alone, "calls": calls, "packets": dead.calls,
        "packets_per_call": round(dead.calls / calls, 4), "answered": answered,
        "holds": dead.calls <= 1.1 * calls + START_UP,
    }  # fmt: skip


def waits(callers: int, asked_s: float, *, seed: int = 1) -> dict[str, Any]:
    """Processes that know nothing of each other are told at the same moment to come back in `asked_s` seconds."""
    back = []
    for number in range(callers):
        clock = VirtualClock()
        at: list[float] = []

        def step(_: ChatRequest, at: list[float] = at, clock: VirtualClock = clock) -> object:
            at.append(clock.monotonic())
            if len(at) == 1:
                return ProviderError.of(ErrorKind.THROTTLED, "busy", status=429, retry_after_s=asked_s)
            return "served"

        router = Router(
            [Target(provider=ScriptedProvider(step, name="a", model="m"), name="a")],
            clock=clock, seed=seed * callers + number, retry=RetryPolicy(max_wait_s=1e9),
        )  # fmt: skip
        router.invoke(ASK)
        router.close()
        back.append(at[1] - at[0])
    return _spread(back, asked_s)


def open_times(breakers: int, *, seed: int = 1) -> dict[str, Any]:
    """Circuits of as many processes open at the same moment: when each sends its probe."""
    chance = random.Random(seed)
    probes = []
    for _ in range(breakers):
        breaker = CircuitBreaker(BreakerConfig())
        for _ in range(5):
            permit = breaker.acquire(0.0, 1.0)
            breaker.report(permit, Result.FAILURE, 0.0, chance=chance.random())  # type: ignore[arg-type]  # it is closed
        assert breaker.open_until is not None
        probes.append(breaker.open_until)
    return _spread(probes, 5.0)


def _spread(at: list[float], earliest: float) -> dict[str, Any]:
    """Whether nobody is early, and the share of all that falls into any twentieth of the time in which they come."""
    at.sort()
    width = (at[-1] - at[0]) / 20
    most = max(sum(one <= other < one + width for other in at) for one in at) if width else len(at)
    return {
        "callers": len(at),
        "early": sum(one < earliest for one in at),
        "first_s": round(at[0], 3),
        "last_s": round(at[-1], 3),
        "most_in_a_twentieth": round(most / len(at), 3),
    }


class Turns(VirtualClock):
    """Virtual time for many tasks: it moves to the next sleeper when nobody can go on."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    async def asleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self.monotonic() + seconds, self._order, future))
        await future

    async def run(self, works: list[Callable[[], Awaitable[Any]]]) -> None:
        """Everything in `works`, to its end."""
        tasks = [asyncio.ensure_future(work()) for work in works]
        while not all(task.done() for task in tasks):
            for _ in range(50):
                await asyncio.sleep(0)
            if self._sleepers:
                at, _, future = heapq.heappop(self._sleepers)
                self.advance(max(0.0, at - self.monotonic()))
                if not future.done():
                    future.set_result(None)
        await asyncio.gather(*tasks)


def herd(callers: int, asked_s: float = 10.0) -> dict[str, Any]:
    """Callers of one router whose only target says 'come back in ten seconds': when they are there again."""
    clock = Turns()
    at: list[float] = []

    def step(_: ChatRequest) -> object:
        at.append(clock.monotonic() - begun)
        if at[-1] < asked_s:
            return ProviderError.of(ErrorKind.THROTTLED, "busy", status=429, retry_after_s=asked_s)
        return "served"

    begun = clock.monotonic()
    router = Router([Target(provider=ScriptedProvider(step, name="a", model="m"), name="a")], clock=clock, seed=1)
    asyncio.run(clock.run([lambda: router.ainvoke(ASK) for _ in range(callers)]))
    router.close()
    early = [one for one in at if one < asked_s]
    back = [one for one in at if one >= asked_s]
    return {"packets_before": len(early), **_spread(back, asked_s)}
