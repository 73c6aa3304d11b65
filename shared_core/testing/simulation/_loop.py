"""An event loop on a virtual clock: `VirtualLoop`. Time jumps to the next timer; what is ready at once runs in an order
drawn from a seed. It has no thread, socket or selector: what was meant for a thread runs at once, a socket is refused.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import Context
from random import Random
from typing import Any, TypeVar

from shared_core.errors import FallbackError

__all__ = ["SimulatedClock", "SimulationStuck", "VirtualLoop"]

T = TypeVar("T")
_EPOCH = 1_700_000_000.0
_LIVELOCK = 1_000_000
"""So many callbacks at one instant mean that somebody waits in circles."""


class SimulationStuck(FallbackError):
    """The simulated program waits for something that can never come, or in circles without letting time pass."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs tasks in virtual time, from 0 seconds on. Nothing else of an event loop is there."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = 0
        self._cancelled = 0
        self._shuffle = Random(f"order {seed}").shuffle  # a test's chance, not a secret
        self._thread = threading.get_ident()
        self._running = False
        self._closed = False
        self.callbacks = 0
        """Callbacks that have been run."""
        self._still = 0
        self.problems: list[str] = []
        """What was reported to the loop because nobody else would have heard of it."""

    # ── what tasks, futures and timers need ──────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self.now

    def call_soon(  # type: ignore[override]  # the types of the callback's arguments are its own affair
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Run it at this instant, with whatever else is ready, in seeded order."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]  # as above
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """The same; from another thread it is refused, since its moment would be the machine's."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("a thread reached into a simulation: what it does would not repeat")
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]  # as above
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run it `delay` virtual seconds from now."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # as above
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run it at that instant."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._cancelled += 1
        if self._cancelled > 256 and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]  # the base class has a wider signature in some versions
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """A task of this loop."""
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(  # type: ignore[override]  # as above
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Do at once what was meant for a thread: it takes no virtual time, and happens at the same moment each run."""
        future: asyncio.Future[T] = asyncio.Future(loop=self)
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # it is the awaiting task's, as from a thread
            future.set_exception(error)
        return future

    def get_debug(self) -> bool:
        """Never: it would make every callback slow."""
        return False

    def is_running(self) -> bool:
        """Whether `run` is under way."""
        return self._running

    def is_closed(self) -> bool:
        """Whether it has been run."""
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody would have heard of."""
        error = context.get("exception")
        self.problems.append(f"{context.get('message', 'a problem')}: {error!r}" if error else str(context))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """The same."""
        self.call_exception_handler(context)

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, main: Coroutine[Any, Any, T], *, until: float) -> T:
        """Run until `main` has returned. Virtual time may not pass `until`.

        Raises:
            SimulationStuck: nothing is left that could wake anybody, or time would pass `until`, or stands still.
        """
        with self._as_running():
            task = self.create_task(main)
            while not task.done():
                self._step(until)
            rest = [one for one in asyncio.all_tasks(self) if one is not task]
            rest.sort(key=lambda one: (len(one.get_name()), one.get_name()))  # a set has an order of the machine's own
            for one in rest:
                one.cancel()
            while not all(one.done() for one in rest):
                self._step(until)
            for one in rest:
                if not one.cancelled() and (error := one.exception()) is not None:
                    self.problems.append(f"a task that was left behind ended with {error!r}")
        self._closed = True
        return task.result()

    def _step(self, until: float) -> None:
        """Run what is ready; where nothing is, let time pass to the next timer first."""
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
                self._cancelled = max(0, self._cancelled - 1)
            if not timers:
                raise SimulationStuck(f"at {self.now:.3f} s everybody waits, and nobody is left to wake them")
            if timers[0][0] > until:
                raise SimulationStuck(f"at {self.now:.3f} s the next thing to happen is at {timers[0][0]:.3f} s")
            if timers[0][0] > self.now:
                self.now = timers[0][0]
                self._still = self.callbacks
        if self.callbacks - self._still > _LIVELOCK:
            raise SimulationStuck(f"at {self.now:.3f} s somebody waits in circles, and time does not pass")
        now = self.now
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if timer.cancelled():
                self._cancelled = max(0, self._cancelled - 1)
            else:
                ready.append(timer)
        if len(ready) == 1:
            handle = ready.popleft()
            if not handle.cancelled():
                self.callbacks += 1
                handle._run()
            return
        batch = [handle for handle in ready if not handle.cancelled()]
        ready.clear()
        if len(batch) > 1:
            self._shuffle(batch)
        self.callbacks += len(batch)
        for handle in batch:
            if not handle.cancelled():
                handle._run()

    @contextmanager
    def _as_running(self) -> Generator[None, None, None]:
        """Stand in for the running loop, also where another one is running (in a notebook), and step back after."""
        outer = asyncio._get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=lambda _: None, finalizer=self._finalize)
        asyncio._set_running_loop(self)
        self._running = True
        try:
            yield
        finally:
            self._running = False
            asyncio._set_running_loop(outer)
            sys.set_asyncgen_hooks(*hooks)

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Somebody let go of an async generator without closing it."""
        if self._running:
            self.create_task(_closed(generator))


async def _closed(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


class SimulatedClock:
    """The clock of a router in a simulation: monotonic time is the loop's, wall time may be stepped."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.monotonic = loop.time
        self.stepped_s = 0.0
        """By how much the wall clock has been put forward so far."""

    def time(self) -> float:
        """Seconds since the epoch, as the stepped wall clock says."""
        return _EPOCH + self._loop.now + self.stepped_s

    def sleep(self, seconds: float) -> None:
        """Refused: all of a simulation is one thread.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"something blocks for {seconds} s inside a simulation; it must await")

    async def asleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        await asyncio.sleep(seconds)
