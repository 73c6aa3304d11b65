"""Health checks: on demand (`Router.test_target`), and in the background (`Router(health_check=...)`).

A check goes through the target's gate like a call: where a circuit is half-open it takes the one probe there is, and is
refused where a caller has it. It has an entry in the ledger, and it counts for circuit and status, but not as a call.
What is checked when is `shared_core.resilience.health_check`; here it is done.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from typing import Any, get_args

from shared_core._books import Books
from shared_core._clock import Clock
from shared_core._driver import Driver
from shared_core._fleet import Fleet
from shared_core._forks import after_fork
from shared_core._lane import run_guarded
from shared_core.chat.events import collect
from shared_core.chat.request import ChatRequest, user
from shared_core.errors import (
    AllTargetsFailed,
    ConfigurationError,
    Disposition,
    ErrorKind,
    FallbackError,
    ProviderError,
    is_number,
)
from shared_core.resilience.admission import Outcome, Refusal
from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.deadline import Guard, Timeouts
from shared_core.resilience.health import SelfReport
from shared_core.resilience.health_check import HealthCheck, How, Standing, next_check
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.execution import Execution
from shared_core.routing.planner import Plan, Route
from shared_core.routing.policy import FlowPolicy
from shared_core.routing.relay import Relay
from shared_core.telemetry.events import TargetProbed

__all__ = ["Probes", "TargetTest", "TargetTests"]

_log = logging.getLogger("llm_fallback")
_ONCE = FlowPolicy(RetryPolicy(same_target=0, total=0, reasks=0))
_THINKING_TOKENS = 16
"""What a model that thinks is given at least: with fewer some vendors refuse the request."""
_AT_ONCE = 16
"""Targets that are tested at the same time."""
_LONGEST_SLEEP_S = 600.0


@dataclass(frozen=True, slots=True)
class TargetTest:
    """What a health check found. Times are seconds."""

    target: str
    ok: bool
    """It is well. A refusal of this very request, but not of the key, counts as well: somebody answered."""
    how: str
    """'models' (the vendor's list of models, free), 'call' (a small call) or 'report' (a local model's own); empty when
    nothing was asked, because its circuit or a lock did not let the check through."""
    latency_s: float
    error: str | None = None
    """What went wrong, in words, keys redacted."""
    kind: str | None = None
    """The kind of error."""
    circuit: CircuitState = CircuitState.CLOSED
    """Its circuit after the check."""
    cost_usd: float | None = None
    """What it cost in dollars; None is unknown."""

    def __bool__(self) -> bool:
        return self.ok

    def row(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "target": self.target,
            "ok": self.ok,
            "how": self.how or "not asked",
            "ms": round(self.latency_s * 1000, 1),
            "circuit": str(self.circuit),
            "error": "" if self.error is None else self.error.partition("\n")[0][:200],
        }

    def __str__(self) -> str:
        told = f"well ({self.how}, {self.latency_s * 1000:.0f} ms)" if self.ok else f"not well: {self.row()['error']}"
        return f"{self.target}: {told}; circuit {self.circuit}"

    def _repr_html_(self) -> str:
        return TargetTests((self,))._repr_html_()


@dataclass(frozen=True, slots=True)
class TargetTests:
    """What health checks found, one per target. Prints as a table, in a terminal and in a notebook."""

    tests: tuple[TargetTest, ...]

    @property
    def ok(self) -> bool:
        """Whether all of them are well."""
        return all(self.tests)

    def __getitem__(self, name: str) -> TargetTest:
        for test in self.tests:
            if test.target == name:
                return test
        raise KeyError(name)

    def __iter__(self) -> Iterator[TargetTest]:
        return iter(self.tests)

    def __len__(self) -> int:
        return len(self.tests)

    def __str__(self) -> str:
        return "\n".join(str(test) for test in self.tests)

    def _repr_html_(self) -> str:
        rows = [test.row() for test in self.tests]
        head = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else {"target": ""}))
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(name, value)}</td>" for name, value in row.items()) + "</tr>" for row in rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def _cell(name: str, value: Any) -> str:
    if name != "ok":
        return escape(str(value))
    return '<b style="color:#2e7d32">yes</b>' if value else '<b style="color:#c62828">no</b>'


@dataclass(slots=True)
class _Found:
    """What came of asking, before it is settled and told."""

    how: str
    latency_s: float = 0.0
    error: Exception | None = None
    cost_nano: int | None = None
    refusal: str | None = None


class Probes:
    """One router's health checks. `check` None: only on demand."""

    def __init__(
        self, clock: Clock, fleet: Fleet, driver: Driver, books: Books, prefix: str, check: HealthCheck | None
    ) -> None:
        self._clock, self._now = clock, clock.monotonic
        self._fleet, self._driver, self._books, self._prefix = fleet, driver, books, prefix
        self.check: HealthCheck | None = None
        self._settings = HealthCheck()
        self._listless: set[int] = set()  # gates of targets that have no list of models
        self._routes: dict[str, tuple[Route, Route]] = {}
        self._number = 0
        self._begun: float | None = None
        self._chances: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._closed = False
        self._anew()
        if check is not None:
            for name in check.targets or ():
                fleet.named(name)
            self.change(check)

    def _anew(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun = None
        # Not the router's: processes that were forked from one, or were given the same seed, must not check in step.
        self._chance = random.Random(int.from_bytes(os.urandom(8), "big")).random

    # ── on demand ────────────────────────────────────────────────────────────────────────────────────────────────────

    def test(self, name: str, *, how: How, timeout_s: float | None) -> TargetTest:
        """Check one target now, sync."""
        return self._test(self._fleet.named(name), how, timeout_s, background=False)

    async def atest(self, name: str, *, how: How, timeout_s: float | None) -> TargetTest:
        """The same, async."""
        return await self._atest(self._fleet.named(name), how, timeout_s)

    def test_all(self, *, how: How, timeout_s: float | None) -> TargetTests:
        """Check every target now, at the same time."""
        routes = self._fleet.routes
        if len(routes) == 1:
            return TargetTests((self._test(routes[0], how, timeout_s, background=False),))
        with ThreadPoolExecutor(min(_AT_ONCE, len(routes)), thread_name_prefix="llm-fallback-test") as pool:
            return TargetTests(tuple(pool.map(lambda r: self._test(r, how, timeout_s, background=False), routes)))

    async def atest_all(self, *, how: How, timeout_s: float | None) -> TargetTests:
        """The same, async."""
        return TargetTests(tuple(await asyncio.gather(*(self._atest(r, how, timeout_s) for r in self._fleet.routes))))

    # ── in the background ────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to check in the background, if that is wanted and not yet so. Costs nanoseconds when it is."""
        if self._thread is None and self.check is not None and not self._closed:
            with self._lock:
                if self._thread is None:
                    self._begin()
                    self._thread = threading.Thread(
                        target=_watch, args=(weakref.ref(self, _waker(self._wake)), self._wake), daemon=True
                    )
                    self._thread.name = "llm-fallback-health"
                    self._thread.start()

    def change(self, check: HealthCheck | None) -> None:
        """Check like this in the background from now on, or not at all."""
        if check is not None and self._books.on_change is None:
            after_fork(self._anew)
            self._books.on_change = self._nudge
        self.check, self._settings = check, check or HealthCheck()
        self._nudge()

    def _begin(self) -> float:
        if self._begun is None:
            self._begun = self._now()
        return self._begun

    def _nudge(self) -> None:
        """Something has changed: look again when the next check is due."""
        self._wake.set()

    def close(self) -> None:
        """End the thread; a check in flight ends with its connection."""
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(0.2)

    def tick(self) -> float:
        """Make the checks that are due, one after another; returns seconds until the next, `inf` if none will be."""
        check, begun = self.check, self._begin()
        if check is None:
            return math.inf
        soonest = math.inf
        for route in self._fleet.routes:
            if not route.target.enabled or (check.targets is not None and route.name not in check.targets):
                continue
            due = max(self._due(check, route, begun), self._not_before.get(route.name, -math.inf))
            if due <= self._now() and not self._closed:
                asked = self._quietly(route)
                self._chances[route.name] = self._chance()
                # Where nothing was asked (its rates are used up, say) it is soon due again, but not at once.
                due = self._not_before[route.name] = self._now() + (0.01 if asked else min(1.0, check.interval_s))
                due = max(self._due(check, route, begun), due)
            soonest = min(soonest, due)
        return soonest - self._now()

    def _due(self, check: HealthCheck, route: Route, begun: float) -> float:
        chance = self._chances.setdefault(route.name, self._chance())
        return next_check(check, standing(route, self._now()), begun, chance)

    def _quietly(self, route: Route) -> bool:
        """Check one target; whether it was asked."""
        try:
            return bool(self._test(route, self._settings.how, None, background=True).how)
        except ConfigurationError:
            return False  # it has no list, and only lists are to be read
        except Exception:  # noqa: BLE001  # a bug of a provider's: it is logged, and the other targets are still checked
            if not self._closed:
                _log.exception("the health check of %s failed", route.name)
            route.gate.checked(self._now(), ok=False)
            return True

    # ── one check ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _way(self, route: Route, how: How) -> str:
        """How to check: by the target's own report, its vendor's list, or a call."""
        if how not in get_args(How):
            raise ConfigurationError(f"how must be one of {', '.join(get_args(How))}, not {how!r}")
        if how != "auto":
            return how
        if not clear(route):
            return "call"  # calls have failed, and only a call can show that they work again
        if getattr(route.provider, "report", None) is not None:
            return "report"
        pings = getattr(route.provider, "ping", None) is not None
        return "models" if pings and id(route.gate) not in self._listless else "call"

    def _test(self, route: Route, how: How, timeout_s: float | None, *, background: bool) -> TargetTest:
        route, timeout = self._apart(route, timeout_s)
        gate = route.gate
        if not background:
            gate.hasten(self._now())
        way = self._way(route, how)
        gate.checking(1)
        found: _Found | None = None
        try:
            if way == "report":
                found = self._reported(route)
            if way == "models":
                found = self._listed(route, timeout)
                if found is None:
                    if how == "models":
                        raise _no_list(route)
                    way = "call"
            if way == "call":
                found = self._called(route)
        finally:
            gate.checking(-1)
        assert found is not None
        return self._told(route, found, background=background)

    async def _atest(self, route: Route, how: How, timeout_s: float | None) -> TargetTest:
        route, timeout = self._apart(route, timeout_s)
        gate = route.gate
        gate.hasten(self._now())
        way = self._way(route, how)
        gate.checking(1)
        found: _Found | None = None
        try:
            if way == "report":
                found = self._reported(route)
            if way == "models":
                found = await self._alisted(route, timeout)
                if found is None:
                    if how == "models":
                        raise _no_list(route)
                    way = "call"
            if way == "call":
                found = await self._acalled(route)
        finally:
            gate.checking(-1)
        assert found is not None
        return self._told(route, found, background=False)

    def _apart(self, route: Route, timeout_s: float | None) -> tuple[Route, float]:
        """The target on a route of its own, whose limits are those of a check."""
        timeout = self._settings.timeout_s if timeout_s is None else timeout_s
        if not is_number(timeout, above=0):
            raise ConfigurationError(f"timeout_s must be a positive number of seconds, not {timeout!r}")
        known = self._routes.get(route.name)
        if known is not None and known[0] is route and known[1].timeouts.attempt == timeout:
            return known[1], timeout
        limits = Timeouts(min(timeout, route.timeouts.connect), timeout, timeout, timeout, timeout, 2 * timeout + 1)
        mine = replace(route, timeouts=limits, retry=_ONCE.retry)
        self._routes[route.name] = (route, mine)
        return mine, timeout

    def _reported(self, route: Route) -> _Found:
        provider: Any = route.provider
        report: SelfReport = provider.report()
        error = None if report.unhealthy is None else ProviderError.of(ErrorKind.TRANSIENT, report.unhealthy)
        route.gate.checked(self._now(), ok=error is None)
        return _Found("report", error=error, cost_nano=0)

    def _admitted(self, route: Route, timeout: float) -> Any:
        granted = route.gate.admit(self._now(), timeout, self._chance())
        return _Found("", refusal=granted.reason) if isinstance(granted, Refusal) else granted

    def _listed(self, route: Route, timeout: float) -> _Found | None:
        """Read the vendor's list; None if it has none."""
        provider: Any = route.provider
        if not hasattr(provider, "ping"):
            return None
        _loaded(provider)
        granted = self._admitted(route, timeout)
        if isinstance(granted, _Found):
            return granted
        guard = self._guard(route, timeout)
        try:
            if provider.interruptible:
                known = provider.ping(guard)
            else:
                (known,) = run_guarded(lambda: iter((provider.ping(guard),)), guard)
        except ProviderError as error:
            return self._settled(route, granted, guard, error)
        except BaseException:
            route.gate.settle(granted, Outcome(cancelled=True, probe="models"), self._now())
            raise
        if known:
            return self._settled(route, granted, guard, None)
        self._without(route, granted)
        return None

    async def _alisted(self, route: Route, timeout: float) -> _Found | None:
        provider: Any = route.provider
        if (aping := getattr(provider, "aping", None)) is None:
            return None
        if (aload := getattr(provider, "aload", None)) is not None:
            await aload()
        granted = self._admitted(route, timeout)
        if isinstance(granted, _Found):
            return granted
        guard = self._guard(route, timeout)
        try:
            async with asyncio.timeout(timeout):
                known = await aping(guard)
        except TimeoutError:
            return self._settled(
                route, granted, guard, ProviderError.of(ErrorKind.TIMEOUT, f"silent for {timeout:g} s")
            )
        except ProviderError as error:
            return self._settled(route, granted, guard, error)
        except BaseException:
            route.gate.settle(granted, Outcome(cancelled=True, probe="models"), self._now())
            raise
        if known:
            return self._settled(route, granted, guard, None)
        self._without(route, granted)
        return None

    def _guard(self, route: Route, timeout: float) -> Guard:
        return Guard(self._now, streaming=False, first_s=timeout, connect_s=route.timeouts.connect)

    def _without(self, route: Route, granted: Any) -> None:
        self._listless.add(id(route.gate))
        route.gate.settle(granted, Outcome(cancelled=True, probe="models"), self._now())

    def _settled(self, route: Route, granted: Any, guard: Guard, error: ProviderError | None) -> _Found:
        now = self._now()
        if error is not None:
            error.target = route.name
        outcome = Outcome(error, latency_s=now - guard.started, probe="models")
        changes = route.gate.settle(granted, outcome, now, self._chance())
        self._books.probed(self._next_id(), route, outcome)
        self._books.tell_changes("", route.gate, changes)
        return _Found("models", outcome.latency_s, error, 0)

    def _opened(self, route: Route) -> tuple[Execution, Plan, Relay]:
        settings = self._settings
        thinks = route.capabilities.reasoning
        most = max(settings.max_tokens, _THINKING_TOKENS) if thinks else settings.max_tokens
        request = ChatRequest((user(settings.query),), max_tokens=most)
        now = self._now()
        execution = Execution(self._next_id(), request, now, now + route.timeouts.total, primary=route.name, probe=True)
        return execution, Plan((route,), policy=_ONCE), Relay(streaming=False, request=execution.id)

    def _called(self, route: Route) -> _Found:
        if (refusal := route.gate.peek(self._now())) is not None:
            return _Found("", refusal=refusal.reason)  # the flow would wait for it
        execution, chosen, relay = self._opened(route)
        try:
            collect(self._driver.run(execution, chosen, relay))
        except AllTargetsFailed as failure:
            return self._judged(execution, failure)
        return self._judged(execution, None)

    async def _acalled(self, route: Route) -> _Found:
        if (refusal := route.gate.peek(self._now())) is not None:
            return _Found("", refusal=refusal.reason)
        execution, chosen, relay = self._opened(route)
        try:
            collect([event async for event in self._driver.arun(execution, chosen, relay)])
        except AllTargetsFailed as failure:
            return self._judged(execution, failure)
        return self._judged(execution, None)

    @staticmethod
    def _judged(execution: Execution, failure: FallbackError | None) -> _Found:
        if not execution.attempts:
            return _Found("", refusal="; ".join(skip.reason for skip in execution.skips) or str(failure))
        attempt = execution.attempts[-1]
        error = attempt.error if isinstance(attempt.error, Exception) else None
        return _Found("call", attempt.duration_s or 0.0, error, attempt.cost_nano)

    def _told(self, route: Route, found: _Found, *, background: bool) -> TargetTest:
        error = found.error
        ok = found.refusal is None and (error is None or _answered(error))
        kind = str(error.kind) if isinstance(error, ProviderError) else None if error is None else type(error).__name__
        test = TargetTest(
            route.name,
            ok,
            found.how,
            found.latency_s,
            found.refusal or (None if error is None else str(error)),
            kind,
            route.gate.state,
            None if found.cost_nano is None else found.cost_nano / 1e9,
        )
        gate, events = route.gate, self._books.events
        if not background or found.refusal is None:  # else a caller was faster: nothing was checked
            events.emit(
                TargetProbed(
                    "", self._clock.time(), test.target, test.ok, test.how, test.latency_s, test.kind, background
                )
            )
        if gate.news:
            self._books.tell_changes("", gate)
        return test

    def _next_id(self) -> str:
        with self._lock:
            self._number += 1
            return f"{self._prefix}-probe-{self._number}"


def clear(route: Route) -> bool:
    """Whether its circuits are closed and nothing is locked."""
    gate = route.gate
    return gate.state in (CircuitState.CLOSED, CircuitState.DISABLED) and not gate.lock.until and not gate.account.until


def standing(route: Route, now: float) -> Standing:
    """How a target stands, as far as its next check goes."""
    gate = route.gate
    refusal, health = gate.peek(now), gate.health
    probe = health.last_probe
    heard = max((at for at in (health.last_result_at, probe and probe[0]) if at is not None), default=None)
    return Standing(
        clear(route),
        refusal is not None,
        None if refusal is None else refusal.retry_at,
        heard,
        probe is not None and not probe[1] and heard == probe[0],
    )


def _answered(error: Exception) -> bool:
    """Whether an error shows that the target is well: it objected to this very request."""
    return isinstance(error, ProviderError) and error.disposition in (Disposition.FAIL, Disposition.INCAPABLE)


def _loaded(provider: Any) -> None:
    load: Callable[[], None] | None = getattr(provider, "load", None)
    if load is not None:
        load()


def _no_list(route: Route) -> ConfigurationError:
    return ConfigurationError(f"target {route.name!r} has no list of models to read\nhint: use how='call'")


def _waker(wake: threading.Event) -> Callable[[Any], None]:
    return lambda _: wake.set()


def _watch(ref: weakref.ref[Probes], wake: threading.Event) -> None:
    """The thread: it holds its router only while it checks, so that one that was forgotten takes its thread along."""
    while (probes := ref()) is not None and not probes._closed:
        wait = max(0.01, min(probes.tick(), _LONGEST_SLEEP_S))
        del probes
        wake.wait(wait)
        wake.clear()
