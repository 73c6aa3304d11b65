"""What reaches a target that is known to fail, counted by a real server: through an open circuit, a probe, a bad bill.

Sockets and the vendors' SDKs are real; only the router's clock is virtual, so that open times take no time.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shared_core import ChatRequest, CircuitState, RetryPolicy, Router, Target, user
from shared_core.testing import FAULTS, FaultServer, ScriptedProvider, SeenRequest, VirtualClock
from shared_core.testing.fault_server import slow, status
from tests.faults import matrix, oracle

__all__ = ["half_open", "journal_and_wire", "money", "open_circuit"]

ASK = ChatRequest((user("Hello"),))
MODEL = "gpt-4o-mini"


@contextmanager
def _sick(**options: Any) -> Iterator[tuple[FaultServer, Router, VirtualClock]]:
    """A vendor that fails, a well one behind it, and a router over both."""
    clock = VirtualClock()
    with FaultServer(default=500) as server:
        well = Target(provider=ScriptedProvider("served", name="well", model="m"), name="well")
        sick = Target(f"openai:{MODEL}", base_url=server.openai_url, api_key="sk-promises-000000", name="sick")
        router = Router([sick, well], clock=clock, seed=1, retry=RetryPolicy(base_s=0, overloaded_base_s=0), **options)
        router.warm()
        try:
            yield server, router, clock
        finally:
            router.close()


def _until_open(router: Router) -> int:
    """Call until the circuit is open. Returns how many calls that took."""
    for calls in range(1, 50):
        router.invoke(ASK)
        if router.health()["sick"].circuit is CircuitState.OPEN:
            return calls
    raise AssertionError("five failures in a row have not opened the circuit")


def _opens_at(router: Router) -> float:
    at: float | None = router._fleet.routes[0].gate.breaker.open_until
    assert at is not None
    return at


def _in_threads(callers: int, work: Callable[[], None]) -> None:
    """Everybody at the same moment."""
    barrier = threading.Barrier(callers)
    failures: list[BaseException] = []

    def caller() -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _in_tasks(router: Router, callers: int, calls: int) -> None:
    async def main() -> None:
        async def caller() -> None:
            for _ in range(calls):
                await router.ainvoke(ASK)

        await asyncio.gather(*(caller() for _ in range(callers)))

    asyncio.run(main())


def open_circuit(*, callers: int = 20, calls: int = 5, rounds: int = 1) -> dict[str, Any]:
    """Threads and tasks call through an open circuit until just before its time is over. Counts accepted connections.

    The circuit is probed between rounds, in vain, so that it is open for longer each time.
    """
    made = packets = connections = 0
    with _sick() as (server, router, clock):
        to_open = _until_open(router)
        for _ in range(rounds):
            server.clear()
            left = _opens_at(router) - clock.monotonic()

            def work() -> None:
                for _ in range(calls):
                    assert router.invoke(ASK).target == "well"

            _in_threads(callers, work)
            clock.advance(left * 0.5)
            _in_tasks(router, callers, calls)
            clock.advance(left * 0.49)
            _in_threads(callers, work)
            made += 3 * callers * calls
            packets += server.count()
            connections += server.connections
            clock.advance(left)
            router.invoke(ASK)  # the probe, in vain
    return {"calls": made, "calls_to_open": to_open, "packets": packets, "connections": connections}


def _most_at_once(requests: Sequence[SeenRequest]) -> int:
    """How many were being served at the same moment, at most."""
    edges = [(seen.received_at, 1) for seen in requests]
    edges += [(seen.finished_at, -1) for seen in requests if seen.finished_at is not None]
    at_once = most = 0
    for _, step in sorted(edges):
        at_once += step
        most = max(most, at_once)
    return most


def half_open(*, callers: int = 20, rounds: int = 2, seconds: float = 0.03) -> dict[str, Any]:
    """When the open time is over everybody calls at once, again and again; the last rounds mend it.

    A failing probe must be the only packet of its round; of two successful ones the second may follow the first.
    """
    most = 0
    per_round: list[int] = []
    with _sick() as (server, router, clock):
        _until_open(router)
        for number in range(rounds):
            clock.advance(_opens_at(router) - clock.monotonic())
            server.clear()
            server.script(MODEL, status(500, delay_s=seconds))
            if number % 2:
                _in_tasks(router, callers, 1)
            else:
                _in_threads(callers, lambda: _served_by(router))
            per_round.append(server.count())
            most = max(most, _most_at_once(server.requests))
        clock.advance(_opens_at(router) - clock.monotonic())
        server.script(MODEL, slow(seconds))
        mending = 0
        while router.health()["sick"].circuit is not CircuitState.CLOSED:
            server.clear()
            _in_tasks(router, callers, 1)
            most = max(most, _most_at_once(server.requests))
            mending += server.count()
    return {"rounds": rounds, "callers": callers, "most_at_once": most, "most_per_round": max(per_round),
            "least_per_round": min(per_round), "probes_that_closed_it": mending}  # fmt: skip


def _served_by(router: Router) -> None:
    assert router.invoke(ASK).target in ("well", "sick")


MONEY = ("billing", "payment-required", "spend-limit", "billing-inactive")
"""What vendors say when the money is gone."""


def money(bench: matrix.Bench, *, vendors: Sequence[str] = matrix.MAIN, again: int = 10) -> dict[str, Any]:
    """Every way to be out of money, at every vendor, in every way to call: one packet, and no other until the re-check.

    Where a vendor means something else by it (Gemini's rolling limit, Anthropic's hold), it is left out.
    """
    cases, wrong = 0, list[str]()
    for name in vendors:
        vendor = matrix.VENDORS[name]
        for fault in MONEY:
            if oracle.line(fault, vendor.wire).whole is not oracle.K.BILLING:
                continue
            for colour in ("sync", "async"):
                for shape in ("whole", "streamed"):
                    cases += 1
                    bench.server.clear()
                    bench.server.script(vendor.model, fault).script(vendor.reserve, "ok")
                    url, key = bench.server.url_for(vendor.wire), "sk-one-and-the-same"
                    other = Target(provider=ScriptedProvider("served", name="other", model="m"), name="other")
                    targets = [Target(f"{name}:{m}", base_url=url, api_key=key) for m in (vendor.model, vendor.reserve)]
                    router = matrix.router_of([*targets, other])
                    for _ in range(1 + again):
                        got = bench.call(router, ASK, colour, shape)  # type: ignore[arg-type]  # the literals are widened
                        if got.text != "served":
                            wrong.append(f"{name} {fault} {colour} {shape}: {got.error or got.text}")
                    sent = bench.server.count(vendor.model), bench.server.count(vendor.reserve)
                    if sent != (1, 0):
                        wrong.append(f"{name} {fault} {colour} {shape}: {sent} packets to the account")
                    for provider in router.providers[:2]:
                        bench.close(provider)
    return {"cases": cases, "calls": cases * (1 + again), "packets_per_account": 1, "wrong": wrong}


@dataclass
class _Told:
    calls: int = 0
    attempts: int = 0
    requests: int = 0
    most_over_targets: int = -10


_QUICK = [
    name
    for name, kind in FAULTS.items()
    # The journal counts what was sent; a connection that was reset while it was kept alive has not seen a request.
    if kind.place == "request" and name not in oracle.SILENT | {"status", "stale-keep-alive", "giant-headers"}
]


def journal_and_wire(bench: matrix.Bench, *, calls: int, seed: int = 1) -> dict[str, Any]:
    """Random faults at one to three vendors, in random order: what the journal says was sent is what the server saw."""
    chance = random.Random(seed)
    told, wrong = _Told(), list[str]()
    for number in range(calls):
        names = chance.sample(matrix.MAIN, chance.randint(1, 3))
        colour, shape = chance.choice(["sync", "async"]), chance.choice(["whole", "streamed"])
        bench.server.clear()
        targets = []
        for name in names:
            vendor = matrix.VENDORS[name]
            fitting = [
                fault
                for fault in _QUICK
                if vendor.wire in FAULTS[fault].wires
                and (FAULTS[fault].streamed if shape == "streamed" else FAULTS[fault].whole)
            ]
            bench.server.script(vendor.model, [chance.choice([*fitting, "ok"]) for _ in range(3)])
            targets.append(Target(provider=bench.provider(vendor, vendor.model), name=name))
        router = matrix.router_of(targets, 2.0)
        bench.call(router, ASK, colour, shape)  # type: ignore[arg-type]  # the literals are widened
        attempts = router.last.attempts if router.last else []
        told.calls += 1
        told.attempts += len(attempts)
        told.requests += bench.server.count()
        told.most_over_targets = max(told.most_over_targets, bench.server.count() - len(names))
        for name in names:
            sent = bench.server.count(matrix.VENDORS[name].model)
            tried = sum(a.target == name for a in attempts)
            if sent != tried:
                steps = [seen.step for seen in bench.server.requests]
                wrong.append(
                    f"call {number}, seed {seed}: {name} got {sent} requests, the journal has {tried}: {steps}"
                )
        if bench.server.count() > len(names) + 2:
            wrong.append(f"call {number}, seed {seed}: {bench.server.count()} requests to {len(names)} targets")
    return {
        "calls": told.calls,
        "attempts": told.attempts,
        "requests": told.requests,
        "most_beyond_one_per_target": told.most_over_targets,
        "wrong": wrong,
    }
