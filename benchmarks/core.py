"""The core alone: what a routed call, a failover, a skipped target and a streamed chunk cost."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from benchmarks.measure import Row, per_call_us, row
from shared_core import (
    Capabilities,
    ChatEvent,
    ChatRequest,
    Constraints,
    ErrorKind,
    Finished,
    Guard,
    Origin,
    Price,
    ProviderError,
    Router,
    Started,
    Target,
    TextDelta,
    Usage,
    collect,
    user,
)

__all__ = ["measure"]

REQUEST = ChatRequest((user("Hello"),))
USAGE = Usage(3, 1)
SHORTER = 10
"""What costs microseconds is timed in so many times more and shorter rounds: some of them have the machine alone."""


class Instant:
    """Answers at once, with as many chunks as it was told."""

    model = "instant"
    local = True
    interruptible = True
    capabilities = Capabilities()

    def __init__(self, chunks: int = 1, name: str = "instant") -> None:
        self.name = name
        self.chunks = chunks
        self.origin = Origin(name, "instant")

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer."""
        yield Started()
        for _ in range(self.chunks):
            yield TextDelta(" word")
        yield Finished(usage=USAGE)

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer."""
        for event in self.stream(request, guard):
            yield event

    def close(self) -> None:
        """Nothing to free."""

    async def aclose(self) -> None:
        """Nothing to free."""


class Failing(Instant):
    """Fails at once, in a way that neither locks it nor opens its circuit: every call meets it again."""

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Fail."""
        if request.messages:
            raise ProviderError.of(ErrorKind.TOO_LARGE, "too large")
        yield Started()


def measure(rounds: int, number: int) -> list[Row]:
    """All rows of the core."""
    bare, guard = Instant(), Guard(time.monotonic, streaming=False)
    healthy = Router(Instant())
    failing = Router([Failing(name="failing"), Instant()])
    skipping = Router([Instant(name="open"), Instant()])
    skipping.force_open("open:instant")
    plain, one, two, skip = per_call_us(
        lambda: collect(bare.stream(REQUEST, guard)),
        lambda: healthy.invoke(REQUEST),
        lambda: failing.invoke(REQUEST),
        lambda: skipping.invoke(REQUEST),
        rounds=SHORTER * rounds,
        number=number // SHORTER,
    )
    rows = [
        row("Router.invoke adds, breaker, ledger and journal on", "us", _adds(one, plain), at_most=40),
        row("a failed first target adds", "us", _adds(two, one)),
        row("a target with an open circuit adds", "us", _adds(skip, one), at_most=5),
        row("routed calls in one thread", "calls/s", 1e6 / statistics.median(one), at_least=10_000),
    ]
    rows += _mechanisms(rounds, number)
    rows += _decisions(rounds, number)
    rows += _chunks(rounds, number)
    rows.append(_threads(healthy, rounds, number))
    rows.append(_tasks(healthy, rounds, number))
    return rows


def _adds(more: list[float], less: list[float]) -> float:
    """Microseconds that one call takes beyond another: of the rounds in which nobody else had the machine."""
    return min(more) - min(less)


MECHANISMS: dict[str, dict[str, Any]] = {
    "limits": {"limits": {"requests_per_minute": 1e9, "concurrency": 64}},
    "complexity='auto'": {"complexity": "auto"},
    "a budget": {"budgets": {"limit_usd": 1e6}},
    "an observer": {"on_event": lambda event: None},
    "single-flight": {"single_flight": True},
    "hedging": {"hedge": True},
    "strategy='performance'": {"strategy": "performance"},
}
"""What is off unless asked for."""


def _mechanisms(rounds: int, number: int) -> list[Row]:
    """What each mechanism adds to a call, and all of them together, over two healthy targets that answer at once."""
    request = REQUEST.replace(max_tokens=16)

    def made(options: dict[str, Any]) -> Router:
        targets = [Target(provider=Instant(name=name), name=name, price=Price(1, 2)) for name in ("a", "b")]
        return Router(targets, **options)

    def call(options: dict[str, Any]) -> Callable[[], object]:
        router = made(options)
        return lambda: router.invoke(request)

    runner = asyncio.Runner()

    def acall(options: dict[str, Any]) -> Callable[[], object]:
        router = made(options)
        return lambda: runner.run(router.ainvoke(request))

    together = {name: value for options in MECHANISMS.values() for name, value in options.items()}
    works = [call({}), *(call(options) for options in MECHANISMS.values()), call(together), acall({}), acall(together)]
    plain, *others, aplain, atogether = per_call_us(
        *works, rounds=SHORTER * rounds, number=max(20, number // (10 * SHORTER))
    )
    runner.close()
    names = [*MECHANISMS, "all of these together"]
    rows = [row(f"{name} adds to a call", "us", _adds(timed, plain)) for name, timed in zip(names, others, strict=True)]
    return [*rows, row("all of these together adds to an async call", "us", _adds(atogether, aplain))]


_STRATEGIES = ("priority", "cost", "performance", "round_robin", "weighted")


def _decisions(rounds: int, number: int, few: int = 2, many: int = 100) -> list[Row]:
    """What one more target costs a decision, under each mechanism: flat from two targets to a hundred."""

    def router(count: int, **options: Any) -> Router:
        made = Router(
            [
                Target(provider=Instant(name=f"p{at}"), name=f"t{at}", price=Price(at + 1, 2 * at + 1), weight=at + 1)
                for at in range(count)
            ],
            **options,
        )
        for at, route in enumerate(made._fleet.routes):
            for call in range(100):
                route.gate.health.calls += 1
                route.gate.health.success(1 + (call * 7919 + at) % 97 / 97, None, float(call))
        return made

    def decide(made: Router, request: ChatRequest = REQUEST) -> Callable[[], object]:
        line = made._fleet.line
        return lambda: made._plan(line, request, None, 5)

    rows = []
    denied = REQUEST.replace(constraints=Constraints(deny=frozenset({"nobody"})))
    dear = REQUEST.replace(constraints=Constraints(max_price=1e6))
    together = {"strategy": "performance", "complexity": "simple"}
    for name, options, request, limit in (
        *((name, {"strategy": name}, REQUEST, 1.0) for name in _STRATEGIES),
        ("simple", {"complexity": "simple"}, REQUEST, 1.0),
        ("a denied name", {}, denied, 1.0),
        ("a maximum price", {}, dear, 1.0),
        ("performance, simple and a denied name together", together, denied, None),
    ):
        small, large = per_call_us(
            decide(router(few, **options), request),
            decide(router(many, **options), request),
            rounds=4 * rounds,
            number=max(5, number // 200),
        )
        each = (min(large) - min(small)) / (many - few)
        rows.append(row(f"a decision adds per target, {name}, {few} to {many} targets", "us", each, at_most=limit))
    auto = router(few, complexity="auto")
    (estimated, plain) = per_call_us(decide(auto), decide(router(few)), rounds=rounds, number=max(10, number // 10))
    rows.append(row("complexity='auto' adds to a decision", "us", min(estimated) - min(plain)))
    return rows


def _chunks(rounds: int, number: int) -> list[Row]:
    chunks = 1000
    provider, guard = Instant(chunks), Guard(time.monotonic, streaming=True)
    router = Router(provider)
    request = REQUEST.replace(streaming=True)

    def drain(events: Iterator[ChatEvent]) -> None:
        for _ in events:
            pass

    plain, routed = per_call_us(
        lambda: drain(provider.stream(request, guard)),
        lambda: drain(iter(router.stream(request))),
        rounds=SHORTER * rounds,
        number=max(3, number // (200 * SHORTER)),
    )

    async def adrain(events: AsyncIterator[ChatEvent]) -> None:
        async for _ in events:
            pass

    runner = asyncio.Runner()
    aplain, arouted = per_call_us(
        lambda: runner.run(adrain(provider.astream(request, guard))),
        lambda: runner.run(adrain(router.astream(request).__aiter__())),
        rounds=SHORTER * rounds,
        number=max(3, number // (200 * SHORTER)),
    )
    runner.close()
    return [
        row("a streamed chunk adds, sync", "us", _adds(routed, plain) / chunks, at_most=3),
        row("a streamed chunk adds, async", "us", _adds(arouted, aplain) / chunks, at_most=3),
    ]


def _threads(router: Router, rounds: int, number: int, threads: int = 8) -> Row:
    def work() -> None:
        for _ in range(number // threads):
            router.invoke(REQUEST)

    rates = []
    for _ in range(rounds):
        crew = [threading.Thread(target=work) for _ in range(threads)]
        begun = time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        rates.append(number // threads * threads / (time.perf_counter() - begun))
    return row(f"routed calls in {threads} threads", "calls/s", statistics.median(rates))


def _tasks(router: Router, rounds: int, number: int, tasks: int = 100) -> Row:
    async def work() -> None:
        for _ in range(number // tasks or 1):
            await router.ainvoke(REQUEST)

    async def everybody() -> None:
        await asyncio.gather(*(work() for _ in range(tasks)))

    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        asyncio.run(everybody())
        rates.append((number // tasks or 1) * tasks / (time.perf_counter() - begun))
    return row(f"routed calls in {tasks} asyncio tasks", "calls/s", statistics.median(rates))
