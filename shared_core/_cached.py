"""The four faces over a router's cache: they perform the steps of `CacheFlow`, sync and async, and decide nothing.

Routers without a cache, single-flight and default answer never come here.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from shared_core._cache_flow import Ask, CacheFlow, Default, Follow, Learn, Look, Report
from shared_core._cache_keys import Asked, Keys
from shared_core._clock import Clock
from shared_core._kept_books import KeptBooks, Show
from shared_core._lane import in_thread
from shared_core._last_resort import DefaultAnswer, LastResort
from shared_core._readers import AsyncWaker, Reading, Unfit, running_loop
from shared_core._shelf import Shelf
from shared_core._streams import Left, Stop
from shared_core.cache.flight import Flight, Flights
from shared_core.cache.response_cache import ResponseCache
from shared_core.chat.events import Answer, ChatEvent, Finished, collect
from shared_core.errors import ConfigurationError, FallbackError
from shared_core.routing.execution import Execution
from shared_core.routing.planner import Plan

if TYPE_CHECKING:
    from shared_core._books import Books
    from shared_core._driver import Driver
    from shared_core.cache.response_cache import CacheLike
    from shared_core.chat.request import CacheUse
    from shared_core.routing.relay import Relay

__all__ = ["Cached"]

T = TypeVar("T")


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
        self._driver, self._clock = driver, clock
        self._flights = Flights(in_thread) if single_flight else None
        self._default = None if default_answer is None else LastResort(default_answer, clock.monotonic)
        self.indispensable = default_answer is not None
        """Whether also calls with `cache=False` have to come here."""
        self._kept_books = KeptBooks(cache, books, clock)
        self._keys = Keys(
            None if cache is None else cache.tenant,
            keeps=cache is not None,
            shares=single_flight,
            routes=lambda: driver.routes,
            odd=lambda: self._shelf.count("uncacheable"),
        )
        self._shelf = Shelf(cache, self._keys, clock)
        self._flow = CacheFlow(
            self._keys, self._shelf, self._flights, self._kept_books, books, defaults=default_answer is not None
        )
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
        if single_flight is not None and not isinstance(single_flight, bool):
            raise ConfigurationError(f"single_flight must be True or False, not {single_flight!r}")
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

    def _at_once(self, asked: Asked) -> Answer | None:
        """The whole answer if it is kept: the first look of the steps, and what it shows, without the others."""
        if not self._keys.unknown(asked):
            hit = self._shelf.find(asked, asked.plan.routes, False)
            if hit is not None and (show := self._shelf.fitting(asked, hit)) is not None:
                target, facts = self._kept_books.enter(asked.execution, show)
                return show.kept.answer(target or "", facts)
        return None

    def _replay(self, asked: Asked, show: Show) -> Iterator[tuple[ChatEvent, float]]:
        last = show.kept.finished(*self._kept_books.enter(asked.execution, show))
        return self._shelf.replay(asked, show, last)

    # ── sync ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def invoke(self, execution: Execution, plan: Plan, relay: Relay, use: CacheUse) -> Answer:
        """The whole answer."""
        asked = self._keys.asked(execution, plan, relay, use)
        if asked.reads and (answer := self._at_once(asked)) is not None:
            return answer
        return collect(chain.from_iterable(self._run(asked)))

    def run(
        self, execution: Execution, plan: Plan, relay: Relay, use: CacheUse, stop: Stop
    ) -> Generator[ChatEvent, None, None]:
        """The answer as it comes. `stop` lets another thread end it."""
        batches = self._run(self._keys.asked(execution, plan, relay, use), stop)
        try:
            for batch in batches:
                yield from batch
        except Left:
            return
        finally:
            batches.close()

    def _run(self, asked: Asked, stop: Stop | None = None) -> Generator[Sequence[ChatEvent], None, None]:
        execution = asked.execution
        steps = self._flow.steps(asked)
        report: Report = None
        failure: FallbackError | None = None
        try:
            while True:
                try:
                    step = steps.send(report)
                except StopIteration as end:
                    failure = end.value
                    break
                report = None
                match step:
                    case Ask(flight):
                        report = yield from self._ask(asked, flight, stop)
                    case Follow(flight):
                        report = yield from self._read(Reading(self._kept_books, execution, flight, leads=False), stop)
                    case Look():
                        report = self._shelf.find(asked, *step)
                    case Show():
                        for event, wait in self._replay(asked, step):
                            if wait:
                                self._clock.sleep(wait)
                            yield (event,)
                    case Learn():
                        self._keys.learn(*step)
                    case Default():
                        assert self._default is not None
                        report = self._default.call(execution, step.error)
        finally:
            steps.close()
        if failure is not None:
            raise failure

    def _ask(
        self, asked: Asked, flight: Flight | None, stop: Stop | None
    ) -> Generator[Sequence[ChatEvent], None, BaseException | None]:
        """What the targets answer, kept when it is whole."""
        execution = asked.execution
        source = self._driver.run(execution, asked.plan, asked.relay, stop)
        if flight is not None and not execution.request.streaming:
            flight.pull(source, partial(self._shelf.keep, asked) if asked.keeps else None)
            if flight.error is None:
                yield flight.events
            return flight.error
        if asked.keeps:
            source = self._tapped(asked, source)
        if flight is not None:
            flight.drive(source)
            return (yield from self._read(Reading(self._kept_books, execution, flight, leads=True), stop))
        try:
            for event in source:
                yield (event,)
        except FallbackError as error:
            return error
        return None

    def _tapped(self, asked: Asked, events: Generator[ChatEvent, None, None]) -> Generator[ChatEvent, None, None]:
        seen: list[ChatEvent] = []
        for event in events:
            seen.append(event)
            if type(event) is Finished:
                self._shelf.keep(asked, seen)
            yield event

    def _read(self, reading: Reading, stop: Stop | None) -> Generator[Sequence[ChatEvent], None, BaseException | None]:
        flight = reading.flight
        waker: threading.Event | None = None
        if stop is not None:
            stop.alone = flight.alone
        try:
            if not reading.leads and flight.loop is not None and flight.loop is running_loop():
                return Unfit("the one in flight cannot go on while this call blocks its event loop")
            while True:
                if stop is not None and stop.left:
                    raise Left
                if reading.leads and (event := flight.advance(reading.at)) is not None:
                    reading.at += 1
                    yield (event,)
                elif news := reading.news():
                    yield news
                elif reading.ended:
                    return reading.report
                elif waker is None:
                    waker = threading.Event()
                    flight.wake(waker.set, at_end=reading.whole)
                    if stop is not None:
                        stop.wake = waker.set
                else:
                    waker.wait(reading.patience_s)
                    waker.clear()
                    reading.check_deadline()
        except GeneratorExit:
            reading.leave("abandoned")
            raise
        finally:
            flight.leave(None if waker is None else waker.set)

    # ── async ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def ainvoke(self, execution: Execution, plan: Plan, relay: Relay, use: CacheUse) -> Answer:
        """The whole answer, async; the twin of `invoke`."""
        asked = self._keys.asked(execution, plan, relay, use)
        if asked.reads and self._shelf.instant and (answer := self._at_once(asked)) is not None:
            return answer
        return collect([event async for batch in self._arun(asked) for event in batch])

    async def arun(
        self, execution: Execution, plan: Plan, relay: Relay, use: CacheUse
    ) -> AsyncGenerator[ChatEvent, None]:
        """The answer as it comes, async; the twin of `run`."""
        batches = self._arun(self._keys.asked(execution, plan, relay, use))
        try:
            async for batch in batches:
                for event in batch:
                    yield event
        finally:
            await batches.aclose()

    async def _arun(self, asked: Asked) -> AsyncGenerator[Sequence[ChatEvent], None]:
        execution = asked.execution
        steps = self._flow.steps(asked)
        report: Report = None
        failure: FallbackError | None = None
        try:
            while True:
                try:
                    step = steps.send(report)
                except StopIteration as end:
                    failure = end.value
                    break
                report = None
                match step:
                    case Ask(None):
                        events = self._asource(asked)
                        try:
                            async for event in events:
                                yield (event,)
                        except FallbackError as error:
                            report = error
                        finally:
                            await events.aclose()
                    case Ask(Flight() as flight) | Follow(flight):
                        reading = Reading(self._kept_books, execution, flight, leads=type(step) is Ask)
                        batches = self._aread(asked, reading)
                        try:
                            async for batch in batches:
                                yield batch
                        finally:
                            await batches.aclose()
                        report = reading.report
                    case Look():
                        if self._shelf.instant:
                            report = self._shelf.find(asked, *step)
                        else:
                            report = await self._off_loop(self._shelf.find, asked, *step)
                    case Show():
                        for event, wait in self._replay(asked, step):
                            if wait:
                                await self._clock.asleep(wait)
                            yield (event,)
                    case Learn():
                        await asyncio.to_thread(self._keys.learn, *step)
                    case Default():
                        assert self._default is not None
                        report = await self._default.acall(execution, step.error)
        finally:
            steps.close()
        if failure is not None:
            raise failure

    def _asource(self, asked: Asked) -> AsyncGenerator[ChatEvent, None]:
        """What the targets answer, kept when it is whole."""
        events = self._driver.arun(asked.execution, asked.plan, asked.relay)
        return self._atapped(asked, events) if asked.keeps else events

    async def _atapped(self, asked: Asked, events: AsyncGenerator[ChatEvent, None]) -> AsyncGenerator[ChatEvent, None]:
        seen: list[ChatEvent] = []
        try:
            async for event in events:
                seen.append(event)
                if type(event) is Finished and (keep := self._shelf.worth(asked, seen)) is not None:
                    if self._shelf.instant:
                        keep()
                    else:
                        await self._off_loop(keep)
                yield event
        finally:
            await events.aclose()

    async def _aread(self, asked: Asked, reading: Reading) -> AsyncGenerator[Sequence[ChatEvent], None]:
        flight = reading.flight
        task = flight.launch(self._asource(asked)) if reading.leads else None
        waker = AsyncWaker()
        try:
            flight.wake(waker.set, at_end=reading.whole)
            while True:
                while news := reading.news():
                    yield news
                if reading.ended:
                    return
                await waker.wait(reading.patience_s)
                reading.check_deadline()
        except GeneratorExit:
            reading.leave("abandoned")
            raise
        except asyncio.CancelledError:
            reading.leave("cancelled")
            raise
        finally:
            flight.leave(waker.set)
            if task is not None and flight.dead and not task.done():
                await asyncio.wait([task])  # its connection is closed before we are gone

    async def _off_loop(self, work: Callable[..., T], *given: Any) -> T:
        """Where the store is a file: a read takes microseconds, until the disk is slow or another process writes."""
        if self._pool is None or self._pool_of != os.getpid():  # a fork leaves its child a pool without threads
            self._pool, self._pool_of = ThreadPoolExecutor(2, thread_name_prefix="llm-fallback-cache"), os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)
