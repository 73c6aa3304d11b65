"""Single-flight: identical requests at the same time are one request, whose events all of them read.

A `Flight` is what is under way: the first caller (its leader) starts it, those who come later join, from any thread and
any event loop. It belongs to nobody: whoever leaves, it goes on as long as one reader is there, and ends with the last.
How it is driven depends on who started it:

* in a thread, its leader pulls the events itself: all of them in one go where it wants a whole answer, else one by one
  as it reads. As soon as somebody joins such a reader, a thread of the stock takes over, so that a leader who reads
  slowly, or not at all, keeps nobody waiting.
* on an event loop, a task of its own pulls them from the start: a leader that is cancelled would take its await along.

Joined readers get each event as it comes, or all at once when they want a whole answer. A flight that cannot go on
(its loop was closed, its thread interrupted) is `lost`, which is nobody's failure: its readers ask again.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Iterable, Sequence
from typing import Any

from shared_core.chat.events import ChatEvent

__all__ = ["Flight", "Flights"]

Waker = Callable[[], object]


class Flight:
    """One request under way. Thread-safe."""

    __slots__ = (
        "_cancel", "_context", "_detached", "_flights", "_lock", "_pump", "_readers", "_source", "_wakers", "_whole",
        "begun", "dead", "error", "events", "key", "leader", "loop", "lost", "over",
    )  # fmt: skip

    def __init__(self, flights: Flights, key: Hashable, leader: Any, whole: bool) -> None:
        self._flights = flights
        self.key = key
        self.leader = leader
        """The journal of the caller that started it."""
        self.events: list[ChatEvent] = []
        """All there were so far."""
        self.over = False
        self.error: BaseException | None = None
        self.lost = False
        """It cannot go on, for no reason of the request's."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """Where its task runs, if it has one."""
        self.begun = False
        """It is driven, or has been."""
        self.dead = False
        """Its last reader has left."""
        self._whole = whole
        self._lock = flights.lock
        self._pump: threading.Lock | None = None
        self._readers = 1
        self._wakers: tuple[tuple[Waker, bool], ...] = ()
        self._source: Generator[ChatEvent, None, None] | None = None
        self._context: contextvars.Context | None = None
        self._cancel: Callable[[], object] | None = None
        self._detached = False

    # ── readers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def alone(self) -> bool:
        """Whether it is driven by threads, for one reader."""
        return self._readers == 1 and self._pump is not None

    def wake(self, waker: Waker, *, at_end: bool) -> None:
        """Call `waker` at every event, or `at_end` only; at once if it is over."""
        with self._lock:
            over = self.over
            if not over:
                self._wakers = (*self._wakers, (waker, at_end))
        if over:
            waker()

    def leave(self, waker: Waker | None) -> None:
        """A reader goes. With the last one the flight ends, if it is not over."""
        with self._lock:
            self._readers -= 1
            last = self._readers == 0 and not self.over
            if last:
                self.dead = True
                self._flights.forget(self)
            if waker is not None and self._wakers:
                self._wakers = tuple(pair for pair in self._wakers if pair[0] != waker)
            detached, cancel = self._detached, self._cancel
        if not last:
            return
        if cancel is not None:
            cancel()
        elif not detached and self._source is not None and self._pump is not None:
            with self._pump:
                self._source.close()

    # ── how it goes on ───────────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, event: ChatEvent) -> None:
        """One more event."""
        self.events.append(event)
        if self._wakers:
            self._tell()

    def _tell(self) -> None:
        for waker, at_end in self._wakers:
            if not at_end:
                waker()

    def end(self, error: BaseException | None = None, *, lost: bool = False) -> None:
        """It is over."""
        with self._lock:
            self._flights.forget(self)
            if self.over:
                return
            self.error, self.lost = error, lost
            self.over = True
            wakers, self._wakers = self._wakers, ()
        for waker, _ in wakers:
            waker()

    # ── driven by a thread ───────────────────────────────────────────────────────────────────────────────────────────

    def pull(self, source: Iterable[ChatEvent], keep: Callable[[Sequence[ChatEvent]], object] | None) -> None:
        """Its leader, who wants a whole answer, pulls all of it from `source` before reading any, and need not `leave`.
        `keep` is handed all events before it is over.

        Raises:
            BaseException: what is no `Exception`: an interrupt of this thread. The flight is lost.
        """
        self.begun = True
        events = self.events
        try:
            for event in source:
                events.append(event)
                if self._wakers:
                    self._tell()
            if keep is not None:
                keep(events)
        except Exception as error:  # noqa: BLE001  # carried to every reader, where it is raised
            self.end(error)
        except BaseException:
            self.end(lost=True)
            raise
        else:
            self.end()

    def drive(self, source: Generator[ChatEvent, None, None]) -> None:
        """It is pulled from `source` by whoever calls `advance`."""
        self.begun = True
        context = contextvars.copy_context()
        with self._lock:  # who joins now finds all of it, or nothing yet
            self._pump, self._source, self._context = threading.Lock(), source, context
            late = self._detached
        if late:
            self._take_over()

    def advance(self, seen: int) -> ChatEvent | None:
        """Pull the event after the first `seen`. None where it is there already, where a thread of its own does the
        pulling, and at the end.

        Raises:
            BaseException: what is no `Exception`: an interrupt of the thread that called. The flight is lost.
        """
        pump = self._pump
        if pump is None or self._detached:
            return None
        with pump:
            if self._goes_on(seen):
                return None
            self._step()
        events = self.events
        return events[seen] if len(events) > seen else None

    def _goes_on(self, seen: int) -> bool:
        return self.over or self._detached or len(self.events) > seen

    def _step(self) -> None:
        assert self._source is not None
        try:
            event = next(self._source)
        except StopIteration:
            self.end()
        except Exception as error:  # noqa: BLE001  # carried to every reader, where it is raised
            self.end(error)
        except BaseException:
            self.end(lost=True)
            raise
        else:
            self.publish(event)

    def detach(self) -> None:
        """Somebody has joined: from now on a thread of the stock pulls it."""
        with self._lock:
            if self._whole or self._detached or self.over or self._cancel is not None:
                return
            self._detached = True
            ready = self._source is not None
        if ready:
            self._take_over()

    def _take_over(self) -> None:
        context = self._context
        assert context is not None
        self._flights.submit(lambda: context.run(self._fly))

    def _fly(self) -> None:
        assert self._pump is not None
        with self._pump:
            while not self.over and not self.dead:
                try:
                    self._step()
                except GeneratorExit:  # its last reader has left, and had it cut off
                    return
            if not self.over and self._source is not None:
                self._source.close()

    # ── driven by a task ─────────────────────────────────────────────────────────────────────────────────────────────

    def launch(self, source: AsyncGenerator[ChatEvent, None]) -> asyncio.Task[None]:
        """It is pulled from `source` by a task of its own on the running loop."""
        self.begun = True
        loop = asyncio.get_running_loop()
        self.loop = loop
        task = loop.create_task(self._afly(source))

        def cancel() -> None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:  # the loop is closed, and the task with it
                self.end(lost=True)

        with self._lock:
            self._cancel = cancel
        return task

    async def _afly(self, source: AsyncGenerator[ChatEvent, None]) -> None:
        try:
            try:
                async for event in source:
                    self.publish(event)
            finally:
                await source.aclose()
        except Exception as error:  # noqa: BLE001  # carried to every reader, where it is raised
            self.end(error)
        except BaseException:
            self.end(lost=True)
            raise
        else:
            self.end()


class Flights:
    """What is under way in one router. `submit` runs a job in a thread of the stock."""

    def __init__(self, submit: Callable[[Callable[[], None]], None]) -> None:
        self.lock = threading.Lock()
        self.submit = submit
        self._flights: dict[Hashable, Flight] = {}
        self._process = os.getpid()

    def board(self, key: Hashable, caller: Any, *, whole: bool) -> tuple[Flight, bool]:
        """The flight of `key`, and whether the caller leads it: it must then `pull`, `drive` or `launch` it, or `end`
        it. `whole`: a caller who leads in a thread will `pull`."""
        if self._process != os.getpid():
            # A fork: what was in flight is the parent's, and some thread of it may have held the lock.
            self._process, self.lock, self._flights = os.getpid(), threading.Lock(), {}
        with self.lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = Flight(self, key, caller, whole)
                return flight, True
            flight._readers += 1
        flight.detach()
        return flight, False

    def forget(self, flight: Flight) -> None:
        """Nobody joins it any more. Call it with the lock held."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def __len__(self) -> int:
        return len(self._flights)
