"""Those who read along: what a follower of a flight may have now, how it ends for it, and how it is woken."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from shared_core.cache.flight import Flight
from shared_core.chat.events import ChatEvent, Finished, TextDelta, collect
from shared_core.errors import AllTargetsFailed, DeadlineExceeded, FallbackError, StreamBroken
from shared_core.routing.execution import Execution

if TYPE_CHECKING:
    from shared_core._kept_books import KeptBooks

__all__ = ["LOST", "AsyncWaker", "Reading", "Unfit", "running_loop"]


class _Lost(Exception):
    """The flight cannot go on, for no reason of the request's."""


LOST = _Lost()
"""A follower asks for itself."""


class Unfit(Exception):
    """The leader's answer does not pass the follower's own check."""


class Reading:
    """A follower's reading of a flight. No I/O; both faces drive it."""

    def __init__(self, books: KeptBooks, execution: Execution, flight: Flight) -> None:
        self._books, self._execution, self._flight = books, execution, flight
        request = execution.request
        self._check = request.check
        self.whole = not request.streaming or self._check is not None
        """It is handed over at the end, once it has passed."""
        self._at = 0
        self._delivered: list[str] = []
        self.ended = False
        self.report: BaseException | None = None

    def news(self) -> Iterator[ChatEvent]:
        """What may be handed over now."""
        flight = self._flight
        if self.ended or (self.whole and not flight.over):
            return
        over = flight.over  # before the events are counted: what comes after it is nothing
        events = flight.events
        if self.whole and self._check is not None and flight.error is None and not flight.lost:
            fault = self._check(collect(events))
            if fault is not None:
                self._end(Unfit(fault))
                return
        if not (self.whole and (flight.lost or flight.error is not None)):
            while self._at < len(events):
                event = events[self._at]
                self._at += 1
                if type(event) is TextDelta:
                    self._delivered.append(event.text)
                elif type(event) is Finished:
                    event = self._books.joined(self._execution, event, flight.leader)
                yield event
        if over:
            self._end(self._outcome())

    def _outcome(self) -> BaseException | None:
        """What it comes to. `LOST` lets the follower ask for itself: what failed was the leader's time, or a stream of
        which this one has seen nothing."""
        flight = self._flight
        error = flight.error
        if flight.lost or isinstance(error, (DeadlineExceeded, StreamBroken)):
            if not self._delivered:
                return LOST
            if error is None:
                return self._books.late(self._execution, "".join(self._delivered))
        return None if error is None else _again(error)

    def check_deadline(self) -> None:
        """End when the follower's own time is up, whoever else goes on."""
        if not self.ended and not self._flight.over and self._books.now() >= self._execution.deadline:
            self._end(self._books.late(self._execution, "".join(self._delivered)))

    def _end(self, report: BaseException | None) -> None:
        self.ended = True
        self.report = report


class AsyncWaker:
    """Wakes a task of one event loop, from anywhere."""

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake it."""
        if running_loop() is self._loop:
            self._event.set()
            return
        with suppress(RuntimeError):  # its loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float | None) -> None:
        """Until it is woken, or `timeout_s` seconds have passed."""
        if not self._event.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._event.wait()
        self._event.clear()


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _again(error: BaseException) -> BaseException:
    """The same failure for another caller: an exception that two threads raise would collect both their frames."""
    if isinstance(error, AllTargetsFailed):
        twin: BaseException = error.derive(error.exceptions)
    elif isinstance(error, FallbackError):
        twin = copy.copy(error)
    else:
        return error
    twin.__cause__ = error.__cause__
    twin.__suppress_context__ = True
    return twin
