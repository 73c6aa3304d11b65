"""The four faces over a router's cache: look, join an identical request in flight, ask, keep; and the last resorts.

What is done in which order is decided once, in `Cached._steps`, a generator that yields what it needs (a look into the
store, an answer to be had) and is sent what came of it. `invoke`, `run`, `ainvoke` and `arun` perform these steps, sync
and async. Routers without a cache, single-flight and default answer never come here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from shared_core._clock import Clock
from shared_core._followers import LOST, AsyncWaker, Reading, Unfit, running_loop
from shared_core._identity import identity_of
from shared_core._kept_books import KeptBooks, Show
from shared_core._lane import in_thread
from shared_core._last_resort import DefaultAnswer, LastResort
from shared_core.cache.decide import may_keep, may_rescue, may_use_default, servable
from shared_core.cache.entry import Kept, Tape, events_of_kept
from shared_core.cache.flight import Flight, Flights
from shared_core.cache.keys import Unkeyable, digest, form, native_form, request_form
from shared_core.cache.response_cache import Counted, Found, ResponseCache
from shared_core.chat.events import Answer, ChatEvent, Finished, TextDelta, collect
from shared_core.errors import (
    FallbackError,
)
from shared_core.routing.execution import Execution
from shared_core.routing.planner import Plan, Route

if TYPE_CHECKING:
    from shared_core._books import Books
    from shared_core._driver import Driver
    from shared_core.cache.response_cache import CacheLike
    from shared_core.routing.relay import Relay

__all__ = ["Cached"]

T = TypeVar("T")
_log = logging.getLogger("llm_fallback.cache")

_ROTATING = frozenset({"round_robin", "weighted", "performance"})
"""Strategies under which it is all the same which of the targets answers."""


class Look(NamedTuple):
    """Is there an answer under one of these keys? Report: `Found`, or None."""

    keys: Iterable[bytes]
    stale: bool


class Ask(NamedTuple):
    """Ask the targets, as the leader of `flight` if there is one. Report: None when answered, else why not."""

    asked: _Asked
    flight: Flight | None


class Follow(NamedTuple):
    """Read what another caller's request brings. Report: None when answered, `LOST`, or why not."""

    flight: Flight


class Learn(NamedTuple):
    """Find out what tells these targets' answers from others': it may mean to read a file."""

    routes: Sequence[Route]
    model: str | None


class Default(NamedTuple):
    """Call the user's hook. Report: its answer, or None."""

    error: FallbackError


Step = Learn | Look | Show | Ask | Follow | Default
Report = Found | BaseException | Kept | None


@dataclass(slots=True)
class _Asked:
    """One request, as the cache sees it."""

    execution: Execution
    plan: Plan
    relay: Relay
    base: bytes | None
    """The digest of what the request says; None when it cannot be told by value."""
    tenant: str | None
    model: str | None
    """The model that takes the place of a target's own."""
    reads: bool
    keeps: bool
    native: bytes | None = None
    keys: dict[Route, bytes | None] = field(default_factory=dict)


class Cached:
    """Performs the requests of one router that has a cache, single-flight or a default answer."""

    def __init__(
        self,
        cache: ResponseCache | None,
        *,
        single_flight: bool,
        default_answer: DefaultAnswer | None,
        driver: Driver,
        books: Books,
        clock: Clock,
    ) -> None:
        self.cache = cache
        self._default = None if default_answer is None else LastResort(default_answer, clock.monotonic)
        self._kept_books = KeptBooks(cache, books, clock)
        self._driver, self._books, self._clock = driver, books, clock
        self.now = clock.monotonic
        self._flights = Flights(in_thread) if single_flight else None
        self._pace, self._chunk, self._instant = 0.0, None, True
        self._when: Callable[[], float] = clock.monotonic
        if cache is not None:
            self._pace, self._chunk, self._instant = cache.pace, cache.chunk, cache.store.instant
            self._when = clock.time if cache.store.persistent else clock.monotonic
        self._identities: dict[tuple[Route, str | None], bytes | None] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._pool_of = 0

    @classmethod
    def of(
        cls,
        cache: CacheLike,
        single_flight: bool | None,
        default_answer: DefaultAnswer | None,
        driver: Driver,
        books: Books,
        clock: Clock,
    ) -> Cached | None:
        """What a router with these options needs; None if that is nothing.

        Raises:
            ConfigurationError: an option of the cache is wrong, or the default answer cannot be called.
        """
        kept = ResponseCache.of(cache)
        shares = (kept is not None and kept.single_flight) if single_flight is None else bool(single_flight)
        if kept is None and not shares and default_answer is None:
            return None
        return cls(kept, single_flight=shares, default_answer=default_answer, driver=driver, books=books, clock=clock)

    def close(self) -> None:
        """Let go of the store's file and threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        if self.cache is not None:
            self.cache.close()

    # ── what is done in which order ──────────────────────────────────────────────────────────────────────────────────

    def _steps(self, asked: _Asked) -> Generator[Step, Report, FallbackError | None]:
        """Returns None when the request is answered, else the error for its caller."""
        execution, plan = asked.execution, asked.plan
        execution.held = True  # a failure is told here, if it is one in the end
        flights = None if asked.base is None else self._flights
        if asked.keeps:
            execution.cache = "miss" if asked.reads else "refresh"
            new = [route for route in plan.routes if (route, asked.model) not in self._identities]
            if new:
                yield Learn(new, asked.model)
        alone = False
        counted = False
        while True:
            if asked.reads and (yield from self._look(asked, plan.routes)):
                return None
            if asked.keeps and not counted:
                counted = True
                self._count("misses" if asked.reads else "refreshed")
            failure: Report
            if flights is None:
                failure = yield Ask(asked, None)
            else:
                flight, leads = flights.board(self._flight_key(asked, alone=alone), execution)
                if leads and asked.reads:
                    # Somebody may have kept it between our look and now. Without this, a thousand at once were two.
                    try:
                        if (yield from self._look(asked, plan.routes, flight=flight)):
                            return None
                    except BaseException:
                        flight.end(lost=True)
                        raise
                failure = (yield Ask(asked, flight)) if leads else (yield Follow(flight))
                if failure is LOST or isinstance(failure, Unfit):
                    if self.now() < execution.deadline:
                        alone = alone or failure is not LOST
                        continue
                    failure = self._kept_books.late(execution, "")
            if failure is None:
                return None
            if isinstance(failure, FallbackError):
                return (yield from self._last_resorts(asked, failure))
            assert isinstance(failure, BaseException)
            raise failure

    def _look(
        self, asked: _Asked, routes: Sequence[Route], *, stale: bool = False, flight: Flight | None = None
    ) -> Generator[Step, Report, bool]:
        """Show what is kept of the targets that would be asked now, if there is anything; with `stale`, of any of them
        and also past its time. Those who have joined `flight` meanwhile are sent to look for themselves.
        """
        looked: list[Route] = []

        def keys() -> Iterator[bytes]:
            # Whether a target refuses is asked only once it turns out that nothing is kept of it.
            now = self.now()
            for route in routes if stale else servable(routes, lambda route: route.gate.peek(now) is not None):
                key = self._key(asked, route)
                if key is not None:
                    looked.append(route)
                    yield key

        found = yield Look(keys(), stale)
        if found is None:
            return False
        assert isinstance(found, Found)
        route = looked[-1]
        check = asked.execution.request.check
        if check is not None and check(found.kept.answer(route.name, {})) is not None:
            return False  # it passed somebody else's check
        if flight is not None:
            flight.end(lost=True)
        yield Show(found.kept, route.name, route.provider.name, "stale" if found.stale else "hit", found.age_s)
        return True

    def _last_resorts(self, asked: _Asked, failure: FallbackError) -> Generator[Step, Report, FallbackError | None]:
        """A kept answer of anybody in the plan, past its time if that is allowed; then the user's own answer."""
        execution = asked.execution
        if asked.reads and may_rescue(failure) and (yield from self._look(asked, asked.plan.routes, stale=True)):
            return None
        if self._default is not None and may_use_default(failure):
            kept = yield Default(failure)
            if isinstance(kept, Kept):
                yield Show(kept, None, None, "default", None)
                return None
        execution.held = False
        self._books.failed(execution, failure)
        return failure

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _asked(self, execution: Execution, plan: Plan, relay: Relay) -> _Asked:
        request, cache = execution.request, self.cache
        use = request.cache
        if use is False or (cache is None and self._flights is None):
            execution.cache = "off"
            return _Asked(execution, plan, relay, None, None, None, False, False)
        tenant: str | None = None
        try:
            if cache is not None and cache.tenant is not None:
                tenant = cache.tenant if isinstance(cache.tenant, str) else cache.tenant(request)
                if tenant is None:
                    raise Unkeyable("nobody says whose request this is")
            base = digest(request_form(request))
        except (Unkeyable, RecursionError) as error:
            execution.cache = "uncacheable"
            self._count("uncacheable")
            _log.debug("request %s is not cached: %s", execution.id, error)
            return _Asked(execution, plan, relay, None, None, None, False, False)
        model = request.model
        if model is not None and any(model in (r.name, r.target.model) for r in self._driver.routes):
            model = None  # it names a target of ours, and says whom to ask first
        keeps = cache is not None
        return _Asked(execution, plan, relay, base, tenant, model, keeps and use != "refresh", keeps)

    def _key(self, asked: _Asked, route: Route) -> bytes | None:
        """The key of this target's answer; None when it cannot be told from others."""
        try:
            return asked.keys[route]
        except KeyError:
            pass
        key: bytes | None = None
        who = self._identities.get((route, asked.model))
        if who is not None and asked.base is not None:
            told: Any = b""
            if route.target.provider is not None:
                told = self._of_wrapped(asked, route)
            if told is not None:
                key = digest((asked.base, asked.tenant, who, told))
        asked.keys[route] = key
        return key

    def _of_wrapped(self, asked: _Asked, route: Route) -> Any:
        """What a ready provider reads of the request beside what is in it for all, and settings it may have changed."""
        native = None
        if asked.execution.request.native is not None and (native := self._native(asked)) is None:
            return None
        settings = getattr(route.provider, "settings", None)  # an optional part of the protocol
        if settings is None:
            return native or b""
        try:
            return (native, form(settings(), "settings"))
        except Exception as error:  # noqa: BLE001  # a cache is never the reason why a request fails
            _log.debug("answers of %s are not cached: %s: %s", route.name, type(error).__name__, error)
            return None

    def _native(self, asked: _Asked) -> bytes | None:
        if asked.native is None:
            try:
                asked.native = digest(native_form(asked.execution.request.native))
            except Exception as error:  # noqa: BLE001  # a cache is never the reason why a request fails
                asked.native = b""
                _log.debug("request %s is not cached for wrapped models: %s", asked.execution.id, error)
        return asked.native or None

    def _flight_key(self, asked: _Asked, *, alone: bool) -> Any:
        """What identical requests share: what is asked, and whom it may be asked of."""
        if alone:
            return asked.execution.id
        plan = asked.plan
        routes = plan.routes
        native = None
        if asked.execution.request.native is not None and any(r.target.provider is not None for r in routes):
            native = self._native(asked)
            if native is None:
                return asked.execution.id
        order: Any = routes if plan.strategy not in _ROTATING else frozenset(routes)
        return (asked.base, asked.tenant, native, plan.chain, plan.strategy, order, asked.reads)

    def _learn(self, step: Learn) -> None:
        """Note what tells each target's answers from any other's; nothing while that is not known."""
        if len(self._identities) > 4 * len(self._driver.routes) + 64:
            self._identities.clear()  # of targets that are long gone
        for route in step.routes:
            try:
                told = identity_of(route, step.model)
                who = None if told is None else digest(told)
            except (Unkeyable, RecursionError) as error:
                _log.info("answers of %s are not cached: %s", route.name, error)
                self._identities[route, step.model] = None
            except Exception as error:  # noqa: BLE001  # a cache is never the reason why a request fails
                _log.warning("answers of %s are not cached: %s: %s", route.name, type(error).__name__, error)
                self._identities[route, step.model] = None
            else:
                if who is not None:  # else its file is still to come
                    self._identities[route, step.model] = who

    def _at_once(self, asked: _Asked) -> Answer | None:
        """What is kept of the first target of the plan, where a look costs nothing: the short way of `_steps`."""
        routes, request = asked.plan.routes, asked.execution.request
        if not (asked.reads and self._instant and routes and request.check is None):
            return None
        assert self.cache is not None
        first = routes[0]
        if (first, asked.model) not in self._identities or (key := self._key(asked, first)) is None:
            return None
        found = self.cache.find((key,), self._when())
        if found is None:
            return None
        show = Show(found.kept, first.name, first.provider.name, "hit", found.age_s)
        return found.kept.answer(*self._kept_books.enter(asked.execution, show))  # type: ignore[arg-type]  # as below

    # ── performing, sync ─────────────────────────────────────────────────────────────────────────────────────────────

    def invoke(self, execution: Execution, plan: Plan, relay: Relay) -> Answer:
        """The whole answer."""
        asked = self._asked(execution, plan, relay)
        if (answer := self._at_once(asked)) is not None:
            return answer
        steps = self._steps(asked)
        step = next(steps)
        if type(step) is Learn:
            self._learn(step)
            step = steps.send(None)
        if type(step) is Look:
            step = steps.send(self._found(step))
            if type(step) is Show:
                steps.close()
                return step.kept.answer(*self._kept_books.enter(execution, step))  # type: ignore[arg-type]  # see `KeptBooks.enter`
        return collect(self._run(execution, plan, relay, steps, step))

    def run(self, execution: Execution, plan: Plan, relay: Relay) -> Generator[ChatEvent, None, None]:
        """The answer as it comes."""
        steps = self._steps(self._asked(execution, plan, relay))
        yield from self._run(execution, plan, relay, steps, None)

    def _run(
        self,
        execution: Execution,
        plan: Plan,
        relay: Relay,
        steps: Generator[Step, Report, FallbackError | None],
        step: Step | None,
    ) -> Generator[ChatEvent, None, None]:
        report: Report = None
        failure: FallbackError | None = None
        try:
            while True:
                if step is None:
                    try:
                        step = steps.send(report)
                    except StopIteration as stop:
                        failure = stop.value
                        break
                match step:
                    case Learn():
                        self._learn(step)
                        report = None
                    case Look():
                        report = self._found(step)
                    case Show():
                        for event, wait in self._replay(execution, step):
                            if wait:
                                self._clock.sleep(wait)
                            yield event
                        report = None
                    case Ask():
                        report = yield from self._ask(step.asked, step.flight)
                    case Follow():
                        report = yield from self._follow(execution, step.flight)
                    case Default():
                        assert self._default is not None
                        report = self._default.call(execution, step.error)
                step = None
        finally:
            steps.close()
        if failure is not None:
            raise failure

    def _ask(self, asked: _Asked, flight: Flight | None) -> Generator[ChatEvent, None, BaseException | None]:
        source = self._tapped(asked)
        if flight is None:
            try:
                yield from source
            except FallbackError as error:
                return error
            return None
        flight.drive(source)
        waker = threading.Event()
        woken = False
        at = 0
        try:
            while True:
                if at < len(flight.events):
                    event = flight.events[at]
                    at += 1
                    yield event
                elif flight.over:
                    if at == len(flight.events):
                        return self._ended(asked.execution, flight, at)
                elif not flight.detached:
                    flight.advance(at)
                else:
                    if not woken:
                        woken = True
                        flight.wake(waker.set, at_end=False)
                    waker.wait()
                    waker.clear()
        finally:
            flight.leave(waker.set)

    def _follow(self, execution: Execution, flight: Flight) -> Generator[ChatEvent, None, BaseException | None]:
        reading = Reading(self._kept_books, execution, flight)
        waker = threading.Event()
        left = False
        try:
            if flight.loop is not None and flight.loop is running_loop():
                return Unfit("the one in flight cannot go on while this call blocks its event loop")
            flight.wake(waker.set, at_end=reading.whole)
            while True:
                yield from reading.news()
                if reading.ended:
                    return reading.report
                waker.wait(self._patience(execution))
                waker.clear()
                reading.check_deadline()
        except GeneratorExit:
            left = True
            raise
        finally:
            flight.leave(waker.set)
            if left:
                self._kept_books.left(execution, "abandoned")

    def _found(self, step: Look) -> Found | None:
        assert self.cache is not None
        return self.cache.find(step.keys, self._when(), stale=step.stale)

    def _tapped(self, asked: _Asked) -> Generator[ChatEvent, None, None]:
        """What the targets answer; kept when it is whole."""
        events = self._driver.run(asked.execution, asked.plan, asked.relay)
        if not asked.keeps:
            yield from events
            return
        tape = Tape()
        feed = tape.feed
        for event in events:
            if type(event) is not Finished:
                feed(event)
            elif (keep := self._worth(asked, tape, event)) is not None:
                keep()
            yield event

    # ── performing, async ────────────────────────────────────────────────────────────────────────────────────────────

    async def ainvoke(self, execution: Execution, plan: Plan, relay: Relay) -> Answer:
        """The whole answer, async; the twin of `invoke`."""
        asked = self._asked(execution, plan, relay)
        if (answer := self._at_once(asked)) is not None:
            return answer
        steps = self._steps(asked)
        step = next(steps)
        if type(step) is Learn:
            await asyncio.to_thread(self._learn, step)
            step = steps.send(None)
        if type(step) is Look:
            step = steps.send(self._found(step) if self._instant else await self._afound(step))
            if type(step) is Show:
                steps.close()
                return step.kept.answer(*self._kept_books.enter(execution, step))  # type: ignore[arg-type]  # see `KeptBooks.enter`
        events = self._arun(execution, plan, relay, steps, step)
        return collect([event async for event in events])

    async def arun(self, execution: Execution, plan: Plan, relay: Relay) -> AsyncGenerator[ChatEvent, None]:
        """The answer as it comes, async; the twin of `run`."""
        events = self._arun(execution, plan, relay, self._steps(self._asked(execution, plan, relay)), None)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def _arun(
        self,
        execution: Execution,
        plan: Plan,
        relay: Relay,
        steps: Generator[Step, Report, FallbackError | None],
        step: Step | None,
    ) -> AsyncGenerator[ChatEvent, None]:
        report: Report = None
        failure: FallbackError | None = None
        try:
            while True:
                if step is None:
                    try:
                        step = steps.send(report)
                    except StopIteration as stop:
                        failure = stop.value
                        break
                match step:
                    case Learn():
                        await asyncio.to_thread(self._learn, step)
                        report = None
                    case Look():
                        report = self._found(step) if self._instant else await self._afound(step)
                    case Show():
                        for event, wait in self._replay(execution, step):
                            if wait:
                                await self._clock.asleep(wait)
                            yield event
                        report = None
                    case Ask() | Follow():
                        ended = _Ended()
                        if isinstance(step, Follow):
                            events = self._afollow(execution, step.flight, ended)
                        else:
                            events = self._aask(step.asked, step.flight, ended)
                        try:
                            async for event in events:
                                yield event
                        finally:
                            await events.aclose()
                        report = ended.report
                    case Default():
                        assert self._default is not None
                        report = await self._default.acall(execution, step.error)
                step = None
        finally:
            steps.close()
        if failure is not None:
            raise failure

    async def _aask(self, asked: _Asked, flight: Flight | None, ended: _Ended) -> AsyncGenerator[ChatEvent, None]:
        source = self._atapped(asked)
        if flight is None:
            try:
                async for event in source:
                    yield event
            except FallbackError as error:
                ended.report = error
            finally:
                await source.aclose()
            return
        task = flight.launch(source)
        waker = AsyncWaker()
        at = 0
        try:
            flight.wake(waker.set, at_end=not asked.execution.request.streaming)
            while True:
                while at < len(flight.events):
                    event = flight.events[at]
                    at += 1
                    yield event
                if flight.over:
                    if at == len(flight.events):
                        ended.report = self._ended(asked.execution, flight, at)
                        return
                    continue
                await waker.wait(None)
        finally:
            flight.leave(waker.set)
            if flight.dead and not task.done():
                await asyncio.wait([task])  # its connection is closed before we are gone

    async def _afollow(self, execution: Execution, flight: Flight, ended: _Ended) -> AsyncGenerator[ChatEvent, None]:
        reading = Reading(self._kept_books, execution, flight)
        waker = AsyncWaker()
        left = ""
        try:
            flight.wake(waker.set, at_end=reading.whole)
            while True:
                for event in reading.news():
                    yield event
                if reading.ended:
                    ended.report = reading.report
                    return
                await waker.wait(self._patience(execution))
                reading.check_deadline()
        except GeneratorExit:
            left = "abandoned"
            raise
        except asyncio.CancelledError:
            left = "cancelled"
            raise
        finally:
            flight.leave(waker.set)
            if left:
                self._kept_books.left(execution, left)

    async def _afound(self, step: Look) -> Found | None:
        return await self._off_loop(self._found, step)

    async def _off_loop(self, work: Callable[..., T], *given: Any) -> T:
        """Where the store is a file: a read takes microseconds, until the disk is slow or another process writes."""
        if self._pool is None or self._pool_of != os.getpid():  # a fork leaves its child a pool without threads
            self._pool, self._pool_of = ThreadPoolExecutor(2, thread_name_prefix="llm-fallback-cache"), os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)

    async def _atapped(self, asked: _Asked) -> AsyncGenerator[ChatEvent, None]:
        """What the targets answer; kept when it is whole. The twin of `_tapped`."""
        events = self._driver.arun(asked.execution, asked.plan, asked.relay)
        tape = Tape()
        feed = tape.feed
        try:
            async for event in events:
                if type(event) is not Finished:
                    if asked.keeps:
                        feed(event)
                elif asked.keeps and (keep := self._worth(asked, tape, event)) is not None:
                    if self._instant:
                        keep()
                    else:
                        await self._off_loop(keep)
                yield event
        finally:
            await events.aclose()

    # ── what comes of it ─────────────────────────────────────────────────────────────────────────────────────────────

    def _patience(self, execution: Execution) -> float:
        return max(0.0, min(execution.deadline - self.now(), threading.TIMEOUT_MAX))

    def _count(self, what: Counted) -> None:
        if self.cache is not None:
            self.cache.count(what)

    def _ended(self, execution: Execution, flight: Flight, delivered: int) -> BaseException | None:
        """How the flight ended for its leader."""
        if not flight.lost:
            return flight.error
        said = "".join(event.text for event in flight.events[:delivered] if type(event) is TextDelta)
        return self._kept_books.late(execution, said) if said else LOST

    def _worth(self, asked: _Asked, tape: Tape, last: Finished) -> Callable[[], object] | None:
        """What keeps the answer that `last` ends, if it may be kept."""
        execution, plan = asked.execution, asked.plan
        cache = self.cache
        assert cache is not None
        served = execution.served_by
        route = next((r for r in plan.routes if r.name == last.target), None)
        if route is None or served is None:
            return None
        kept = tape.kept(last, served.cost_nano)
        whole = may_keep(
            last,
            calls=len(kept.tool_calls),
            seams=len(execution.seams),
            said=bool(kept.text),
            tool_calls=cache.tool_calls,
        )
        if whole and last.native is not None:
            says_all = getattr(route.provider, "says_all", None)  # an optional part of the protocol
            whole = says_all is not None and says_all(last.native)
        key = self._key(asked, route) if whole else None
        if key is None:
            cache.count("unkept")
            return None
        return partial(cache.keep, key, kept, self._when())

    def _replay(self, execution: Execution, step: Show) -> Iterator[tuple[ChatEvent, float]]:
        """The events of an answer that is there, each with the seconds to wait before it."""
        target, facts = self._kept_books.enter(execution, step)
        request = execution.request
        last = step.kept.finished(target, facts)
        pace = self._pace if request.streaming and step.status != "default" else 0.0
        begun = False
        for event in events_of_kept(step.kept, last, chunk=self._chunk, whole=not request.streaming):
            if pace and type(event) is TextDelta:
                late = self.now() + pace >= execution.deadline
                yield event, 0.0 if late or not begun else pace
                begun = True
            else:
                yield event, 0.0


class _Ended:
    """How asking or following ended: an async generator cannot return a value."""

    __slots__ = ("report",)

    def __init__(self) -> None:
        self.report: BaseException | None = None
